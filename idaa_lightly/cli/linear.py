"""Command `idaa-bench linear`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from idaa_lightly.cli.options import SEED, network_options
from idaa_lightly.cli.terminal import Value, accuracy_table, console, of_layer


@click.command()
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--protocol",
    default="lbfgs",
    show_default=True,
    help="Protocols, separated by commas. lbfgs: logistic regression by L-BFGS, with the L2 strength chosen on a tenth "
    "of the training images. sgd: the protocol of Lightly's benchmark, SGD for 90 epochs. paper: the protocol of IDAA "
    "and CLAE, Adam for 1000 epochs.",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs of paper and sgd. Default: 1000 and 90.")
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Seed of the validation split, the initial weights and the batches.",
)
@network_options("Data set to embed, as for `idaa-bench run --data`, instead of a run's. Results are then not kept.")
def linear(
    targets: tuple[Path, ...],
    protocol: str,
    epochs: int | None,
    seed: int,
    **given: Any,
) -> None:
    """Evaluate frozen features by a linear layer.

    TARGETS are run directories, directories that hold runs at any depth, or other targets of `idaa-bench knn`. For
    runs that differ only in their seed, mean ± standard deviation is shown too.

    Images are embedded without augmentation. A run keeps its features in features.npz and its results in linear.json.
    They are computed again only if options, weights or images change.

    \b
    Examples:
      idaa-bench linear runs/RUN --protocol paper,lbfgs,sgd
      idaa-bench linear runs
      idaa-bench linear runs/RUN --layer layer3
      idaa-bench linear resnet50.pth --backbone resnet50 --data folder:PATH
    """
    from idaa_lightly.bench.evaluate.linear import EPOCHS, evaluate_linear
    from idaa_lightly.bench.evaluate.state_dicts import Given

    protocols = [name.strip() for name in protocol.split(",")]
    families = evaluate_linear(targets, protocols, seed=seed, epochs=epochs, given=Given(**given))
    columns: dict[str, Value] = {"top-1, %": lambda entry: entry["accuracy"]}
    caption = f"{of_layer(given)}on the test images"
    if EPOCHS.keys() & protocols:
        columns["best epoch*, %"] = lambda entry: entry["best"]["accuracy"] if "best" in entry else None
        caption += ", after the last epoch; * chosen on the test images, so optimistic"
    console().print(accuracy_table(families, "protocol", columns, caption))
