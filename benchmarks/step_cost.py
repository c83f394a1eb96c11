"""Cost of a training step in FLOPs, time and memory: SimCLR alone, with CLAE, and with IDAA and its cheaper modes.

python benchmarks/step_cost.py                          ResNet-18, 32 px, one CPU thread
python benchmarks/step_cost.py --growth                 several batch and image sizes, ResNet-18 of width 16
python benchmarks/step_cost.py --device cuda --batch-size 256 --precision bf16
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
from measure import interleaved, peak_memory, save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from idaa_lightly import CLAE, IDAA, VAE, dual_batchnorm
from idaa_lightly.backbones import create_backbone
from idaa_lightly.registry import load
from idaa_lightly.variants import LOSSES

RIVALS = ("SimCLR", "CLAE", "IDAA, random", "IDAA", "IDAA, reused", "IDAA, half")


def make_step(name: str, backbone: str, x0: Tensor, x1: Tensor, precision: str) -> Callable[[], Tensor]:
    """Build the forward passes, attack and backward pass of a step.

    The optimiser step is left out, because it costs the same for all rivals.

    Args:
        name: One of `RIVALS`.
        backbone: Name of the backbone.
        x0: First view (N, 3, H, W).
        x1: Second view (N, 3, H, W).
        precision: "fp32" or "bf16".
    """
    torch.manual_seed(0)
    network, num_features = create_backbone(backbone, x0.shape[-1])
    method = load("method", "simclr")(network, num_features).to(x0.device, memory_format=torch.channels_last)
    loss: Callable[..., Any]
    if name == "SimCLR":
        loss = lambda model, a, b: model.loss(model(a), model(b))  # noqa: E731
    else:
        dual_batchnorm(method)
        generator = CLAE() if name == "CLAE" else IDAA(VAE(x0.shape[-1]).to(x0.device).eval())
        generator = generator.control() if name.endswith("random") else generator
        mode = name.rpartition(", ")[2] if name.endswith(("reused", "half")) else "exact"
        attacked = LOSSES[mode](method.loss, generator)
        loss = lambda *parts: attacked(*parts).total  # noqa: E731
    autocast = partial(torch.autocast, x0.device.type, torch.bfloat16, enabled=precision == "bf16")
    return partial(_step, method, loss, x0, x1, autocast)


def _step(method: nn.Module, loss: Callable[..., Tensor], x0: Tensor, x1: Tensor, autocast: Any) -> Tensor:
    method.zero_grad()
    with autocast():
        total = loss(method, x0, x1)
    total.backward()
    return total.detach()


def measure(backbone: str, size: int, batch: int, repeats: int, precision: str, device: str) -> dict[str, Any]:
    """Measure FLOPs per image, and seconds and peak bytes per step, of all `RIVALS`.

    Args:
        backbone: Name of the backbone.
        size: Height and width of the images, in pixels.
        batch: Images per step.
        repeats: Measured steps. The fastest counts.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda".
    """
    x0, x1 = (torch.randn(batch, 3, size, size, device=device) for _ in range(2))
    steps = {name: make_step(name, backbone, x0, x1, precision) for name in RIVALS}
    result: dict[str, Any] = {name: {} for name in RIVALS}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        result[name]["flops_per_image"] = counter.get_total_flops() / batch
        result[name]["peak_bytes"] = peak_memory(step, device)
    for name, seconds in interleaved(steps, repeats, device).items():
        result[name]["seconds"] = seconds
    plain = result["SimCLR"]
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
@click.option("--growth", is_flag=True, help="Vary batch and image size instead, with ResNet-18 of width 16.")
def main(
    backbone: str, image_size: int, batch_size: int, repeats: int, precision: str, device: str, growth: bool
) -> None:
    """Measure the cost of a step, and write results/step_cost*.json beside this file."""
    torch.set_num_threads(1)
    settings: list[tuple[str, int, int]] = [(backbone, image_size, batch_size)]
    if growth:
        settings = [("resnet18-w16", 32, batch) for batch in (16, 32, 64, 128, 256)]
        settings += [("resnet18-w16", size, 32) for size in (64, 96)]
    found = []
    for setting in settings:
        found.append(measure(*setting, repeats, precision, device))
        show(found[-1])
    name = "step_cost" + ("_growth" if growth else "") + (f"_{device}_{precision}" if device != "cpu" else "")
    Console().print(f"Written to {save(name, {'settings': found}, device)}")


if __name__ == "__main__":
    main()
