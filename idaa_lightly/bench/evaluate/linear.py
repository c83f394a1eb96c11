"""Linear evaluation of runs and of anybody's features, by protocol; and what evaluations of runs have in common.

RUN/features.npz holds the frozen features of a run's images, in the arrays `ARRAYS` of
`idaa_lightly.bench.evaluate.targets`, so that it is a target, too. They are in float32:
a result is the same to the bit whether they were read or embedded anew.
`source` in it is a hash of the weights, the network and the images; features of another source are embedded anew.

RUN/linear.json, schema 1 (RUN/finetune.json has the same, see `idaa_lightly.bench.evaluate.finetune`):

    schema        1
    results       by protocol: paper, lbfgs, sgd
        protocol      in words
        options       {seed, epochs}: what was asked for; epochs is null for lbfgs, which has none
        source        hash of weights, network and images; results of another source are dropped when one is added
        accuracy      top-1 in [0, 1] on all test images; paper and sgd: of the last epoch; the figure to cite
        best          paper and sgd: {epoch, accuracy, selected_on}: of the best epoch on the test images, optimistic
        l2, mean_per_class      lbfgs: the strength that was chosen; the mean over classes of the share that is right
        seconds       without the embedding
        versions, device, git_commit      as in record.json
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from idaa_lightly.bench.compare.groups import Group, read_groups
from idaa_lightly.bench.config import read_toml
from idaa_lightly.bench.evaluate.targets import ARRAYS, load_backbone, read_features
from idaa_lightly.bench.record import environment, read_record, write_json
from idaa_lightly.bench.run.setup import progress
from idaa_lightly.bench.run.train import features_of
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError, UsageError, suggestion
from idaa_lightly.evaluation.linear import (
    BATCH_SIZE,
    PAPER_EPOCHS,
    SGD_EPOCHS,
    linear_probe,
    paper_probe,
    sgd_probe,
)
from idaa_lightly.files import atomic_write, claim

SCHEMA = 1
PROTOCOLS = {
    "paper": f"Adam, learning rate 3e-4, batch {BATCH_SIZE}, on features as they are",
    "lbfgs": "L-BFGS on standardised features, L2 strength chosen on a tenth of train",
    "sgd": f"SGD, learning rate 0.1 × batch / 256, momentum 0.9, cosine, batch {BATCH_SIZE}, on features as they are",
}
EPOCHS = {"paper": PAPER_EPOCHS, "sgd": SGD_EPOCHS}


@dataclass(frozen=True)
class Family:
    """Runs that differ in their seed only, or one other target; and what was found for each, by name."""

    group: Group | None
    results: dict[Path, dict[str, dict[str, Any]]]

    def spread(self, name: str, value: Callable[[dict[str, Any]], float | None]) -> tuple[float, float] | None:
        """Mean and standard deviation over two or more runs, of what the results of this name have, if they have it."""
        values = [found for results in self.results.values() if (found := value(results[name])) is not None]
        return (mean(values), stdev(values)) if len(values) > 1 else None


def evaluate_linear(
    targets: Iterable[Path],
    protocols: list[str],
    console: Console,
    *,
    seed: int = 0,
    epochs: int | None = None,
    backbone: str | None = None,
    data: str | None = None,
) -> list[Family]:
    """Trains linear layers on frozen features.

    A finished run keeps its features and results; what is there with the same options is not done again.

    Args:
        targets: as for `evaluate_knn`, and folders that hold runs at any depth.
        protocols: of `PROTOCOLS`.
        console: for what is said on the way.
        seed: of the validation split, the initial weights and the batches.
        epochs: of paper and sgd, in the place of 1000 and 90.
        backbone: name of the network of a state dict.
        data: images to embed, in the place of a run's; nothing is kept then.

    Returns:
        The targets, runs of one configuration together; the results are by protocol, as in linear.json.

    Raises:
        FileFormatError: a target is none of these.
        UsageError: there is no such protocol, an option does not go with a target, or a run is there twice.
        DataError: there are too few features, or their shapes do not match.
        NonFiniteError: they hold NaN or infinity.
    """
    for name in protocols:
        if name not in PROTOCOLS:
            raise UsageError(f"no protocol {name!r}; known: {', '.join(PROTOCOLS)}.{suggestion(name, PROTOCOLS)}")
    families = find_runs(targets, console)
    for family in families:
        for target, results in family.results.items():
            kept = family.group is not None and not (backbone or data)
            if kept:
                features, source = run_features(target, console)
            else:
                features, source = read_features(target, console, backbone=backbone, data=data), ""
            there = read_results(target / "linear.json") if kept else {}
            parts = [_on_device(features[name]) for name in ARRAYS]
            for name in protocols:
                options = {"seed": seed, "epochs": (epochs or EPOCHS[name]) if name in EPOCHS else None}
                entry = finished(there.get(name), options, source)
                if entry is None:
                    entry = _evaluate(name, parts, options) | {"source": source}
                    if kept:
                        add_result(target / "linear.json", name, entry)
                results[name] = entry
                console.print(f"{target}: {name} {100 * entry['accuracy']:.2f} %", highlight=False, soft_wrap=True)
    return families


def find_runs(targets: Iterable[Path], console: Console) -> list[Family]:
    """The finished runs in these folders, by configuration, then other targets as they are; without results yet.

    Raises:
        FileFormatError: a record that cannot be read.
        UsageError: a run is there twice.
    """
    below = {target: sorted(path.parent for path in target.rglob("record.json")) for target in targets}
    holders = [target for target, folders in below.items() if folders]
    groups, unfinished = read_groups(holders) if holders else ([], 0)
    if unfinished:
        console.print(f"Left out: {unfinished} unfinished, without a record.", highlight=False)
    families = [Family(group, {}) for group in groups]
    once = {folder.resolve(): folder for folders in below.values() for folder in folders}
    for folder in once.values():
        record = read_record(folder)
        seed = record["config"]["seed"]
        family = next(family for family in families if family.group and family.group.records.get(seed) == record)
        family.results[folder] = {}
    return families + [Family(None, {target: {}}) for target, folders in below.items() if not folders]


def source_of(folder: Path, data: DataSet) -> str:
    """A hash of a run's weights, the network that they are for, and its images as they are now."""
    digest = hashlib.sha256((folder / "backbone.pt").read_bytes())
    images = [data.train.fingerprint(), data.test.fingerprint(), data.image_size, data.normalize]
    digest.update(json.dumps([read_toml(folder / "config.toml").get("backbone"), images]).encode())
    return digest.hexdigest()[:16]


def run_features(folder: Path, console: Console) -> tuple[dict[str, Any], str]:
    """Features of a run, from its features.npz or else embedded and put there; and their source."""
    network, data = load_backbone(folder, console)
    source, path = source_of(folder, data), folder / "features.npz"
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["source"]) == source:
                return {name: kept[name] for name in ARRAYS}, source
        console.print(f"Note: {path} is of other weights or images: embedded anew.", highlight=False)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        console.print(f"Note: {path} cannot be read: embedded anew.", highlight=False)
    features = features_of(network, data)
    arrays: dict[str, Any] = {"source": np.array(source)} | {name: features[name].numpy() for name in ARRAYS}
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)
    return features, source


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The results in a linear.json or finetune.json; none where there is no such file.

    Raises:
        FileFormatError: it is something else.
    """
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, expected {SCHEMA}")
        results: dict[str, dict[str, Any]] = content["results"]
        return results
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} holds no results of this version ({error}): move it away") from error


def finished(entry: dict[str, Any] | None, options: dict[str, Any], source: str) -> dict[str, Any] | None:
    """A result that is there already, if it is one of these options and this source."""
    return entry if entry and (entry["options"], entry["source"]) == (options, source) else None


def add_result(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Adds a result to a file, and drops those of other weights or images; processes take turns."""
    with claim(path.parent, timeout=60):
        kept = {key: other for key, other in read_results(path).items() if other["source"] == entry["source"]}
        write_json(path, {"schema": SCHEMA, "results": kept | {name: entry}})


def _evaluate(name: str, parts: list[Tensor], options: dict[str, Any]) -> dict[str, Any]:
    start, seed, epochs = time.perf_counter(), options["seed"], options["epochs"]
    entry: dict[str, Any]
    if name == "lbfgs":
        entry = linear_probe(*parts, seed=seed)._asdict()
    else:
        probe = {"paper": paper_probe, "sgd": sgd_probe}[name]
        found = probe(*parts, epochs=epochs, seed=seed, on_epoch=progress(name, epochs))
        best = {"epoch": found.best_epoch, "accuracy": found.best, "selected_on": "the test images: optimistic"}
        entry = {"accuracy": found.accuracy, "best": best}
    seconds = round(time.perf_counter() - start, 2)
    about = {"protocol": PROTOCOLS[name], "options": options, "seconds": seconds}
    return about | entry | environment(parts[0].device, 1)


def _on_device(values: Any) -> Tensor:
    """On the GPU where there is one; a copy of an array, which may be a read-only file."""
    tensor = values if isinstance(values, Tensor) else torch.tensor(values)
    return tensor.to("cuda" if torch.cuda.is_available() else "cpu")
