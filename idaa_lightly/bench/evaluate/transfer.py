"""Transfer evaluation: a linear layer on a run's frozen features of other data sets.

Source: Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR 2019, App. A, and Chen et al., "A Simple
Framework for Contrastive Learning of Visual Representations", ICML 2020, App. B.8. Both fit a logistic regression by
L-BFGS to features of images without augmentation, and choose the L2 strength on a part of the training images.

Differs from the papers: Features are standardised. Five L2 strengths are tried on a tenth of the training images, not
45 on a separate validation set. Images have the size and the normalisation that the run was trained with.

`idaa_lightly.bench.evaluate.store` describes the layout of RUN/transfer.json. Results are named by data set and add:

    metric        top1 or mean_per_class, by the convention of the data set
    accuracy      accuracy by that metric, in [0, 1], on all test images; cite this
    top1, mean_per_class      accuracies by both metrics
    l2            L2 strength that was chosen
    data          {name, train, test, classes, image_size, normalize, fingerprint, notes}
    options       {data}: name of torchvision's data set, or folder:PATH
    source        hash of weights, network, image size and normalisation
    protocol      the protocol in words
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from idaa_lightly.bench.evaluate.export import run_backbone
from idaa_lightly.bench.evaluate.store import Family, Result, evaluated, find_runs, runs_only
from idaa_lightly.bench.features import features_of, pick_device
from idaa_lightly.bench.progress import progress
from idaa_lightly.data import NAMES, DataSet, load_data
from idaa_lightly.errors import UsageError, suggestion
from idaa_lightly.evaluation.linear import linear_probe
from idaa_lightly.loading import require_labelled

MEAN_PER_CLASS = ("aircraft", "caltech101", "flowers102", "pets")
"""Data sets that report mean per-class accuracy: Kornblith et al., Table 1. All others report top-1."""
log = logging.getLogger(__name__)
METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}
PROTOCOL = (
    "L-BFGS on standardised frozen features of images without augmentation, L2 strength chosen on a tenth of train; "
    "the run's image size and normalisation"
)


def metric_of(name: str) -> str:
    """Return the conventional metric of a data set, a key of `METRICS`."""
    return "mean_per_class" if name in MEAN_PER_CLASS else "top1"


def parse_sets(text: str) -> dict[str, str]:
    """Parse the data sets of `--to`, such as "dtd,cub200=folder:PATH".

    Args:
        text: Names of data sets or NAME=folder:PATH, separated by commas.

    Returns:
        For each name, the data set to pass to `load_data`. Paths are absolute.

    Raises:
        UsageError: A name is unknown or missing, or appears twice.
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


def evaluate_transfer(targets: Iterable[Path], sets: dict[str, str], *, data_dir: str = "data") -> list[Family]:
    """Evaluate runs on other data sets. Results that are in their transfer.json are not computed again.

    Args:
        targets: Run directories, or directories that hold runs at any depth.
        sets: Data sets from `parse_sets`.
        data_dir: Directory of torchvision's data sets. Missing ones are downloaded into it.

    Returns:
        Families of runs that differ only in their seed, with results by data set as in transfer.json.

    Raises:
        FileFormatError: A target holds no finished run.
        UsageError: A run appears twice.
        DataError: A data set cannot be read, or is too small.
        NonFiniteError: Features hold NaN or infinity.
    """
    families = find_runs(targets)
    runs = {folder: (results, *_network(folder)) for folder, results in runs_only(families)}
    for name, place in sets.items():
        images = _Images(place, data_dir)
        for folder, (results, network, expected, source) in runs.items():
            compute = partial(_evaluate, network, images, expected, metric_of(name))
            results[name] = evaluated(folder, "transfer.json", name, {"data": place}, source, compute)
    return families


def _network(folder: Path) -> tuple[nn.Module, dict[str, Any], str]:
    """Return a run's network, the image size and normalisation that it expects, and a hash of both."""
    network, record = run_backbone(folder)
    expected = {name: record["data"][name] for name in ("image_size", "normalize")}
    digest = hashlib.sha256((folder / "backbone.pt").read_bytes())
    digest.update(json.dumps([record["config"]["backbone"], expected], sort_keys=True).encode())
    return network, expected, digest.hexdigest()[:16]


class _Images:
    """Data set that is loaded again only if the image size or the normalisation changes."""

    def __init__(self, place: str, data_dir: str) -> None:
        self.place, self.data_dir = place, data_dir
        self.expected: dict[str, Any] = {}

    def load(self, expected: dict[str, Any]) -> DataSet:
        if expected != self.expected:
            self.data = load_data(self.place, data_dir=self.data_dir, progress=progress, **expected)
            self.expected = expected
            require_labelled(self.data)
            for note in self.data.notes:
                log.info(f"Note: {self.data.name}: {note}.")
        return self.data


def _evaluate(
    network: nn.Module, images: _Images, expected: dict[str, Any], metric: str
) -> tuple[Result, torch.device]:
    data = images.load(expected)
    device = pick_device()
    features = features_of(network.to(device), data)
    network.cpu()
    probe = linear_probe(*(part.to(device) for part in features))
    found = {"top1": probe.accuracy, "mean_per_class": probe.mean_per_class}
    about = {"protocol": PROTOCOL, "metric": metric, "accuracy": found[metric], "l2": probe.l2, "data": data.facts()}
    return about | found, device
