"""Command `idaa-bench finetune`."""

from __future__ import annotations

from pathlib import Path

import click

from idaa_lightly.cli.options import SEED
from idaa_lightly.cli.terminal import accuracy_table, console


def _shares(context: click.Context, parameter: click.Parameter, text: str) -> list[float]:
    """Parse percentages separated by commas into shares."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if not all(part.endswith("%") for part in parts):
            raise ValueError
        return [float(part.removesuffix("%")) / 100 for part in parts]
    except ValueError as error:
        raise click.BadParameter(f"{text!r}; expected percentages, separated by commas, such as 1%,10%") from error


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--labels",
    default="1%,10%",
    show_default=True,
    callback=_shares,
    help="Shares of the run's training labels, separated by commas.",
)
@click.option("--epochs", type=click.IntRange(1), help="Epochs. Default: 60 below 10 % of the labels, else 30.")
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True, help="Images per step.")
@click.option(
    "--lr", type=click.FloatRange(0, 1e30), default=0.05, show_default=True, help="Learning rate for a batch of 256."
)
@click.option("--seed", type=SEED, help="Seed of the labels, the linear layer and the crops. Default: the run's own.")
@click.option(
    "--from-scratch",
    is_flag=True,
    help="Train untrained backbones instead, as the baseline that pretraining must beat.",
)
def finetune(
    runs: tuple[Path, ...],
    labels: list[float],
    epochs: int | None,
    batch_size: int,
    lr: float,
    seed: int | None,
    from_scratch: bool,
) -> None:
    """Fine-tune the backbones of runs end to end on a few labels.

    RUNS are run directories, or directories that hold runs at any depth. For runs that differ only in their seed, mean
    ± standard deviation is shown too. Labels are drawn evenly over the classes. Runs with the same seed get the same
    labels.

    The protocol is SimCLR's, as in Lightly's benchmark: SGD with momentum 0.9, a cosine schedule, random resized crops
    and flips. The test images are used once, after the last epoch.

    Results are kept in the run's finetune.json. They are computed again only if options, weights or images change.

    \b
    Examples:
      idaa-bench finetune runs/RUN --labels 1%,10%
      idaa-bench finetune runs/RUN --from-scratch
    """
    from idaa_lightly.bench.evaluate.finetune import finetune as finetuned

    families = finetuned(
        runs, labels, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, from_scratch=from_scratch
    )
    columns = {"top-1, %": lambda entry: entry["accuracy"]}
    console().print(accuracy_table(families, "labels", columns, "on the test images, after the last epoch"))
