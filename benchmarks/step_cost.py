"""Cost of a training step in FLOPs, time and memory, relative to SimCLR alone.

python benchmarks/step_cost.py                          ResNet-18, 32 px, one CPU thread
python benchmarks/step_cost.py --forms                  every form of a further view, and every control
python benchmarks/step_cost.py --growth                 several batch and image sizes, ResNet-18 of width 16
python benchmarks/step_cost.py --device cuda --batch-size 256 --precision bf16
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from measure import interleaved, peak_memory, save
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly import VAE
from idaa_lightly.backbones import create_backbone
from idaa_lightly.plugin import FitContext
from idaa_lightly.registry import load
from idaa_lightly.training import SelfSupervised

NORMALIZE = {"mean": [0.5] * 3, "std": [0.25] * 3}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "SimCLR": ("none", {}),
    "CLAE": ("clae", {}),
    "IDAA, random": ("idaa", {"random": True}),
    "IDAA": ("idaa", {}),
    "IDAA, reused": ("idaa", {"mode": "reused"}),
    "IDAA, half": ("idaa", {"mode": "half"}),
    "IDAA, replacing": ("idaa", {"place": "replace"}),
    "IDAA, network": ("idaa", {"search": "network"}),
    "IDAA, network, replacing": ("idaa", {"search": "network", "place": "replace"}),
    "CLAE, replacing": ("clae", {"place": "replace"}),
    "viewmaker": ("viewmaker", {}),
    "PiNDA": ("pinda", {}),
    "hard views": ("hvp", {}),
    "hard views, selected at half resolution": ("hvp", {"select_at": "half"}),
    "MetAug": ("metaug", {}),
    "MetAug, second order": ("metaug", {"second_order": True}),
    "third ordinary view": ("third", {}),
    "unperturbed view, first BatchNorm": ("unperturbed", {}),
    "unperturbed view, second BatchNorm": ("unperturbed", {"branch": "adversarial"}),
    "second view, second BatchNorm": ("unperturbed", {"branch": "adversarial", "place": "replace"}),
}
"""Augmentation and its options by name."""
RIVALS = ("SimCLR", "CLAE", "IDAA, random", "IDAA", "IDAA, reused", "IDAA, half")


def make_step(name: str, backbone: str, size: int, batch: int, precision: str, device: str) -> Callable[[], Tensor]:
    """Build the forward passes, attack and backward pass of a step.

    The optimiser step is left out, because it costs the same for all rivals. So are the fitting of a VAE and the making
    of views.

    Args:
        name: One of `FORMS`.
        backbone: Name of the backbone.
        size: Height and width of the images, in pixels.
        batch: Images per step.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
    """
    torch.manual_seed(0)
    method = load("method", "simclr")(*create_backbone(backbone, size))
    aug, options = FORMS[name]
    with TemporaryDirectory() as folder:
        if aug == "idaa":
            VAE(size).save(Path(folder) / "vae.pt")
            options = options | {"vae": f"{folder}/vae.pt"}
        augmentation = load("augmentation", aug)(**options)
        augmentation.fit(
            FitContext(
                views=lambda count: [],
                key={},
                images=batch,
                image_size=size,
                channels=3,
                normalize=NORMALIZE,
                epochs=1,
                seed=0,
                device=torch.device(device),
                cache_dir=Path(folder),
                progress=lambda title, total: print,
            )
        )
    count = len(augmentation.transform(method.transform(size, NORMALIZE)).transforms)
    views = [torch.randn(batch, 3, size, size, device=device) for _ in range(count)]
    module = SelfSupervised(method, augmentation, epochs=1, steps_per_epoch=1, seed=0).to(device)
    return partial(_step, module, views, partial(torch.autocast, device, torch.bfloat16, enabled=precision == "bf16"))


def _step(module: SelfSupervised, views: list[Tensor], autocast: Any) -> Tensor:
    module.zero_grad()
    with autocast():
        total: Tensor = module.losses(*views).total
    total.backward()
    return total.detach()


def measure(
    names: Iterable[str], backbone: str, size: int, batch: int, repeats: int, precision: str, device: str
) -> dict[str, Any]:
    """Measure FLOPs per image, and seconds and peak bytes per step.

    Args:
        names: Names in `FORMS`. The first is what the others are compared with.
        backbone: Name of the backbone.
        size: Height and width of the images, in pixels.
        batch: Images per step.
        repeats: Measured steps. The fastest counts.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
    """
    steps = {name: make_step(name, backbone, size, batch, precision, device) for name in names}
    result: dict[str, Any] = {name: {} for name in steps}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        result[name]["flops_per_image"] = counter.get_total_flops() / batch
        result[name]["peak_bytes"] = peak_memory(step, device)
    for name, seconds in interleaved(steps, repeats, device).items():
        result[name]["seconds"] = seconds
    plain = next(iter(result.values()))
    for entry in result.values():
        entry["relative"] = {key: entry[key] / plain[key] for key in ("flops_per_image", "seconds", "peak_bytes")}
    return {"backbone": backbone, "image_size": size, "batch_size": batch, "precision": precision, "steps": result}


def show(found: dict[str, Any]) -> None:
    """Print a table of the costs relative to SimCLR alone."""
    title = "{backbone}, {image_size} px, batch {batch_size}, {precision}".format(**found)
    table = Table("step", "FLOPs", "time", "peak memory", "images/s", title=title, caption="relative to SimCLR alone")
    for name, entry in found["steps"].items():
        ratios = [f"{entry['relative'][key]:.2f} ×" for key in ("flops_per_image", "seconds", "peak_bytes")]
        table.add_row(name, *ratios, f"{found['batch_size'] / entry['seconds']:.0f}")
    Console().print(table)


@click.command(context_settings={"show_default": True})
@click.option("--backbone", default="resnet18", help="Backbone, as for `idaa-bench run`.")
@click.option("--image-size", default=32, help="Height and width of the images, in pixels.")
@click.option("--batch-size", default=32, help="Images per step.")
@click.option("--repeats", default=5, help="Measured steps. The fastest counts.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", help="Precision of the steps.")
@click.option("--device", default="cpu", help="Device: cpu (one thread, CPU seconds) or cuda (wall time).")
@click.option("--forms", is_flag=True, help="Measure every form of a further view, and every control.")
@click.option("--growth", is_flag=True, help="Vary batch and image size instead, with ResNet-18 of width 16.")
def main(
    backbone: str,
    image_size: int,
    batch_size: int,
    repeats: int,
    precision: str,
    device: str,
    forms: bool,
    growth: bool,
) -> None:
    """Measure the cost of a step, and write results/step_cost*.json beside this file."""
    torch.set_num_threads(1)
    settings: list[tuple[str, int, int]] = [(backbone, image_size, batch_size)]
    if growth:
        settings = [("resnet18-w16", 32, batch) for batch in (16, 32, 64, 128, 256)]
        settings += [("resnet18-w16", size, 32) for size in (64, 96)]
    found = []
    for setting in settings:
        found.append(measure(FORMS if forms else RIVALS, *setting, repeats, precision, device))
        show(found[-1])
    name = (
        "step_cost"
        + ("_growth" if growth else "_forms" if forms else "")
        + (f"_{device}_{precision}" if device != "cpu" else "")
    )
    Console().print(f"Written to {save(name, {'settings': found}, device)}")


if __name__ == "__main__":
    main()
