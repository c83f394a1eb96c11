"""`idaa-bench linear`."""

from __future__ import annotations

from pathlib import Path

import click

from idaa_lightly.cli.terminal import Value, accuracy_table, console


@click.command()
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--protocol",
    default="lbfgs",
    show_default=True,
    help="With commas between several. lbfgs: L2 strength chosen on a part of train, never on test. sgd: Lightly's "
    "benchmark, 90 epochs. paper: that of IDAA and CLAE, Adam for 1000 epochs.",
)
@click.option("--epochs", type=click.IntRange(1), help="Of paper and sgd, in the place of 1000 and 90.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the validation split, the first weights and the batches."
)
@click.option("--backbone", help="Network of a state dict: a ResNet of torchvision or timm, such as resnet50.")
@click.option("--data", help="Images to embed, as for `idaa-bench run`, in the place of a run's; nothing is kept then.")
def linear(
    targets: tuple[Path, ...],
    protocol: str,
    epochs: int | None,
    seed: int,
    backbone: str | None,
    data: str | None,
) -> None:
    """Evaluate by a linear layer on frozen features: runs, checkpoints of anybody's, or files of features.

    TARGETS are run folders, folders that hold runs at any depth, or what `idaa-bench knn` takes. Runs that differ in
    their seed only get a mean ± standard deviation.

    Features are of images without augmentation. A run keeps them in its features.npz, and the results in its
    linear.json; what is there with the same options is not done again, unless weights or images have changed.

    \b
    Examples:
      idaa-bench linear runs/RUN --protocol paper,lbfgs,sgd
      idaa-bench linear runs
      idaa-bench linear resnet50.pth --backbone resnet50 --data folder:PATH
    """
    from idaa_lightly.bench.evaluate.linear import EPOCHS, evaluate_linear

    protocols = [name.strip() for name in protocol.split(",")]
    families = evaluate_linear(targets, protocols, seed=seed, epochs=epochs, backbone=backbone, data=data)
    columns: dict[str, Value] = {"top-1, %": lambda entry: entry["accuracy"]}
    caption = "on the test images"
    if EPOCHS.keys() & protocols:
        columns["best epoch*, %"] = lambda entry: entry["best"]["accuracy"] if "best" in entry else None
        caption += ", after the last epoch; * chosen on them: optimistic"
    console().print(accuracy_table(families, "protocol", columns, caption))
