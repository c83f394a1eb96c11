"""Command `idaa-bench embed`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, such as features.npz.")
@click.option("--backbone", help="Network that a state dict belongs to: a ResNet from torchvision or timm.")
@click.option("--data", help="Data set to embed, as for `idaa-bench run --data`. Default: the run's.")
def embed(target: Path, out: Path, backbone: str | None, data: str | None) -> None:
    """Write the features of a network to an .npz file.

    TARGET is a run directory, its checkpoints/last.ckpt, or a state dict from torchvision or timm. A state dict needs
    --backbone and --data. Images are embedded without augmentation, by the backbone in eval mode.

    The file holds train_features (N, D) and test_features (M, D) in float32, and train_labels (N,) and test_labels
    (M,), in the order of the data set. The commands knn and linear accept it as a target. Of images without labels, it
    holds train_features only.

    \b
    Examples:
      idaa-bench embed runs/RUN --out features.npz
      idaa-bench embed resnet50.pth --backbone resnet50 --data folder:PATH --out features.npz
    """
    from idaa_lightly.bench.evaluate.embed import embed_target

    arrays = embed_target(target, out, backbone=backbone, data=data)
    shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in arrays.items())
    click.echo(f"Written to {out}: {shapes}")
