"""Views per CPU-second: Lightly's SimCLRTransform image by image on PIL, and the same transform on batches.

    python benchmarks/views_cost.py --out benchmarks/views_cost.json
    python benchmarks/views_cost.py --device cuda --out benchmarks/views_cost_gpu.json

One thread. The two are timed in turns, and the shortest time of each counts: CPU time of the process, since others may
use the machine too. On a GPU, wall time of the batches until the device is done.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from idaa_lightly.bench.results import environment, write_json
from idaa_lightly.data import IMAGENET
from idaa_lightly.device_views import DeviceViews
from idaa_lightly.loading import seeded

GRID = [(32, 64), (32, 128), (32, 256), (32, 512), (32, 1024), (64, 256), (96, 128), (224, 32)]
ON_PIL = 48  # images a turn
VIEWS = 2


def images(count: int, size: int) -> Tensor:
    """Blobs of colour, (count, size, size, 3) in uint8."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)
    return fine.mul(255).clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()


def row(size: int, batch: int, blur: float, device: torch.device, turns: int) -> dict[str, Any]:
    """Microseconds a view of both, and their ratio."""
    transform = SimCLRTransform(size, gaussian_blur=blur, normalize=IMAGENET)
    make, pixels = DeviceViews(transform), images(batch, size)
    pictures = [Image.fromarray(image.numpy()) for image in pixels[:ON_PIL]]
    there, clock = pixels.to(device), time.process_time if device.type == "cpu" else time.perf_counter

    def on_pil() -> int:
        with seeded(0):
            for picture in pictures:
                transform(picture)
        return len(pictures)

    def on_batches() -> int:
        for step in range(max(1, 256 // batch)):
            make(there, step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return batch * max(1, 256 // batch)

    def timed(work: Callable[[], int], clock: Callable[[], float]) -> float:
        start = clock()
        count = work()
        return 1e6 * (clock() - start) / (VIEWS * count)

    on_batches()  # the first call is slower
    times = [(timed(on_pil, time.process_time), timed(on_batches, clock)) for _ in range(turns)]
    pil, ours = (round(min(column), 2) for column in zip(*times, strict=True))
    return {
        "image_size": size,
        "batch_size": batch,
        "gaussian_blur": blur,
        "pil_us": pil,
        "batch_us": ours,
        "ratio": round(pil / ours, 2),
        "images_per_s": round(1e6 / (VIEWS * ours)),
    }


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file to write.")
@click.option("--device", default="cpu", help="Device of the batches: cpu or cuda.")
@click.option("--turns", default=15, help="Times that each is timed.")
def main(out: Path, device: str, turns: int) -> None:
    """Time the views of SimCLR on PIL and on batches."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    on = torch.device(device)
    grid = GRID if on.type == "cpu" else [*GRID, (96, 1024), (224, 256)]
    rows = [row(size, batch, blur, on, turns) for blur in (0.0, 0.5) for size, batch in grid]
    table = Table(
        "px", "batch", "p of blur", "PIL, µs a view", f"batch on {device}, µs a view", "ratio", "images/s, 2 views"
    )
    for item in rows:
        table.add_row(*map(str, item.values()))
    Console().print(table)
    write_json(out, {"rows": rows, "turns": turns, **environment(on, 1)})


if __name__ == "__main__":
    main()
