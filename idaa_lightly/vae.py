"""Convolutional beta-VAE whose bottleneck IDAA perturbs, with its training.

Source: Yang et al., ICML 2022, Sec. 3.2 and the appendix on architectures and training.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly.errors import DataError, FileFormatError, NonFiniteError, UsageError
from idaa_lightly.files import load_tensors, save_tensors
from idaa_lightly.options import Count, NonNegative, checked
from idaa_lightly.outputs import first_of

log = logging.getLogger(__name__)


class VAE(nn.Module):
    """Convolutional VAE.

    Stride-2 convolutions reduce the image to about 8 px. Residual blocks and a linear bottleneck follow, and the
    decoder mirrors the encoder. At 32 px these are the paper's layers, with 64 and 128 channels. At 224 px there are
    the paper's five convolutions, with 8 to 128 channels. The decoder ends in a tanh and a BatchNorm over the colour
    channels, so that its output covers the range of normalised images.

    Args:
        image_size: Height and width of the images, in pixels.
        channels: Number of channels of the images.
        bottleneck_dim: Dimension of z. The paper takes 512 for CIFAR and 3072 for ImageNet.
        width: Number of channels of the innermost feature map.

    Attributes:
        fitted: Record of `fit_vae`: `epochs`, `seconds`, `flops` (floating-point operations of all epochs, as
            `torch.utils.flop_counter` counts them), the last epoch's means of `loss`, `mse` and `kl`, and `variance`,
            the mean squared error of the mean image. Up to a constant and a scale, the loss is the bound
            −I(z;x) + β I(z;y) ≤ L_VAE of Lemma 3.2. Empty if not trained.

    Shape:
        - Images: (N, channels, image_size, image_size), normalised.
        - Bottleneck: (N, bottleneck_dim).

    Raises:
        UsageError: `image_size` cannot be halved evenly down to about 8, or `width` cannot be halved as often.

    Example:
        >>> vae = VAE(image_size=32, bottleneck_dim=64, width=16)
        >>> mean, logvar = vae.encode(torch.randn(4, 3, 32, 32))
        >>> mean.shape, vae.decode(mean).shape
        (torch.Size([4, 64]), torch.Size([4, 3, 32, 32]))
    """

    def __init__(self, image_size: int = 32, channels: int = 3, bottleneck_dim: int = 512, width: int = 128) -> None:
        super().__init__()
        halvings = round(math.log2(image_size / 8)) if image_size >= 8 else 0
        if halvings < 1 or image_size % 2**halvings or width % 2 ** (halvings - 1):
            raise UsageError(
                f"a VAE for images of {image_size} px with width {width} cannot be built: the size must be 12 or "
                "more and divisible by 2**n, with n = log2(size / 8) rounded (such as 16, 28, 32, 64, 96, 224), and "
                "the width must be divisible by 2**(n - 1)"
            )
        self.config = {
            "image_size": image_size,
            "channels": channels,
            "bottleneck_dim": bottleneck_dim,
            "width": width,
        }
        self.fitted: dict[str, float] = {}
        side = image_size // 2**halvings
        sizes = [channels] + [width // 2**i for i in reversed(range(halvings))]
        down = [nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(sizes)]
        up = [nn.ConvTranspose2d(b, a, 4, 2, 1) for a, b in itertools.pairwise(sizes)][::-1]
        self.encoder = nn.Sequential(
            *_joined(down),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.Flatten(),
            nn.Linear(width * side**2, 2 * bottleneck_dim),
        )
        self.decoder = nn.Sequential(
            nn.Linear(bottleneck_dim, width * side**2),
            nn.Unflatten(1, (width, side, side)),
            ResidualBlock(width),
            ResidualBlock(width),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            *_joined(up),
            nn.Tanh(),
            nn.BatchNorm2d(channels),
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images as posterior mean and log-variance.

        Args:
            x: Normalised images, (N, channels, image_size, image_size).

        Returns:
            The mean and the log-variance, (N, bottleneck_dim) each.

        Raises:
            DataError: `x` has another shape.
        """
        expected = (self.config["channels"], *2 * (self.config["image_size"],))
        if x.shape[1:] != expected:
            raise DataError(
                f"the VAE is for images of shape (N, {', '.join(map(str, expected))}), but got {tuple(x.shape)}: "
                "fit a VAE on this data, or change the image size"
            )
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Decode bottlenecks (N, bottleneck_dim) to images (N, channels, image_size, image_size)."""
        images: Tensor = self.decoder(z)
        return images

    def save(self, path: str | Path) -> None:
        """Save the architecture, the weights and `fitted` to a file, atomically.

        Args:
            path: File to write.
        """
        save_tensors({"idaa_lightly.VAE": self.config, "state": self.state_dict(), "fitted": self.fitted}, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> VAE:
        """Load a VAE from a file that `save` wrote. No code in the file is executed.

        Args:
            path: File to read.

        Returns:
            The VAE on the CPU, in eval mode.

        Raises:
            FileFormatError: The file is missing or is not a VAE.
        """
        state = load_tensors(Path(path), "a VAE written by VAE.save or `idaa-bench vae`")
        try:
            with torch.random.fork_rng(devices=[]):  # A loop draws the same batches as without this VAE.
                vae = cls(**state["idaa_lightly.VAE"])
            vae.load_state_dict(state["state"])
            vae.fitted = state.get("fitted", {})
        except (KeyError, TypeError, RuntimeError, UsageError) as error:
            raise FileFormatError(f"{path} holds tensors, but no VAE written by VAE.save: {error!r:.200}") from error
        return vae.eval()


class ResidualBlock(nn.Module):
    """Residual block x + conv1×1(ReLU(BN(conv3×3(ReLU(x))))). Channels and size stay unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of `x`, (N, channels, H, W), and the layers' output."""
        output: Tensor = x + self.layers(x)
        return output


def vae_loss(
    vae: VAE, x: Tensor, beta: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the paper's β-VAE loss, mean squared error + β · KL / (N · bottleneck_dim · C).

    Args:
        vae: VAE in training mode.
        x: Images, (N, C, H, W).
        beta: Weight of the KL term. The paper studies 0, 0.1, 1 and 10.
        generator: Random generator for the samples of the posterior. None uses the global one.

    Returns:
        The loss, the mean squared error and the scaled KL divergence, all scalars.
    """
    mean, logvar = vae.encode(x)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    error = F.mse_loss(vae.decode(mean + noise * (0.5 * logvar).exp()), x)
    divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum() / (mean.numel() * x.shape[1])
    return error + beta * divergence, error, divergence


@checked
def fit_vae(
    vae: VAE,
    batches: Iterable[Any],
    *,
    epochs: Count,
    beta: NonNegative = 0.1,
    lr: float = 5e-4,
    seed: int = 0,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train a VAE in place, on its own device, and leave it in eval mode.

    The recipe follows the paper's appendix: AdamW with betas (0, 0.9), and a learning rate that falls linearly to 0. It
    is updated after each epoch and is `lr / epochs` in the last one. A VAE that ends worse than the mean image is
    logged as a warning.

    Args:
        vae: VAE to train.
        batches: Batches of images, such as a DataLoader, iterated once per epoch. An iterator, such as a generator, is
            read once, and its images are kept in memory. A batch is a tensor (N, C, H, W), or a tuple or list that
            starts with one: (images, labels), or Lightly's (views, labels, names), of which the first view is taken.
            The images are augmented and normalised like the self-supervised method's views.
        epochs: Number of passes through `batches`. The paper takes 300.
        beta: Weight of the KL term.
        lr: Learning rate of the first epoch.
        seed: Seed of the samples of the posterior. The global random generator is not used.
        on_epoch: Callback, called after each epoch with its number, counted from 1, and its entry of the result.

    Returns:
        One dict per epoch, with the means of `loss`, `mse` and `kl`.

    Raises:
        DataError: `batches` yielded no batch, as an exhausted iterator does, or batches without images.
        NonFiniteError: The loss became NaN or infinite.

    Example:
        >>> vae = VAE(image_size=16, bottleneck_dim=8, width=4)
        >>> loader = [torch.randn(8, 3, 16, 16)]
        >>> history = fit_vae(vae, loader, epochs=2)
        >>> [sorted(means) for means in history]
        [['kl', 'loss', 'mse'], ['kl', 'loss', 'mse']]
    """
    weight = next(vae.parameters())
    device = weight.device
    generator = torch.Generator(device).manual_seed(seed)
    vae.train().requires_grad_(True)
    begun = time.perf_counter()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.0, 0.9), fused=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / epochs, total_iters=max(1, epochs - 1))
    history, flops = [], 0.0
    if isinstance(batches, Iterator):
        batches = [_images(batch) for batch in batches]
    for epoch in range(1, epochs + 1):
        sums, count, pixels = torch.zeros(4, device=device), 0, torch.zeros((), device=device)
        for batch in batches:
            images = _images(batch).to(weight)
            counter = nullcontext() if flops else FlopCounterMode(display=False)
            with counter:
                losses = vae_loss(vae, images, beta, generator)
                optimizer.zero_grad()
                losses[0].backward()
            if isinstance(counter, FlopCounterMode):  # in the first step only, because it is slow
                flops = counter.get_total_flops() / len(images)
            optimizer.step()
            sums += torch.stack([*losses, images.float().square().mean()]).detach() * len(images)
            pixels = pixels + images.sum(0, dtype=torch.float32)
            count += len(images)
        if not count:
            raise DataError("fit_vae got no batches: pass a list or a DataLoader, not an iterator that has ended")
        *means, square = (sums / count).tolist()
        history.append(dict(zip(("loss", "mse", "kl"), means, strict=True)))
        if not math.isfinite(history[-1]["loss"]):
            raise NonFiniteError(f"the VAE's loss is {history[-1]['loss']} in epoch {epoch}: lower lr (now {lr})")
        scheduler.step()
        if on_epoch is not None:
            on_epoch(epoch, history[-1])
    vae.eval()
    seconds = round(time.perf_counter() - begun, 2)
    vae.fitted = {"epochs": epochs, "seconds": seconds, "flops": round(flops * count * epochs), **history[-1]}
    vae.fitted["variance"] = square - float((pixels / count).square().mean())
    if fault := worse_than_mean(vae.fitted):
        log.warning(f"Warning: {fault}.")
    return history


def worse_than_mean(fitted: dict[str, float]) -> str | None:
    """Return a warning if a VAE reconstructs no better than the mean image, else None.

    Args:
        fitted: Record of `fit_vae`. Without `variance`, that of normalised images is taken.
    """
    variance = fitted.get("variance", 1.0)
    if fitted.get("mse", 0) < variance:
        return None
    return (
        f"the VAE's mean squared error is {fitted['mse']:.3g} after epoch {fitted['epochs']}, but the mean image has "
        f"{variance:.3g}: fit it for more epochs, and check that the images are normalised"
    )


def _images(batch: Any) -> Tensor:
    """Return the images of a batch: itself, or the first tensor in nested tuples and lists.

    Raises:
        DataError: The batch holds no images (N, C, H, W) of floats.
    """
    first = first_of(batch)
    if isinstance(first, Tensor) and first.ndim == 4 and first.is_floating_point():
        return first
    got = f"{first.dtype} of shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
    raise DataError(
        f"fit_vae got a batch with {got}, but expected normalised images (N, C, H, W), (images, labels) or "
        "(views, labels, names): give the data set a transform that ends in a normalisation"
    )


def _joined(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return the layers with a ReLU between consecutive ones."""
    return [part for layer in layers for part in (nn.ReLU(), layer)][1:]
