"""Command `idaa-bench embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from idaa_lightly.cli.options import network_options


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, such as features.npz.")
@network_options("Data set to embed, as for `idaa-bench run --data`. Default: the run's.")
def embed(target: Path, out: Path, **given: Any) -> None:
    """Write the features of a network to an .npz file.

    TARGET is a run directory, one of its checkpoints, or a state dict from torchvision, timm or `export`. A state
    dict needs --data, and --backbone unless `export` wrote it. If TARGET is a directory that holds several runs, each
    gets a file of its own, such as features-seed-0.npz. Images are embedded without augmentation, by the backbone in
    eval mode.

    The file holds train_features (N, D) and test_features (M, D) in float32, and train_labels (N,) and test_labels
    (M,), in the order of the data set. The commands knn and linear accept it as a target. Without labels, the file
    holds train_features only.

    \b
    Examples:
      idaa-bench embed runs/RUN --out features.npz
      idaa-bench embed resnet50.pth --backbone resnet50 --data folder:PATH --out features.npz
    """
    from idaa_lightly.bench.evaluate.embed import embed_target
    from idaa_lightly.bench.evaluate.state_dicts import Given
    from idaa_lightly.bench.evaluate.store import runs_below

    for suffix, folder in runs_below(target).items():
        path = out.with_stem(out.stem + suffix) if suffix else out
        arrays = embed_target(folder, path, Given(**given))
        shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in arrays.items())
        click.echo(f"Written to {path}: {shapes}")
