"""`idaa-bench embed`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write, NAME.npz.")
@click.option("--backbone", help="Network of a state dict: a ResNet of torchvision or timm, such as resnet50.")
@click.option("--data", help="Images to embed, as for `idaa-bench run`, in the place of the run's.")
def embed(target: Path, out: Path, backbone: str | None, data: str | None) -> None:
    """Write the features of a run, or of a checkpoint of anybody's, to an .npz.

    TARGET is a run folder, its checkpoints/last.ckpt, or a state dict of torchvision or timm (with --backbone and
    --data). Features are those of the backbone in eval mode, of images without augmentation.

    The file has train_features (N, D) in float32, train_labels (N,), test_features (M, D) and test_labels (M,), in the
    order of the data set, and is a target for the commands knn and linear.

    \b
    Examples:
      idaa-bench embed runs/RUN --out features.npz
      idaa-bench embed resnet50.pth --backbone resnet50 --data folder:PATH --out features.npz
    """
    from idaa_lightly.bench.evaluate.embed import embed_target

    features = embed_target(target, out, backbone=backbone, data=data)
    shapes = ", ".join(f"{name} {tuple(values.shape)}" for name, values in features._asdict().items())
    click.echo(f"Written to {out}: {shapes}")
