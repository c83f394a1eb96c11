"""Results of evaluations, kept in the run directory so that nothing is computed twice.

RUN/linear.json, schema 1. knn.json, finetune.json and transfer.json have the same layout:

    schema        1
    results       by name: a protocol, a share of the labels or a data set
        options       what was asked for
        source        hash of weights, network and images; results of another source are dropped when one is added
        seconds       without the embedding
        versions, device, git_commit      as in record.json
        ...           what the evaluation adds, such as `accuracy`: top-1 in [0, 1] on all test images

RUN/features.npz holds the frozen features of a run's images, in the arrays of `Features`, and their `source`. They are
in float32: a result is the same to the bit whether features were read or computed anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from idaa_lightly.bench.compare.groups import Group, read_groups
from idaa_lightly.bench.config import read_toml
from idaa_lightly.bench.evaluate.targets import load_backbone, read_features
from idaa_lightly.bench.features import Features, features_of
from idaa_lightly.bench.record import environment, read_record, write_json
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError
from idaa_lightly.files import atomic_write, claim

SCHEMA = 1
Result = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """Runs that differ in their seed only, or one other target.

    Attributes:
        group: The runs. None for a target that is no run.
        results: By target, then by name.
    """

    group: Group | None
    results: dict[Path, dict[str, Result]]

    def spread(self, name: str, value: Callable[[Result], float | None]) -> tuple[float, float] | None:
        """Return mean and standard deviation over two or more runs of a value of the results of this name."""
        values = [found for results in self.results.values() if (found := value(results[name])) is not None]
        return (mean(values), stdev(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of frozen features.

    Attributes:
        options: What tells its result from others of the same name.
        compute: From features to the result, and the device it was computed on.
    """

    options: dict[str, Any]
    compute: Callable[[Features], tuple[Result, torch.device]]


def evaluate_features(
    targets: Iterable[Path],
    file: str,
    evaluations: Mapping[str, Evaluation],
    *,
    backbone: str | None = None,
    data: str | None = None,
) -> list[Family]:
    """Evaluate the frozen features of runs, checkpoints or feature files.

    A finished run keeps its features and results. What is there with the same options is not computed again.

    Args:
        targets: As for `read_features`, and directories that hold runs at any depth.
        file: Name of the file in the run directory that keeps the results, such as "linear.json".
        evaluations: By name.
        backbone: Name of the network of a state dict.
        data: Images to embed instead of a run's. Nothing is kept then.

    Returns:
        The targets, with runs of one configuration together; their results are by the names of the evaluations.

    Raises:
        FileFormatError: A target is none of these.
        UsageError: An option does not go with a target, or a run is there twice.
    """
    families = find_runs(targets)
    for family in families:
        for target, results in family.results.items():
            kept = family.group is not None and not (backbone or data)
            if kept:
                features, source = run_features(target)
            else:
                features, source = read_features(target, backbone=backbone, data=data), ""
            for name, evaluation in evaluations.items():
                compute, place = partial(evaluation.compute, features), file if kept else None
                results[name] = evaluated(target, place, name, evaluation.options, source, compute)
    return families


def evaluated(
    target: Path,
    file: str | None,
    name: str,
    options: dict[str, Any],
    source: str,
    compute: Callable[[], tuple[Result, torch.device]],
) -> Result:
    """Return the result that is kept with the same options and source, or else compute and keep it.

    Args:
        target: The run directory, or what else is evaluated.
        file: File in the run directory that keeps results. None keeps nothing.
        name: Name of the result.
        options: What was asked for.
        source: Hash of what was evaluated.
        compute: Returns the result, and the device it was computed on.
    """
    entry = read_results(target / file).get(name) if file else None
    if entry is None or (entry["options"], entry["source"]) != (options, source):
        start = time.perf_counter()
        found, device = compute()
        entry = {"options": options, "source": source, "seconds": round(time.perf_counter() - start, 2)}
        entry |= found | environment(device, 1)
        if file:
            _keep(target / file, name, entry)
    if "accuracy" in entry:
        log.info(f"{target}: {name} {100 * entry['accuracy']:.2f} %")
    return entry


def find_runs(targets: Iterable[Path]) -> list[Family]:
    """Return the finished runs in these directories by configuration, then other targets as they are.

    Raises:
        FileFormatError: A record cannot be read.
        UsageError: A run is there twice.
    """
    below = {target: sorted(path.parent for path in target.rglob("record.json")) for target in targets}
    holders = [target for target, folders in below.items() if folders]
    groups, unfinished = read_groups(holders) if holders else ([], 0)
    if unfinished:
        log.info(f"Left out: {unfinished} unfinished, without a record.")
    families = [Family(group, {}) for group in groups]
    once = {folder.resolve(): folder for folders in below.values() for folder in folders}
    for folder in once.values():
        record = read_record(folder)
        seed = record["config"]["seed"]
        family = next(family for family in families if family.group and family.group.records.get(seed) == record)
        family.results[folder] = {}
    return families + [Family(None, {target: {}}) for target, folders in below.items() if not folders]


def runs_only(families: list[Family]) -> Iterable[tuple[Path, dict[str, Result]]]:
    """Yield run directories and their results.

    Raises:
        FileFormatError: A target is no finished run.
    """
    for family in families:
        for target in family.results if family.group is None else ():
            raise FileFormatError(f"{target} holds no record.json: expected a finished run, or a folder of runs")
    for family in families:
        yield from family.results.items()


def source_of(folder: Path, data: DataSet) -> str:
    """Return a hash of a run's weights, the network that they are for, and its images as they are now."""
    digest = hashlib.sha256((folder / "backbone.pt").read_bytes())
    images = [data.train.fingerprint, data.test.fingerprint, data.image_size, data.normalize]
    digest.update(json.dumps([read_toml(folder / "config.toml").get("backbone"), images]).encode())
    return digest.hexdigest()[:16]


def run_features(folder: Path) -> tuple[Features, str]:
    """Return the features of a run, kept in its features.npz or computed and put there, and their source."""
    network, data = load_backbone(folder)
    source, path = source_of(folder, data), folder / "features.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["source"]) == source:
                return Features(*(kept[name] for name in Features._fields)), source
        log.info(f"Note: {path} is of other weights or images: embedded anew.")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        log.info(f"Note: {path} cannot be read: embedded anew.")
    features = features_of(network, data)
    arrays: dict[str, Any] = {name: part.numpy() for name, part in features._asdict().items()}
    with atomic_write(path) as temporary:
        np.savez(temporary, source=np.array(source), **arrays)
    return features, source


def read_results(path: Path) -> dict[str, Result]:
    """Return the results in a file, by name; none if there is no such file.

    Raises:
        FileFormatError: The file is something else.
    """
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        results: dict[str, Result] = content["results"]
        return results
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} holds no results of this version ({error}): move it away") from error


def _keep(path: Path, name: str, entry: Result) -> None:
    """Add a result to a file, and drop those of other weights or images. Processes take turns."""
    with claim(path.parent, timeout=60):
        kept = {key: other for key, other in read_results(path).items() if other["source"] == entry["source"]}
        write_json(path, {"schema": SCHEMA, "results": kept | {name: entry}})
