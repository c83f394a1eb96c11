"""`idaa-bench knn`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from idaa_lightly.cli.options import console
from idaa_lightly.errors import UsageError


def _list_of(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str], tuple[Any, ...]]:
    """Numbers separated by commas."""

    def parse(context: click.Context, parameter: click.Parameter, text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            expected = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{text!r}; expected {expected}, separated by commas") from error

    return parse


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--k", default="200", show_default=True, callback=_list_of(int), help="Neighbours that vote: 1,5,20,200.")
@click.option(
    "--temperature",
    default="0.1",
    show_default=True,
    callback=_list_of(float),
    help="Votes weigh exp(cosine / temperature): 0.07,0.1,0.5. One search serves every k and temperature.",
)
@click.option("--backbone", help="Network of a state dict: a ResNet of torchvision or timm, such as resnet50.")
@click.option("--data", help="Images to embed, as for `idaa-bench run`, in the place of the run's.")
@click.option(
    "--index",
    help="For banks of millions: search approximately by this FAISS index, and report what it loses on 1000 queries. "
    "A string of its factory and settings: 'IVF256,Flat;nprobe=16', 'PQ64x4fs,RFlat;k_factor_rf=8'. Default: exact.",
)
@click.option("--heatmap", type=click.Path(path_type=Path), help="PNG to draw: top-1 by k and temperature.")
def knn(
    target: Path,
    k: tuple[int, ...],
    temperature: tuple[float, ...],
    backbone: str | None,
    data: str | None,
    index: str | None,
    heatmap: Path | None,
) -> None:
    """Evaluate by weighted kNN: a run, a checkpoint of anybody's, or files of features.

    TARGET is a run folder, its checkpoints/last.ckpt, a state dict of torchvision or timm (with --backbone and --data),
    an .npz with train_features (N, D), train_labels (N,), test_features (M, D) and test_labels (M,), or a folder with
    these four as .npy files, which may be larger than the memory.

    \b
    Examples:
      idaa-bench knn runs/RUN --k 1,5,20,200 --temperature 0.07,0.1,0.5 --heatmap knn.png
      idaa-bench knn resnet50.pth --backbone resnet50 --data folder:PATH
      idaa-bench knn FEATURES --index "IVF1024,Flat;nprobe=32"
    """
    if heatmap and (heatmap.suffix != ".png" or heatmap.is_dir()):
        raise UsageError(f"--heatmap is {heatmap}, but expected a file whose name ends in .png")
    from idaa_lightly.bench.evaluate.targets import evaluate_knn
    from idaa_lightly.bench.run.figures import save_knn

    result = evaluate_knn(target, k, temperature, console(), index=index, backbone=backbone, data=data)
    found = f"{result['queries']} queries in a bank of {result['bank']}; {result['backend']}"
    columns = ["k", "temperature", "top-1", "top-5"]
    table = Table(*columns, *(["recall@k", "change of top-1"] if index else []), caption=found)
    for k_, t, top1, top5, recall, change in result["accuracies"]:
        lost = [] if recall is None else [f"{100 * recall:.2f} %", f"{100 * change:+.2f} points"]
        table.add_row(str(k_), str(t), f"{100 * top1:.2f} %", f"{100 * top5:.2f} %", *lost)
    console().print(table)
    if heatmap:
        save_knn(heatmap, result["accuracies"], found)
        click.echo(f"Heat map: {heatmap}")
