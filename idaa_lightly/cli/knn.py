"""`idaa-bench knn`."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from idaa_lightly.cli.options import console


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--k", default=200, show_default=True, help="Neighbours that vote.")
@click.option("--temperature", default=0.1, show_default=True, help="Votes weigh exp(cosine / temperature).")
def knn(target: Path, k: int, temperature: float) -> None:
    """Evaluate by weighted kNN: a run folder, a checkpoint of one, or a file of features.

    TARGET is a run folder, its checkpoints/last.ckpt, or an .npz with train_features (N, D), train_labels (N,),
    test_features (M, D) and test_labels (M,).
    """
    from idaa_lightly.bench.targets import evaluate_knn

    result = evaluate_knn(target, k, temperature, console())
    table = Table("bank", "queries", "k", "temperature", "top-1", "top-5", "search")
    table.add_row(*(str(result[name]) for name in ("bank", "queries", "k", "temperature")),
                  f"{100 * result['top1']:.2f} %", f"{100 * result['top5']:.2f} %", result["backend"])  # fmt: skip
    console().print(table)
