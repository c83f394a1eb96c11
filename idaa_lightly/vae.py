"""The convolutional beta-VAE whose bottleneck IDAA perturbs.

Source: Yang et al., ICML 2022, Sec. 3.2 and the appendix on architectures and training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.errors import DataError, FileFormatError, NonFiniteError, UsageError
from idaa_lightly.files import atomic_write, load_tensors
from idaa_lightly.options import Count, NonNegative, checked


class VAE(nn.Module):
    """Convolutional VAE: stride-2 convolutions down to 7 or 8 pixels, residual blocks, a linear bottleneck, and back.

    At 32 px these are the paper's layers (channels 64 and 128), at 224 px its five convolutions (8 to 128 channels).
    The output passes tanh and then a BatchNorm over the colour channels, so that it reaches the range of normalised
    images.

    Args:
        image_size: height and width of the images in pixels.
        channels: of the images.
        bottleneck_dim: dimension of z; the paper takes 512 for CIFAR and 3072 for ImageNet.
        width: channels of the innermost feature map.

    Attributes:
        fitted: how it was trained by `fit_vae`: `epochs`, `seconds`, and of the last epoch the means of `loss`, `mse`
            and `kl`. The loss is, up to a constant and its scale, the bound −I(z;x) + β I(z;y) ≤ L_VAE of Lemma 3.2.

    Shape:
        - Images: (N, channels, image_size, image_size), normalised.
        - Bottleneck: (N, bottleneck_dim).

    Raises:
        UsageError: `image_size` cannot be halved down to 7 or 8, or `width` not as often.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, bottleneck_dim: int = 512, width: int = 128) -> None:
        super().__init__()
        halvings = round(math.log2(image_size / 8)) if image_size >= 8 else 0
        if halvings < 1 or image_size % 2**halvings or width % 2 ** (halvings - 1):
            raise UsageError(
                f"a VAE for images of {image_size} px with width {width} cannot be built: the size must be 14 or "
                "more and divisible by its power of two down to about 8 px (such as 16, 28, 32, 64, 96, 224), and "
                "the width by one power less"
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
        """Posterior mean and log-variance of images, (N, bottleneck_dim) each."""
        expected = (self.config["channels"], *2 * (self.config["image_size"],))
        if x.shape[1:] != expected:
            raise DataError(
                f"the VAE is for images of shape (N, {', '.join(map(str, expected))}), but got {tuple(x.shape)}: "
                "fit a VAE on this data, or change the image size"
            )
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Images (N, channels, image_size, image_size) of bottlenecks."""
        images: Tensor = self.decoder(z)
        return images

    def save(self, path: str | Path) -> None:
        """Writes the architecture and the weights, atomically."""
        with atomic_write(path) as temporary:
            content = {"idaa_lightly.VAE": self.config, "state": self.state_dict(), "fitted": self.fitted}
            torch.save(content, temporary)

    @classmethod
    def load(cls, path: str | Path) -> VAE:
        """Reads what `save` wrote. No code that the file may carry is run.

        Raises:
            FileFormatError: the file is missing or no VAE.
        """
        state = load_tensors(path, "a VAE written by VAE.save or `idaa-bench vae`")
        try:
            vae = cls(**state["idaa_lightly.VAE"])
            vae.load_state_dict(state["state"])
            vae.fitted = state.get("fitted", {})
        except (KeyError, TypeError, RuntimeError, UsageError) as error:
            raise FileFormatError(f"{path} holds tensors, but no VAE written by VAE.save: {error!r:.200}") from error
        return vae.eval()


class ResidualBlock(nn.Module):
    """x + conv1×1(ReLU(BN(conv3×3(ReLU(x))))), channels and size unchanged."""

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
        """Adds the block's output to `x`, (N, channels, H, W)."""
        output: Tensor = x + self.layers(x)
        return output


def vae_loss(
    vae: VAE, x: Tensor, beta: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's β-VAE loss: mean squared error + β · KL / (elements of a batch of bottlenecks × channels).

    Args:
        vae: in training mode.
        x: images (N, C, H, W).
        beta: weight of the KL term; the paper studies 0, 0.1, 1 and 10.
        generator: of the posterior's sample.

    Returns:
        The loss, the mean squared error and the scaled KL divergence: scalars.
    """
    mean, logvar = vae.encode(x)
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    error = F.mse_loss(vae.decode(mean + noise * (0.5 * logvar).exp()), x)
    divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum() / (mean.numel() * x.shape[1])
    return error + beta * divergence, error, divergence


@checked
def fit_vae(
    vae: VAE,
    batches: Iterable[Tensor],
    *,
    epochs: Count,
    beta: NonNegative = 0.1,
    lr: float = 5e-4,
    seed: int = 0,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Trains a VAE in place, on the device it is on, and leaves it in eval mode.

    The recipe of the paper's appendix: AdamW, betas (0, 0.9), the learning rate falling linearly to 0.

    Args:
        vae: to be trained.
        batches: gives batches of images (N, C, H, W) each time it is iterated; augmented and normalised as the
            self-supervised method's views.
        epochs: how often to go through `batches`, 1 or more; the paper takes 300.
        beta: weight of the KL term.
        lr: learning rate of the first epoch.
        seed: of the samples of the posterior. The global random stream is not used.
        on_epoch: called after each epoch with its number, from 1, and its entry of the result.

    Returns:
        Means over each epoch of `loss`, `mse` and `kl`.

    Raises:
        DataError: `batches` gave no batch, as an exhausted iterator does.
        NonFiniteError: the loss became NaN or infinite.
    """
    device = next(vae.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    vae.train().requires_grad_(True)
    begun = time.perf_counter()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, betas=(0.0, 0.9), fused=True)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / epochs, total_iters=max(1, epochs - 1))
    history = []
    for epoch in range(1, epochs + 1):
        sums, count = torch.zeros(3, device=device), 0
        for images in batches:
            losses = vae_loss(vae, images.to(device), beta, generator)
            optimizer.zero_grad()
            losses[0].backward()
            optimizer.step()
            sums += torch.stack(losses).detach() * len(images)
            count += len(images)
        if not count:
            raise DataError("fit_vae got no batches: pass a list or a DataLoader, not an iterator that has ended")
        history.append(dict(zip(("loss", "mse", "kl"), (sums / count).tolist(), strict=True)))
        if not math.isfinite(history[-1]["loss"]):
            raise NonFiniteError(f"the VAE's loss is {history[-1]['loss']} in epoch {epoch}: lower lr (now {lr})")
        scheduler.step()
        if on_epoch is not None:
            on_epoch(epoch, history[-1])
    vae.eval()
    vae.fitted = {"epochs": epochs, "seconds": round(time.perf_counter() - begun, 2), **history[-1]}
    return history


def cached_vae(key: dict[str, object], directory: Path, fit: Callable[[], VAE]) -> VAE:
    """Loads the VAE that was fitted under this key, or fits and keeps it; processes that want the same one wait.

    Args:
        key: everything the VAE depends on, as JSON values: data, transform, architecture, beta, epochs, seed.
        directory: of the cache; `key` is written beside each VAE.
        fit: makes the VAE if it is not there.
    """
    text = json.dumps(key, sort_keys=True)
    path = directory / f"vae-{hashlib.sha256(text.encode()).hexdigest()[:16]}.pt"
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            fit().save(path)
            with atomic_write(path.with_suffix(".json")) as temporary:
                temporary.write_text(json.dumps(key, indent=2, sort_keys=True))
        return VAE.load(path)


def _joined(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers with a ReLU between each two."""
    return [part for layer in layers for part in (nn.ReLU(), layer)][1:]
