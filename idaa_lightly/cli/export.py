"""Command `idaa-bench export`."""

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
    help="Library to load the file with. Default: torchvision if it has the network, else timm.",
)
def export(run: Path, out: Path, form: str | None) -> None:
    """Write a run's backbone as a plain state dict.

    RUN is the directory of a finished run, a file in its checkpoints, or a directory that holds runs at any depth. If
    there are several, each gets its own file, such as resnet18-seed-0.pth. The command also prints the Python lines
    that load the file. A JSON file beside it, such as resnet18.pth.json, holds image size and normalisation for `knn`,
    `linear` and `embed`.

    The network has no classifier. For images of up to 64 px, it was changed: a 3×3 convolution as stem
    and no max-pooling for ResNets, smaller patches for ViT, Swin and ConvNeXt. The printed lines make these changes to
    the library's network. Narrow networks such as resnet18-w16 and plugins are in neither library; for them the lines
    call `create_backbone` of idaa-lightly.

    \b
    Example:
      idaa-bench export runs/RUN --out resnet18.pth --format timm
    """
    from idaa_lightly.bench.evaluate.export import export as write
    from idaa_lightly.bench.evaluate.store import runs_below

    for suffix, folder in runs_below(run).items():
        path = out.with_stem(out.stem + suffix) if suffix else out
        lines = write(folder, path, form)
        click.echo(f"Written to {path}. To load it:\n\n{lines}")
