"""Cost of SimCLR's views: Lightly's transform on single PIL images, kornia's transforms on batches, ours on batches.

    python benchmarks/views_cost.py            32 px, batch 256, without and with blur: about a minute
    python benchmarks/views_cost.py --growth   several batch and image sizes: about 5 minutes

By default, all run on one CPU thread. The images are in memory, and the views are normalised, in float32. Lightly's
transform starts from PIL images. kornia's and ours start from uint8 tensors; their conversion to float is measured too.
"""

from __future__ import annotations

import warnings
from typing import Any

import click
import torch
from kornia import augmentation as kornia
from lightly.transforms.simclr_transform import SimCLRTransform
from measure import interleaved, save
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from idaa_lightly.data import IMAGENET
from idaa_lightly.transforms.device import DeviceViews

VIEWS = 2
PIL_IMAGES = 64


def make_images(count: int, size: int) -> Tensor:
    """Return random blobs of colour, (count, size, size, 3), uint8."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fine = nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return fine.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


class KorniaViews(nn.Module):
    """SimCLR's views built from kornia's transforms. Its colour jitter draws one order of steps per batch.

    Args:
        size: Height and width of the views, in pixels.
        blur: Probability of the Gaussian blur.
    """

    def __init__(self, size: int, blur: float) -> None:
        super().__init__()
        self.view = nn.Sequential(
            kornia.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
            kornia.RandomHorizontalFlip(0.5),
            kornia.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8),
            kornia.RandomGrayscale(p=0.2),
            *([kornia.RandomGaussianBlur((13, 13), (0.1, 2.0), p=blur)] if blur else []),
            kornia.Normalize(torch.tensor(IMAGENET["mean"]), torch.tensor(IMAGENET["std"])),
        )

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return two views (N, 3, S, S) of pixels (N, S, S, 3)."""
        images = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return [self.view(images) for _ in range(VIEWS)]


def measure(size: int, batch: int, blur: float, repeats: int, device: str) -> dict[str, Any]:
    """Measure the microseconds per view of Lightly, kornia and ours.

    Args:
        size: Height and width of the images, in pixels.
        batch: Images per batch.
        blur: Probability of the Gaussian blur.
        repeats: Measured calls. The fastest counts.
        device: Device of kornia's and our batches.
    """
    transform = SimCLRTransform(size, gaussian_blur=blur, normalize=IMAGENET)
    pixels = make_images(batch, size)
    images = [Image.fromarray(image.numpy()) for image in pixels[:PIL_IMAGES]]
    there, ours, theirs = pixels.to(device), DeviceViews(transform), KorniaViews(size, blur).to(device)
    calls = max(1, PIL_IMAGES // batch)
    rivals = {
        "lightly": (lambda: [transform(image) for image in images], len(images)),
        "kornia": (lambda: [theirs(there) for _ in range(calls)], calls * batch),
        "ours": (lambda: [ours(there, step) for step in range(calls)], calls * batch),
    }
    seconds = interleaved({name: function for name, (function, _) in rivals.items()}, repeats, device)
    cost = {name: 1e6 * seconds[name] / (VIEWS * count) for name, (_, count) in rivals.items()}
    faster = {name: cost[name] / cost["ours"] for name in ("lightly", "kornia")}
    setting = {"image_size": size, "batch_size": batch, "p_of_blur": blur}
    return setting | {"microseconds_a_view": cost, "faster_than": faster, "images_per_s": 1e6 / (VIEWS * cost["ours"])}


@click.command(context_settings={"show_default": True})
@click.option("--repeats", default=10, help="Measured calls. The fastest counts.")
@click.option("--device", default="cpu", help="Device of the batches: cpu (one thread, CPU seconds) or cuda.")
@click.option("--growth", is_flag=True, help="Vary batch and image size.")
def main(repeats: int, device: str, growth: bool) -> None:
    """Measure the cost of views, and write results/views_cost*.json beside this file."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    settings = [(32, 256, 0.0), (32, 256, 0.5)]
    if growth:
        settings = [(32, batch, 0.0) for batch in (16, 64, 128, 256, 512, 1024)]
        settings += [(size, batch, blur) for size, batch in ((64, 128), (96, 128), (224, 32)) for blur in (0.0, 0.5)]
    table = Table("px", "batch", "p of blur", "Lightly", "kornia", "ours", "faster than", "", "images/s")
    table.title, table.caption = "µs a view", "faster than Lightly, and than kornia; images/s with two views each"
    found = []
    for setting in settings:
        found.append(measure(*setting, repeats, device))
        cost, faster = found[-1]["microseconds_a_view"].values(), found[-1]["faster_than"].values()
        cells = [*(f"{value:.1f}" for value in cost), *(f"{value:.2f} ×" for value in faster)]
        table.add_row(*map(str, setting), *cells, f"{found[-1]['images_per_s']:.0f}")
    Console().print(table)
    name = "views_cost" + "_growth" * growth + (f"_{device}" if device != "cpu" else "")
    Console().print(f"Written to {save(name, {'settings': found}, device)}")


if __name__ == "__main__":
    main()
