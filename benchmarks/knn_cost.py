"""Cost of weighted kNN compared with Lightly's `knn_predict`: time, memory, many settings at once, half precision.

    python benchmarks/knn_cost.py            50 000 × 512, 10 000 queries, k = 200, one CPU thread: about 10 minutes
    python benchmarks/knn_cost.py --growth   several sizes of the bank and numbers of classes

`knn_predict` is called as in Lightly's benchmarks: in batches of 512 queries, on features that are already normalised.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from lightly.utils.benchmarking.knn import knn_predict
from measure import interleaved, save
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly import knn_sweep

K, TEMPERATURE, BATCH = 200, 0.1, 512
SETTINGS = ((1, 5, 10, 20, 50, 100, 200), (0.05, 0.07, 0.1, 0.5))
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def make_data(bank: int, queries: int, dimension: int, classes: int) -> Data:
    """Return random normalised features around one centre per class. kNN classifies about 70 % of them correctly.

    Args:
        bank: Number of features in the bank.
        queries: Number of queries.
        dimension: Dimension of the features.
        classes: Number of classes.

    Returns:
        Bank (N, D), its labels (N,), queries (M, D) and their labels (M,).
    """
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, dimension, generator=generator)

    def split(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(classes, (count,), generator=generator)
        noise = torch.randn(count, dimension, generator=generator)
        return F.normalize(centres[labels] * 0.12 + noise, dim=1), labels

    return *split(bank), *split(queries)


def lightly(data: Data, classes: int) -> float:
    """Return the top-1 accuracy of Lightly's kNN."""
    bank, labels, queries, targets = data
    parts = [knn_predict(part, bank.T, labels, classes, K, TEMPERATURE)[:, 0] for part in queries.split(BATCH)]
    return (torch.cat(parts) == targets).double().mean().item()


def ours(data: Data) -> float:
    """Return the top-1 accuracy of our kNN."""
    return knn_sweep(*data, [K], [TEMPERATURE])[0].top1


def extra_bytes(function: Callable[[], object]) -> int:
    """Return the peak of resident memory during a call in bytes, minus the memory before it. Linux only."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # Otherwise the call could reuse freed memory, which would not be counted.
    Path("/proc/self/clear_refs").write_text("5")
    before, _ = _resident()
    function()
    return _resident()[1] - before


def _resident() -> tuple[int, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024, int(lines["VmHWM"].split()[0]) * 1024


def compare(bank: int, queries: int, dimension: int, classes: int, repeats: int) -> dict[str, Any]:
    """Measure seconds, extra bytes and accuracy of both implementations.

    Args:
        bank: Number of features in the bank.
        queries: Number of queries.
        dimension: Dimension of the features.
        classes: Number of classes.
        repeats: Measured calls. The fastest counts.
    """
    data = make_data(bank, queries, dimension, classes)
    rivals = {"lightly": partial(lightly, data, classes), "ours": partial(ours, data)}
    seconds = interleaved(rivals, repeats)
    result: dict[str, Any] = {"bank": bank, "queries": queries, "dimension": dimension, "classes": classes}
    for name, function in rivals.items():
        result[name] = {"seconds": seconds[name], "extra_bytes": extra_bytes(function), "accuracy": function()}
    result["faster"] = seconds["lightly"] / seconds["ours"]
    result["less_memory"] = result["lightly"]["extra_bytes"] / max(1, result["ours"]["extra_bytes"])
    return result


def many_settings(bank: int, queries: int, dimension: int, repeats: int) -> dict[str, Any]:
    """Compare one search for all settings of k and temperature with one setting, and with Lightly.

    Lightly needs one call per setting. One call is measured, and multiplied by the number of settings.

    Args:
        bank: Number of features in the bank.
        queries: Number of queries.
        dimension: Dimension of the features.
        repeats: Measured calls. The fastest counts.
    """
    data = make_data(bank, queries, dimension, 10)
    count = len(list(product(*SETTINGS)))
    rivals = {
        "lightly, one": partial(lightly, data, 10),
        "ours, one": partial(ours, data),
        "ours, all": partial(knn_sweep, *data, *SETTINGS),
    }
    seconds = interleaved(rivals, repeats)
    return {
        "settings": count,
        "seconds": seconds,
        "all_over_one": seconds["ours, all"] / seconds["ours, one"],
        "faster_than_so_many_runs_of_lightly": count * seconds["lightly, one"] / seconds["ours, all"],
    }


def half_precision(bank: int, queries: int, dimension: int, repeats: int) -> dict[str, Any]:
    """Compare a bank in float16 with one in float32.

    Args:
        bank: Number of features in the bank.
        queries: Number of queries.
        dimension: Dimension of the features.
        repeats: Measured calls. The fastest counts.
    """
    data = make_data(bank, queries, dimension, 10)
    half = (data[0].half(), *data[1:])
    rivals = {"float32": partial(ours, data), "float16": partial(ours, half)}
    seconds = interleaved(rivals, repeats)
    accuracy = {name: function() for name, function in rivals.items()}
    return {
        "bytes": half[0].nbytes / data[0].nbytes,
        "time": seconds["float16"] / seconds["float32"],
        "points": 100 * (accuracy["float16"] - accuracy["float32"]),
    }


@click.command(context_settings={"show_default": True})
@click.option("--bank", default=50_000, help="Number of features in the bank.")
@click.option("--queries", default=10_000, help="Number of queries.")
@click.option("--dimension", default=512, help="Dimension of the features.")
@click.option("--repeats", default=2, help="Measured calls. The fastest counts.")
@click.option("--growth", is_flag=True, help="Vary the size of the bank and the number of classes.")
def main(bank: int, queries: int, dimension: int, repeats: int, growth: bool) -> None:
    """Measure the cost of kNN, and write results/knn_cost*.json beside this file."""
    torch.set_num_threads(1)
    settings = [(bank, classes) for classes in (10, 100, 1000)]
    if growth:
        settings = [(size, 10) for size in (2_000, 10_000, 50_000, 200_000)]
        settings += [(10_000, classes) for classes in (2, 100, 1000)]
        queries = min(queries, 2_000)
    table = Table("bank", "classes", "Lightly, s", "ours, s", "faster", "Lightly, MiB", "ours, MiB", "accuracies, %")
    found = []
    for size, classes in settings:
        row = compare(size, queries, dimension, classes, repeats)
        found.append(row)
        both = row["lightly"], row["ours"]
        cells = [*(f"{part['seconds']:.1f}" for part in both), f"{row['faster']:.2f} ×"]
        cells += [*(f"{part['extra_bytes'] / 2**20:.0f}" for part in both)]
        table.add_row(str(size), str(classes), *cells, " / ".join(f"{100 * part['accuracy']:.2f}" for part in both))
    Console().print(table)
    content: dict[str, Any] = {"exact": found}
    if not growth:
        content |= {
            "settings": many_settings(bank, queries, dimension, repeats),
            "half": half_precision(bank, queries, dimension, repeats),
        }
        Console().print(content["settings"], content["half"])
    Console().print(f"Written to {save('knn_cost' + '_growth' * growth, content)}")


if __name__ == "__main__":
    main()
