"""Transfer: a linear layer on a run's frozen features of other data sets.

Source: Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR 2019, App. A: logistic regression by L-BFGS
on features of images without augmentation, the L2 strength chosen on a part of train; likewise Chen et al., "A Simple
Framework for Contrastive Learning of Visual Representations", ICML 2020, App. B.8.

Differs from the papers: features are standardised, five L2 strengths are tried on a tenth of train, not 45 on a
validation set of its own, and images have the size and the normalisation that the run was trained with.

RUN/transfer.json, schema 1, is like RUN/linear.json (`idaa_lightly.bench.evaluate.linear`), its results by data set:

    metric        top1 or mean_per_class: the data set's convention
    accuracy      by that metric, in [0, 1], on all test images; the figure to cite
    top1, mean_per_class      both
    l2            the strength that was chosen
    data          {name, train, test, classes, image_size, normalize, fingerprint, notes}
    options       {data}: its name for torchvision, or folder:PATH
    source        hash of weights, network, image size and normalisation
    protocol, seconds, versions, device, git_commit
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from idaa_lightly.bench.evaluate.export import run_backbone
from idaa_lightly.bench.evaluate.linear import Family, add_result, find_runs, finished, read_results
from idaa_lightly.bench.evaluate.targets import ARRAYS
from idaa_lightly.bench.record import environment
from idaa_lightly.bench.run.setup import progress
from idaa_lightly.bench.run.train import features_of
from idaa_lightly.data import NAMES, DataSet, load_data
from idaa_lightly.errors import FileFormatError, UsageError, suggestion
from idaa_lightly.evaluation.linear import linear_probe
from idaa_lightly.loading import require_trainable

MEAN_PER_CLASS = ("aircraft", "caltech101", "flowers102", "pets")
"""Data sets whose convention is the mean per-class accuracy, Kornblith et al., Table 1; top-1 for all others."""
METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}
PROTOCOL = (
    "L-BFGS on standardised frozen features of images without augmentation, L2 strength chosen on a tenth of train; "
    "the run's image size and normalisation"
)


def metric_of(name: str) -> str:
    """The data set's convention: a key of `METRICS`."""
    return "mean_per_class" if name in MEAN_PER_CLASS else "top1"


def parse_sets(text: str) -> dict[str, str]:
    """From "dtd,cub200=folder:PATH" to what `load_data` takes, by name; paths become absolute.

    Raises:
        UsageError: a name is unknown, is there twice, or is missing.
    """
    sets: dict[str, str] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, given, place = item.partition("=")
        if given and not (name and place.startswith("folder:") and place != "folder:"):
            raise UsageError(f"--to has {item!r}, but expected NAME=folder:PATH")
        if item.startswith("folder:"):
            raise UsageError(f"--to has {item!r} without a name: write NAME={item}")
        if not given and name not in NAMES:
            raise UsageError(
                f"--to has {name!r}, but known are {', '.join(NAMES)}; for a folder with train/ and test/ "
                f"write {name}=folder:PATH.{suggestion(name, NAMES)}"
            )
        if name in sets:
            raise UsageError(f"--to has {name!r} twice")
        sets[name] = f"folder:{Path(place.removeprefix('folder:')).expanduser().resolve()}" if given else name
    if not sets:
        raise UsageError("--to names no data set")
    return sets


def evaluate_transfer(
    targets: Iterable[Path], sets: dict[str, str], console: Console, *, data_dir: str = "data"
) -> list[Family]:
    """Evaluates runs on data sets; what is in their transfer.json already is not done again.

    Args:
        targets: run folders, or folders that hold runs at any depth.
        sets: from names to what `load_data` takes; see `parse_sets`.
        console: for what is said on the way.
        data_dir: where torchvision's data sets are, or are downloaded to.

    Returns:
        The runs, those of one configuration together; the results are by data set, as in transfer.json.

    Raises:
        FileFormatError: a target holds no finished run.
        DataError: a data set cannot be read, or is too small.
        NonFiniteError: features hold NaN or infinity.
    """
    families = find_runs(targets, console)
    for family in families:
        if family.group is None:
            raise FileFormatError(f"{next(iter(family.results))} holds no record.json: expected a finished run")
    runs = {folder: (results, *_network(folder)) for family in families for folder, results in family.results.items()}
    for name, place in sets.items():
        loaded: dict[str, DataSet] = {}
        for folder, (results, network, expected, source) in runs.items():
            entry = finished(read_results(folder / "transfer.json").get(name), {"data": place}, source)
            if entry is None:
                key = json.dumps(expected)
                if key not in loaded:
                    loaded.clear()  # runs of one image size and normalisation share it; others take turns
                    loaded[key] = _load(place, expected, data_dir, console)
                entry = _evaluate(network, loaded[key], metric_of(name))
                entry |= {"options": {"data": place}, "source": source}
                add_result(folder / "transfer.json", name, entry)
            results[name] = entry
            metric = METRICS[entry["metric"]]
            console.print(f"{folder}: {name} {100 * entry['accuracy']:.2f} % {metric}", highlight=False, soft_wrap=True)
    return families


def _network(folder: Path) -> tuple[nn.Module, dict[str, Any], str]:
    """A run's network, the images that it expects, and a hash of both."""
    network, record = run_backbone(folder)
    expected = {name: record["data"][name] for name in ("image_size", "normalize")}
    digest = hashlib.sha256((folder / "backbone.pt").read_bytes())
    digest.update(json.dumps([record["config"]["backbone"], expected], sort_keys=True).encode())
    return network, expected, digest.hexdigest()[:16]


def _load(place: str, expected: dict[str, Any], data_dir: str, console: Console) -> DataSet:
    data = load_data(place, data_dir=data_dir, progress=progress, **expected)
    require_trainable(data, 1)
    for note in data.notes:
        console.print(f"Note: {data.name}: {note}.", highlight=False)
    return data


def _evaluate(network: nn.Module, data: DataSet, metric: str) -> dict[str, Any]:
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    features = features_of(network.to(device), data)
    network.cpu()
    probe = linear_probe(*(features[name].to(device) for name in ARRAYS))
    found = {"top1": probe.accuracy, "mean_per_class": probe.mean_per_class}
    return {
        "protocol": PROTOCOL,
        "metric": metric,
        "accuracy": found[metric],
        **found,
        "l2": probe.l2,
        "data": data.facts(),
        "seconds": round(time.perf_counter() - start, 2),
        **environment(device, 1),
    }
