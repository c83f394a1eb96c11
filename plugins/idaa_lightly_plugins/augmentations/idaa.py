"""IDAA: one FGSM step on the bottleneck of a VAE, with the residual added back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from idaa_lightly import FGSM, PGD, VAE, LatentSpace, ViewGenerator, fit_vae
from idaa_lightly.ascent import Ascent, Norm
from idaa_lightly.errors import UsageError
from idaa_lightly.learned import LatentNetwork
from idaa_lightly.options import Count, NonNegative
from idaa_lightly.plugin import Control, FitContext, GeneratorAugmentation, Method
from idaa_lightly.vae_cache import cached_vae

BATCH_SIZE = 128  # batch size of VAE training: Yang et al., ICML 2022, appendix on training


class IDAA(GeneratorAugmentation):
    """Identity-disentangled adversarial augmentation (IDAA): one FGSM step on the bottleneck of a VAE.

    The residual R(x) = x − D(E(x)), which carries the identity of the sample, is added back to the decoded view.

    Source: Yang et al., "Identity-Disentangled Adversarial Augmentation for Self-Supervised Learning", ICML 2022,
    Sec. 3.

    Args:
        eps: Radius of the ball, in bottleneck units. The paper studies 0.1 to 0.3.
        steps: Number of steps. 1 is FGSM, as in the paper. More steps are PGD.
        norm: Norm of the ball.
        decompose: Add the residual back. False is the paper's ablation, x' = D(z + δ).
        vae: File of a VAE made by `idaa-bench vae`. None fits one and caches it. With a file, `beta`,
            `bottleneck_dim`, `width` and `vae_epochs` have no effect.
        beta: Weight of the KL term in the VAE's loss. Best at 0.1 on CIFAR and at 10 on miniImageNet.
        bottleneck_dim: Dimension of the bottleneck. The paper uses 512 on CIFAR and 3072 on ImageNet.
        width: Channels of the VAE's innermost feature map.
        vae_epochs: Epochs of VAE training. None takes the epochs of the method, as in the paper (300 and 300).
        search: Way to find the perturbation. gradient is the paper's ascent. network trains a small network to predict
            it (amortised IDAA), which needs no attack passes.
        hidden_dim: Width of that network's hidden layers.
        lr: Learning rate of that network. None takes the method's. It has no effect on the gradient search.

    Raises:
        UsageError: `mode` is "reused" with more than one step, without decomposition or with a network, or `search` is
            "network" with another norm than "linf" or several steps.
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
        search: Literal["gradient", "network"] = "gradient",
        hidden_dim: Count = 256,
        lr: NonNegative | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if search == "network" and (self.mode in ("reused", "half") or steps > 1 or norm != "linf"):
            raise UsageError(
                f"search is network, with mode {self.mode}, steps {steps} and norm {norm}: it needs mode exact or "
                "shared, 1 step and norm linf"
            )
        if self.mode == "reused" and (steps > 1 or not decompose):
            raise UsageError(f"mode is reused, with steps {steps} and decompose {decompose}: it needs 1 and true")
        self.ascent: Ascent = FGSM(eps, norm) if steps == 1 else PGD(eps, steps=steps, norm=norm)
        self.decompose = decompose
        self.file, self.beta, self.epochs = vae, beta, vae_epochs
        self.size = {"bottleneck_dim": bottleneck_dim, "width": width}
        self.vae: VAE | None = None
        self.digest: dict[str, str] = {}
        self.eps, self.by_network, self.hidden_dim, self.lr = eps, search == "network", hidden_dim, lr

    def controls(self, method: type[Method]) -> list[Control]:
        """Return the controls of every search, and those of the network: without training, and the gradient search."""
        found = super().controls(method)
        if self.by_network and not self.random:
            untrained, gradient = {"lr": 0.0}, {"search": "gradient"}
            found.append(Control("untrained network", options={"aug": untrained}))
            found.append(Control("search by gradient", options={"aug": gradient}, judged=False))
        return found

    def fit(self, context: FitContext) -> None:
        """Load the VAE from its file or the cache, or fit one on the method's views.

        Raises:
            UsageError: The VAE was made for another image size or number of channels.
        """
        if self.file is None:
            self.vae = cached_vae(self._key(context), context.cache_dir, lambda: self._fit(context))
            return
        self.vae = VAE.load(self.file)
        self.digest = {"sha256": hashlib.sha256(Path(self.file).read_bytes()).hexdigest()}
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
        """Return how the VAE was trained, by this run or an earlier one, and the hash of its file if one was named."""
        return {} if self.vae is None else {"vae": self.vae.fitted | self.digest}

    def generator(self) -> ViewGenerator:
        """Return the ascent on the bottleneck."""
        return ViewGenerator(self.space, self.ascent)

    def search(self) -> nn.Module:
        """Return the ascent, or the network that takes its place."""
        if not self.by_network:
            return self.generator()
        space, dim = self.space, self._fitted_vae().config["bottleneck_dim"]
        return LatentNetwork(space, dim, eps=self.eps, hidden_dim=self.hidden_dim)

    @property
    def space(self) -> LatentSpace:
        """Bottleneck of the fitted VAE."""
        return LatentSpace(self._fitted_vae(), decompose=self.decompose)

    def _fitted_vae(self) -> VAE:
        if self.vae is None:
            raise UsageError("IDAA has no VAE yet: call fit() first, or give vae=PATH")
        return self.vae

    def panels(self, images: Tensor) -> dict[str, Tensor]:
        """Return the residual R(x) and the reconstruction G(x)."""
        residual, reconstruction = self.space.decomposition(images)
        return {"R(x)": residual, "G(x)": reconstruction}

    def _key(self, context: FitContext) -> dict[str, object]:
        """Return everything that the VAE depends on, as its cache key."""
        epochs = self.epochs or context.epochs
        return context.key | self.size | {"beta": self.beta, "epochs": epochs, "seed": context.seed}
