"""Results of evaluations, kept in the run directory so that nothing is computed twice.

RUN/knn.json, linear.json, finetune.json and transfer.json share one layout:

    schema        1
    results       results by name: a protocol, a share of the labels or a data set
        options       options of the evaluation
        source        hash of weights, network and images, in transfer.json of weights and normalisation. Adding a
                  result drops the results with another source
        seconds       duration; for knn.json and linear.json without computing the features
        versions, device, git_commit      as in record.json
        ...           further keys of the evaluation, such as `accuracy`: top-1 in [0, 1] on all test images; in
                  transfer.json, those of the target data set

RUN/features.npz holds the frozen features of a run's images in the arrays of `Features`, and their `source`. They are
kept in float32, so results are equal to the bit whether the features were read or computed.
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

import numpy as np
import torch

from idaa_lightly.bench.compare.groups import Group, left_out, read_groups
from idaa_lightly.bench.config import read_toml
from idaa_lightly.bench.evaluate.schema import Accuracies, NeighboursFile
from idaa_lightly.bench.evaluate.state_dicts import NOTHING, Given
from idaa_lightly.bench.evaluate.targets import features_from, load_backbone, read_features
from idaa_lightly.bench.features import Features, features_of
from idaa_lightly.bench.record import environment, finished_runs, no_run, read_record, write_json
from idaa_lightly.bench.schema import read_json
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError
from idaa_lightly.files import atomic_write, claim, clear_lock, require_file

SCHEMA = 1
Result = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """Runs that differ only in their seed, or one other target.

    Attributes:
        group: The runs. None for a target that is not a run.
        results: Results by target, then by name.
    """

    group: Group | None
    results: dict[Path, dict[str, Result]]

    def spread(self, name: str, value: Callable[[Result], float | None]) -> tuple[float, float] | None:
        """Return mean and standard deviation of a value over the runs. Return None for fewer than two values.

        Args:
            name: Name of the result, such as "lbfgs".
            value: Function from a result to the value. Results for which it returns None are skipped.
        """
        values = [found for results in self.results.values() if (found := value(results[name])) is not None]
        return (mean(values), stdev(values)) if len(values) > 1 else None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of frozen features.

    Attributes:
        options: Options, kept with the result. A result with other options is computed again.
        compute: Function from features to the result and the device that computed it.
    """

    options: dict[str, Any]
    compute: Callable[[Features], tuple[Result, torch.device]]


def evaluate_features(
    targets: Iterable[Path],
    file: str,
    evaluations: Mapping[str, Evaluation],
    given: Given = NOTHING,
) -> list[Family]:
    """Evaluate the frozen features of runs, checkpoints or feature files.

    Features and results of finished runs are kept in their directories. A result with the same options is not computed
    again.

    Args:
        targets: Targets of `read_features`, and directories that hold runs at any depth.
        file: Name of the file in the run directory that keeps the results, such as "linear.json".
        evaluations: Evaluations by name.
        given: Options about networks and images. If there are any, features and results are not kept.

    Returns:
        Families of runs that differ only in their seed, and other targets, with results by name of the evaluation.

    Raises:
        FileFormatError: A target is none of these.
        UsageError: An option does not go with a target, or a run appears twice.
    """
    families = find_runs(targets)
    for family in families:
        for target, results in family.results.items():
            kept = family.group is not None and given == NOTHING
            if kept:
                features, source = run_features(target)
            else:
                features, source = read_features(target, given), ""
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
    """Return a kept result with the same options and source. If there is none, compute and keep it.

    Args:
        target: Run directory or other target that is evaluated.
        file: Name of the file in the run directory that keeps results. None keeps nothing.
        name: Name of the result.
        options: Options of the evaluation.
        source: Hash of the weights, network and images that are evaluated.
        compute: Function that returns the result and the device that computed it.
    """
    entry = read_results(target / file).get(name) if file else None
    if entry is None or (entry["options"], entry["source"]) != (options, source):
        start = time.perf_counter()
        found, device = compute()
        entry = {"options": options, "source": source, "seconds": round(time.perf_counter() - start, 2)}
        entry |= found | environment(device, 1)
        if file:
            _keep(target / file, name, entry)
    elif file:
        clear_lock(target)  # A process that was killed after it had kept the result may have left it.
    if "accuracy" in entry:
        log.info(f"{target}: {name} {100 * entry['accuracy']:.2f} %")
    return entry


def find_runs(targets: Iterable[Path]) -> list[Family]:
    """Find the finished runs below directories, and group those that differ only in their seed.

    Args:
        targets: Directories that hold runs at any depth, or other targets.

    Returns:
        Families of runs, followed by one family per target that holds no finished run.

    Raises:
        FileFormatError: A record cannot be read.
        UsageError: A run appears twice.
    """
    below = {target: finished_runs(target) for target in targets}
    holders = [target for target, folders in below.items() if folders]
    groups, unfinished = read_groups(holders) if holders else ([], [])
    if unfinished:
        log.info(left_out(unfinished))
    families = [Family(group, {}) for group in groups]
    once = {folder.resolve(): folder for folders in below.values() for folder in folders}
    for folder in once.values():
        record = read_record(folder)
        seed = record["config"]["seed"]
        family = next(family for family in families if family.group and family.group.records.get(seed) == record)
        family.results[folder] = {}
    return families + [Family(None, {target: {}}) for target, folders in below.items() if not folders]


def runs_below(target: Path) -> dict[str, Path]:
    """Return the finished runs below a directory by a suffix that tells them apart, such as "-seed-0".

    Args:
        target: Run directory, directory that holds runs at any depth, or other target. The suffix of the only run, and
            of a target that holds none, is empty.
    """
    folders = finished_runs(target)
    if len(folders) < 2:
        return {"": folders[0] if folders else target}
    return {"".join(f"-{part}" for part in folder.relative_to(target).parts): folder for folder in folders}


def runs_only(families: list[Family]) -> Iterable[tuple[Path, dict[str, Result]]]:
    """Yield run directories with their results, which the caller fills in.

    Args:
        families: Families from `find_runs`.

    Raises:
        FileFormatError: A target holds no finished run.
    """
    for family in families:
        for target in family.results if family.group is None else ():
            raise no_run(target)
    for family in families:
        yield from family.results.items()


def source_of(folder: Path, data: DataSet) -> str:
    """Return a hash of a run's weights, network and images.

    Args:
        folder: The run directory.
        data: The images as they are now.
    """
    digest = hashlib.sha256((folder / "backbone.pt").read_bytes())
    images = [data.train.fingerprint, data.test.fingerprint, data.image_size, data.normalize]
    digest.update(json.dumps([read_toml(folder / "config.toml").get("backbone"), images]).encode())
    return digest.hexdigest()[:16]


def run_features(folder: Path) -> tuple[Features, str]:
    """Read the features of a run from its features.npz, or compute and keep them there.

    Args:
        folder: The run directory.

    Returns:
        The features and their source, from `source_of`.

    Raises:
        FileFormatError: The directory is not a finished run, or its files do not go together.
    """
    network, data = load_backbone(folder)
    source, path = source_of(folder, data), folder / "features.npz"
    require_file(path, "the features of a run")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            if str(kept["source"]) == source:
                return features_from(kept), source
        log.info(f"Note: {path} belongs to other weights or images, so the features are computed again.")
    except FileNotFoundError:
        pass
    except Exception:  # The readers of zip files and arrays may raise anything on other files.
        log.info(f"Note: {path} cannot be read, so the features are computed again.")
    features = features_of(network, data)
    arrays: dict[str, Any] = {name: part.numpy() for name, part in features._asdict().items()}
    if all(np.isfinite(part).all() for part in arrays.values()):  # Every evaluation refuses others.
        with atomic_write(path) as temporary:
            np.savez(temporary, source=np.array(source), **arrays)
    return features, source


def read_results(path: Path) -> dict[str, Result]:
    """Return the results in a file by name, or an empty dictionary if there is no such file.

    Args:
        path: File in a run directory, such as RUN/linear.json.

    Raises:
        FileFormatError: The file has another layout or schema.
    """
    schema = NeighboursFile if path.name == "knn.json" else Accuracies
    if not path.exists():
        return {}
    try:
        content: Any = read_json(path, schema, "a file of results", (SCHEMA,))
    except FileFormatError as error:
        raise FileFormatError(f"{error}: move it away, and its results are computed again") from error
    results: dict[str, Result] = content["results"]
    return results


def _keep(path: Path, name: str, entry: Result) -> None:
    """Add a result to a file, and drop results of other weights or images. A lock makes processes take turns."""
    with claim(path.parent, timeout=60):
        kept = {key: other for key, other in read_results(path).items() if other["source"] == entry["source"]}
        write_json(path, {"schema": SCHEMA, "results": kept | {name: entry}})
