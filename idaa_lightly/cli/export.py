"""`idaa-bench export`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, such as resnet18.pth.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["torchvision", "timm"]),
    help="Whose network of that kind is to load it. Default: torchvision's, else timm's, where they have it.",
)
def export(run: Path, out: Path, form: str | None) -> None:
    """Write a run's backbone as a plain state dict of torchvision or timm, and print the Python that loads it.

    RUN is the folder of a finished run. The network has no classifier. One that was trained on images of 64 px or less
    has the CIFAR stem, a 3×3 convolution and no max-pooling: the printed lines put it in. Narrow networks such as
    resnet18-w16 are in neither library; `create_backbone` of idaa-lightly loads those.

    \b
    Example:
      idaa-bench export runs/RUN --out resnet18.pth --format timm
    """
    from idaa_lightly.bench.evaluate.export import export as write

    lines = write(run, out, form)
    click.echo(f"Written to {out}. To load it:\n\n{lines}")
