"""Command `idaa-bench vae`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.errors import UsageError


@click.command()
@config_options(
    "method",
    "data",
    "data_dir",
    "image_size",
    "limit_train",
    "epochs",
    "seed",
    "set",
    "accelerator",
    method="Method on whose views the VAE is fitted.",
    epochs="Epochs of the VAE. The paper takes 300. Default: those of the method's recipe; 15 for digits.",
    limit_train="Fit on this many training images only, balanced over the classes.",
    seed="Random seed.",
    set="Option of the VAE or of the views, such as aug.beta=0.1, aug.bottleneck_dim=512 and aug.width=128. Can be "
    "repeated. `idaa-bench plugins show idaa` lists the options with aug.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="File to write. Pass it to --vae of `idaa-bench run`.",
)
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
def vae(out: Path, force: bool, **given: Any) -> None:
    """Train IDAA's VAE alone, on a method's augmented views.

    The images need no classes. --epochs are the epochs of the VAE, and --set aug.KEY sets options of idaa.

    \b
    Example:
      idaa-bench vae --data folder:PATH --epochs 300 --set aug.beta=0.1 --out vae.pt
    """
    taken = next((path for path in out.parents if path.exists() and not path.is_dir()), None)
    if taken or out.is_dir():
        raise UsageError(f"{out} cannot be written, since {taken or out} is {'not ' * bool(taken)}a directory")
    if out.exists() and not force:
        raise UsageError(f"{out} exists: choose another --out, or add --force")
    (config,) = configs(given | {"aug": "idaa"}, None, several=False)
    from idaa_lightly.bench.run.vae import train_vae

    error = train_vae(config, out)
    click.echo(f"Mean squared error of the reconstruction: {error:.4f}. Written to {out}")
