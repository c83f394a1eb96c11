"""Command `idaa-bench knn`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Column, Table

from idaa_lightly.cli.options import network_options, numbers
from idaa_lightly.cli.terminal import console, mean_label, of_layer
from idaa_lightly.errors import UsageError

if TYPE_CHECKING:
    from idaa_lightly.bench.evaluate.store import Family


@click.command()
@click.argument("targets", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--k", default="200", show_default=True, callback=numbers(int), help="Numbers of neighbours, such as 1,5,20,200."
)
@click.option(
    "--temperature",
    default="0.1",
    show_default=True,
    callback=numbers(float),
    help="Temperatures, such as 0.07,0.1,0.5. A vote weighs exp(cosine / temperature). One search serves all "
    "combinations of k and temperature.",
)
@network_options("Data set to embed, as for `idaa-bench run --data`, instead of a run's. Results are then not kept.")
@click.option(
    "--index",
    help="FAISS index for an approximate search in banks of millions: a string for its index factory, with settings, "
    "such as 'IVF256,Flat;nprobe=16' or 'PQ64x4fs,RFlat;k_factor_rf=8'. The loss against exact search is measured on "
    "1000 queries. Default: exact search.",
)
@click.option("--heatmap", type=click.Path(path_type=Path), help="PNG to draw, with top-1 by k and temperature.")
def knn(
    targets: tuple[Path, ...],
    k: tuple[int, ...],
    temperature: tuple[float, ...],
    index: str | None,
    heatmap: Path | None,
    **given: Any,
) -> None:
    """Evaluate frozen features by weighted kNN.

    \b
    TARGETS can be:
      - run directories, or directories that hold runs at any depth
      - checkpoints of a run, such as RUN/checkpoints/last.ckpt
      - state dicts from torchvision or timm, with --backbone and --data, and with --image-size, --mean and --std if
        they were trained with others than the data set's
      - state dicts from `idaa-bench export`, with --data; the JSON file beside them holds the rest
      - .npz files with train_features (N, D), train_labels (N,), test_features (M, D) and test_labels (M,)
      - directories with these four arrays as .npy files, which may be larger than the memory

    For runs that differ only in their seed, mean ± standard deviation is shown too.

    A run keeps its features in features.npz and its results in knn.json. They are computed again only if options,
    weights or images change.

    \b
    Examples:
      idaa-bench knn runs
      idaa-bench knn runs/RUN --k 1,5,20,200 --temperature 0.07,0.1,0.5 --heatmap knn.png
      idaa-bench knn resnet50.pth --backbone resnet50 --data folder:PATH
      idaa-bench knn FEATURES --index "IVF1024,Flat;nprobe=32"
    """
    if heatmap and (heatmap.suffix != ".png" or heatmap.is_dir()):
        raise UsageError(f"--heatmap is {heatmap}, but expected a file whose name ends in .png")
    from idaa_lightly.bench.evaluate.knn import evaluate_knn
    from idaa_lightly.bench.evaluate.state_dicts import Given

    families = evaluate_knn(targets, k, temperature, index=index, given=Given(**given))
    found = {target: results["knn"] for family in families for target, results in family.results.items()}
    if heatmap and len(found) > 1:
        raise UsageError(f"--heatmap draws one target, but there are {len(found)}: pass one of them")
    first = next(iter(found.values()))
    caption = f"{of_layer(given)}{first['queries']} queries in a bank of {first['bank']}; {first['backend']}"
    console().print(_table(families, caption))
    if heatmap:
        from idaa_lightly.bench.run.figures import save_knn

        save_knn(heatmap, first["accuracies"], caption)
        click.echo(f"Heat map: {heatmap}")


def _table(families: list[Family], caption: str) -> Table:
    """Return a row per target, k and temperature, and rows with the mean over runs that differ only in their seed."""
    several = sum(len(family.results) for family in families) > 1
    first = next(iter(families[0].results.values()))["knn"]["accuracies"]
    approximate = first[0]["recall"] is not None
    table = Table(
        *([Column("target", overflow="fold")] if several else []),
        *("k", "temperature", "top-1", "top-5"),
        *(["recall@k", "change of top-1"] if approximate else []),
        caption=caption,
    )
    for family in families:
        for place in range(len(first)):
            for target, results in family.results.items():
                entry = results["knn"]["accuracies"][place]
                pair = str(entry["k"]), str(entry["temperature"])
                lost = [f"{100 * entry['recall']:.2f} %", f"{100 * entry['change']:+.2f} points"] if approximate else []
                accuracies = [f"{100 * entry[name]:.2f} %" for name in ("top1", "top5")]
                table.add_row(*([str(target)] if several else []), *pair, *accuracies, *lost)
            if len(family.results) > 1:
                spreads = [family.spread("knn", partial(_accuracy, place, name)) for name in ("top1", "top5")]
                means = [f"{100 * spread[0]:.2f} ± {100 * spread[1]:.2f} %" if spread else "" for spread in spreads]
                table.add_row(mean_label(family), *pair, *means)
        table.add_section()
    return table


def _accuracy(place: int, name: str, result: dict[str, Any]) -> float:
    value: float = result["accuracies"][place][name]
    return value
