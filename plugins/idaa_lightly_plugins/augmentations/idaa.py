"""IDAA: one FGSM step on the bottleneck of a VAE, with the identity added back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idaa_lightly import FGSM, PGD, VAE, LatentSpace, ViewGenerator, fit_vae
from idaa_lightly.ascent import Ascent, Norm
from idaa_lightly.errors import UsageError
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import FitContext, GeneratorAugmentation
from idaa_lightly.vae import cached_vae

BATCH_SIZE = 128  # of the VAE's training: Yang et al., ICML 2022, appendix on training


class IDAA(GeneratorAugmentation):
    """Identity-disentangled adversarial augmentation: FGSM on a VAE's bottleneck, the identity added back.

    Source: Yang et al., "Identity-Disentangled Adversarial Augmentation for Self-Supervised Learning", ICML 2022,
    Sec. 3.

    Args:
        eps: radius of the ball in units of the bottleneck; the paper studies 0.1 to 0.3.
        steps: 1 is FGSM, as in the paper; more are PGD.
        norm: of the ball.
        decompose: false leaves the residual out, x' = D(z + δ): the paper's ablation.
        vae: file of a VAE made by `idaa-bench vae`; where it is None, one is fitted and cached.
        beta: weight of the KL term in the VAE's loss; best at 0.1 on CIFAR, at 10 on miniImageNet.
        bottleneck_dim: dimension of the bottleneck; the paper takes 512 on CIFAR and 3072 on ImageNet.
        width: channels of the VAE's innermost feature map.
        vae_epochs: of the VAE's training; as many as the method's where it is None, as in the paper (300 and 300).
    """

    def __init__(
        self,
        *,
        eps: NonNegative = 0.15,
        steps: Count = 1,
        norm: Norm = "linf",
        decompose: bool = True,
        vae: str | None = None,
        beta: NonNegative = 0.1,
        bottleneck_dim: Count = 512,
        width: Count = 128,
        vae_epochs: Count | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if self.mode == "reused" and (steps > 1 or not decompose):
            raise UsageError(f"mode is reused, with steps {steps} and decompose {decompose}: it needs 1 and true")
        self.ascent: Ascent = FGSM(eps, norm) if steps == 1 else PGD(eps, steps=steps, norm=norm)
        self.decompose = decompose
        self.file, self.beta, self.epochs = vae, beta, vae_epochs
        self.size = {"bottleneck_dim": bottleneck_dim, "width": width}
        self.vae: VAE | None = None

    def fit(self, context: FitContext) -> None:
        """Load the VAE from its file or the cache, or fit one on the method's views."""
        if self.file is None:
            self.vae = cached_vae(self._key(context), context.cache_dir, lambda: self._fit(context))
            return
        self.vae = VAE.load(self.file)
        for name, wanted in (("image_size", context.image_size), ("channels", context.channels)):
            if self.vae.config[name] != wanted:
                raise UsageError(
                    f"the VAE {self.file} has {name} {self.vae.config[name]}, but the data has {wanted}: give "
                    "another VAE, or leave it out to fit one"
                )

    def _fit(self, context: FitContext) -> VAE:
        epochs = self.epochs or context.epochs
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            self.vae = VAE(context.image_size, context.channels, **self.size).to(context.device)
        step = context.progress("VAE", epochs)
        fit_vae(
            self.vae,
            context.views(BATCH_SIZE),
            epochs=epochs,
            beta=self.beta,
            seed=context.seed,
            on_epoch=lambda _, loss: step(f"mse {loss['mse']:.3f}, kl {loss['kl']:.2f}"),
        )
        return self.vae

    def fitted(self) -> dict[str, Any]:
        """How the VAE was trained, by this run or by an earlier one."""
        return {} if self.vae is None else {"vae": self.vae.fitted}

    def generator(self) -> ViewGenerator:
        """The ascent on the bottleneck."""
        return ViewGenerator(self.space, self.ascent)

    @property
    def space(self) -> LatentSpace:
        """The bottleneck of the fitted VAE."""
        if self.vae is None:
            raise UsageError("IDAA has no VAE yet: call fit() first, or give vae=PATH")
        return LatentSpace(self.vae, decompose=self.decompose)

    def panels(self, images: Tensor) -> dict[str, Tensor]:
        """R(x) and G(x)."""
        residual, reconstruction = self.space.decomposition(images)
        return {"R(x)": residual, "G(x)": reconstruction}

    def _key(self, context: FitContext) -> dict[str, object]:
        """What the VAE depends on."""
        epochs = self.epochs or context.epochs
        return context.key | self.size | {"beta": self.beta, "epochs": epochs, "seed": context.seed}
