"""Throughput of whole training steps, including views, compared with Lightly's SimCLR example.

    python benchmarks/gpu_throughput.py                             on a GPU: all settings, bf16
    python benchmarks/gpu_throughput.py --device cpu --quick        a quick trial on the CPU

A step is that of `idaa-bench run --views device --precision bf16-mixed`: views, attack, forward and backward passes,
and the optimiser. Lightly's example from its documentation uses SimCLRTransform on PIL images in worker processes, a
ResNet and NTXentLoss. It is measured in float32, as in the documentation, and with autocast to bfloat16.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.simclr_transform import SimCLRTransform
from measure import save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.functional import to_pil_image

from idaa_lightly import CLAE, IDAA, VAE, AdversarialLoss, DeviceViews, dual_batchnorm
from idaa_lightly.backbones import create_backbone
from idaa_lightly.registry import load

SETTINGS = [
    (net, size, batch) for net in ("resnet18", "resnet50") for size, batch in ((32, 256), (32, 1024), (224, 256))
]
QUICK = [("resnet9-w16", 32, 32)]
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
Step = Callable[[], object]


def our_step(aug: str, backbone: str, size: int, batch: int, device: str, compiled: bool) -> Step:
    """Build a step of SimCLR with an augmentation, on uint8 images that are already on the device.

    Args:
        aug: "none", "clae" or "idaa".
        backbone: Name of the backbone.
        size: Height and width of the images, in pixels.
        batch: Images per step.
        device: "cuda" or "cpu".
        compiled: Compile the backbone.
    """
    torch.manual_seed(0)
    method = load("method", "simclr")(*create_backbone(backbone, size)).to(device)
    views = DeviceViews(method.transform(size, IMAGENET))
    objective: Any = lambda model, a, b: model.loss(model(a), model(b))  # noqa: E731
    if aug != "none":
        dual_batchnorm(method)
        generator = CLAE() if aug == "clae" else IDAA(VAE(size, bottleneck_dim=512 if size == 32 else 3072).to(device))
        attacked = AdversarialLoss(method.loss, generator)
        objective = lambda *parts: attacked(*parts).total  # noqa: E731
    method.to(memory_format=torch.channels_last)
    if compiled:
        method.backbone.compile()
    optimizer = torch.optim.Adam(method.parameters(), fused=True)
    pixels = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, device=device)
    counter = iter(range(10**9))

    def step() -> None:
        x0, x1 = views(pixels, next(counter))
        with torch.autocast(device, torch.bfloat16):
            loss = objective(method, x0, x1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Pictures(Dataset[tuple[list[Tensor], int]]):
    """Data set of views that Lightly's transform makes of random PIL images.

    Args:
        size: Height and width of the images, in pixels.
        count: Length of the data set. The same 64 images repeat.
    """

    def __init__(self, size: int, count: int) -> None:
        images = torch.randint(256, (64, 3, size, size), dtype=torch.uint8)
        self.images, self.count = [to_pil_image(image) for image in images], count
        self.transform = SimCLRTransform(size, gaussian_blur=0.0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        return self.transform(self.images[index % len(self.images)]), 0


def lightly_step(backbone: str, size: int, batch: int, device: str, half: bool, steps: int) -> Step:
    """Build a step of Lightly's example, including the wait for its data loader.

    Args:
        backbone: Name of the backbone.
        size: Height and width of the images, in pixels.
        batch: Images per step.
        device: "cuda" or "cpu".
        half: Use autocast to bfloat16.
        steps: Number of steps that the data loader must serve. One more is added for counting FLOPs.
    """
    network, features = create_backbone(backbone, size)
    model = nn.Sequential(network, nn.Flatten(), SimCLRProjectionHead(features, features, 128)).to(device)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.06), NTXentLoss()
    workers = min(16, os.cpu_count() or 1)
    loader = DataLoader(Pictures(size, batch * (steps + 1)), batch, num_workers=workers, pin_memory=device == "cuda")
    batches: Iterator[Any] = iter(loader)

    def step() -> None:
        (x0, x1), _ = next(batches)
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = criterion(model(x0.to(device)), model(x1.to(device)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def measure(step: Step, warm: int, steps: int, device: str) -> float:
    """Return the seconds per step.

    Args:
        step: Step to measure.
        warm: Steps to run before the measurement.
        steps: Steps to measure.
        device: "cuda" or "cpu".
    """
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(warm):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return (time.perf_counter() - start) / steps


@click.command(context_settings={"show_default": True})
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", help="Device to measure on.")
@click.option("--peak", default=989.0, help="Peak of dense bfloat16 in TFLOP/s. An H200 has 989.")
@click.option("--compile/--no-compile", "compiled", default=False, help="Compile the backbone of our steps.")
@click.option("--quick", is_flag=True, help="Measure one small setting with few steps.")
def main(device: str, peak: float, compiled: bool, quick: bool) -> None:
    """Measure images per second, and write results/gpu_throughput_DEVICE.json beside this file."""
    table = Table("backbone", "px", "batch", "step", "images/s", "TFLOP/s", "of the peak")
    warm, steps = (1, 2) if quick else (10, 30)
    found = []
    for backbone, size, batch in QUICK if quick else SETTINGS:
        ours = partial(our_step, backbone=backbone, size=size, batch=batch, device=device, compiled=compiled)
        example = partial(lightly_step, backbone, size, batch, device, steps=warm + steps)
        makers: dict[str, Callable[[], Step]] = {
            f"SimCLR × {aug}": partial(ours, aug) for aug in ("none", "clae", "idaa")
        }
        makers["Lightly's example"] = partial(example, half=False)
        makers["Lightly's example in bf16"] = partial(example, half=True)
        for name, make in makers.items():
            step = make()
            with FlopCounterMode(display=False) as counter:
                step()
            seconds, flops = measure(step, warm, steps, device), counter.get_total_flops()
            rate = flops / seconds / 1e12
            found.append({"backbone": backbone, "image_size": size, "batch_size": batch, "step": name})
            found[-1] |= {"images_per_s": batch / seconds, "tflops": rate, "of_peak": rate / peak}
            cells = [f"{batch / seconds:.0f}", f"{rate:.2f}", f"{100 * rate / peak:.1f} %"]
            table.add_row(backbone, str(size), str(batch), name, *cells)
    Console().print(table)
    path = save(f"gpu_throughput_{device}", {"steps": found, "peak": peak, "compiled": compiled}, device)
    Console().print(f"Written to {path}")


if __name__ == "__main__":
    main()
