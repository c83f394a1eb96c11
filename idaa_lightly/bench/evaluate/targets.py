"""Evaluates what is there already: a run folder, a checkpoint or a file of features."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.bench.record import read_record
from idaa_lightly.bench.run.setup import Parts, fit, make_augmentation, make_parts, read_data, resolve
from idaa_lightly.bench.run.train import features_of
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError, UsageError
from idaa_lightly.evaluation.knn import knn_sweep, neighbours_that_vote
from idaa_lightly.evaluation.search import backend
from idaa_lightly.files import load_tensors
from idaa_lightly.training import SelfSupervised

ARRAYS = ("train_features", "train_labels", "test_features", "test_labels")


def evaluate_knn(
    target: Path,
    k: Sequence[int],
    temperature: Sequence[float],
    console: Console,
    *,
    index: str | None = None,
    backbone: str | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Top-1 and top-5 accuracy for every pair of k and temperature, after one search, and how they were found.

    Args:
        target: a run folder, its checkpoints/last.ckpt, a state dict of torchvision or timm, an .npz with the arrays
            `ARRAYS`, or a folder with each of them as an .npy, which is memory-mapped.
        k: numbers of neighbours.
        temperature: of the votes.
        console: for what is said on the way.
        index: of FAISS, for an approximate search; see `knn_sweep`.
        backbone: name of the network of a state dict.
        data: images to embed, in the place of the run's.

    Returns:
        bank and queries: their sizes; backend: what searched; accuracies: a list of `KNNAccuracy`.

    Raises:
        FileFormatError: the target is none of these.
        UsageError: an option does not go with the target.
    """
    neighbours_that_vote(k, temperature, max(k))  # refused before anything is embedded
    features = read_features(target, console, backbone=backbone, data=data)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        bank, labels, queries, targets = (features[name] for name in ARRAYS)
        accuracies = knn_sweep(bank, labels, queries, targets, k, temperature, index=index)
    for note in notes:
        console.print(f"Note: {note.message}.", highlight=False)
    return {
        "bank": len(bank),
        "queries": len(queries),
        "backend": backend(len(queries) * queries.shape[1], index),
        "accuracies": accuracies,
    }


def read_features(
    target: Path, console: Console, *, backbone: str | None = None, data: str | None = None
) -> dict[str, Any]:
    """Features of a target: read where it holds them, embedded where it is a network.

    Args:
        target: as for `evaluate_knn`.
        console: for what is said on the way.
        backbone: name of the network of a state dict.
        data: images to embed, in the place of the run's.

    Returns:
        The arrays or CPU tensors `ARRAYS`: train_features (N, D), train_labels (N,), and the same for test.

    Raises:
        FileFormatError: the target is none of these, or its labels do not fit its features.
        UsageError: an option does not go with the target.
    """
    arrays = holds_features(target)
    if (backbone or data) and arrays:
        raise UsageError(f"{target} holds features already: leave out --backbone and --data")
    if backbone and not data:
        raise UsageError(f"--backbone is {backbone}, but nothing says which images to embed: add --data")
    features = _arrays(target) if arrays else features_of(*load_backbone(target, console, backbone=backbone, data=data))
    for split in ("train", "test"):
        rows, labels = features[f"{split}_features"], features[f"{split}_labels"]
        if labels.shape != (len(rows),) or not len(rows):
            raise FileFormatError(
                f"{split}_labels has shape {tuple(labels.shape)}, but expected ({len(rows)},) for {split}_features of "
                f"shape {tuple(rows.shape)}, with a row or more"
            )
    return features


def holds_features(target: Path) -> bool:
    """The target is a file or folder of features, not a network."""
    return target.suffix == ".npz" or (target / f"{ARRAYS[0]}.npy").exists()


def _arrays(path: Path) -> dict[str, Any]:
    """Features and labels in an .npz, or memory-mapped from the .npy files of a folder."""
    try:
        if path.is_dir():
            found = {name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ARRAYS}
        else:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in ARRAYS}
        for name, values in found.items():
            if values.dtype.kind not in ("iu" if name.endswith("labels") else "iuf"):
                raise ValueError(f"{name} is of type {values.dtype}")
        return found
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, BadZipFile) as error:
        raise FileFormatError(f"{path} is no file of features ({error}): expected {', '.join(ARRAYS)}") from error


def load_backbone(
    target: Path, console: Console, *, backbone: str | None = None, data: str | None = None
) -> tuple[nn.Module, DataSet]:
    """The network of a run or of anybody's checkpoint, and its data.

    Args:
        target: a run folder, its checkpoints/last.ckpt, or a state dict of torchvision or timm.
        console: for what is said on the way.
        backbone: name of the network of a state dict; else the run's.
        data: as for `idaa-bench run --data`; else the run's. A run's network gets its own normalisation.

    Returns:
        The backbone on the GPU where there is one, and the data.

    Raises:
        FileFormatError: the target is none of these, or does not fit.
    """
    if not target.exists():
        raise FileFormatError(f"{target} does not exist; expected a run folder, a checkpoint or an .npz file")
    folder = target if target.is_dir() else target.parent.parent
    state = _backbone_weights(target, foreign=bool(backbone))
    if backbone is None and not (folder / "config.toml").exists():
        raise FileFormatError(f"{folder} has no config.toml, so nothing says which network and data {target} is for")
    config = RunConfig() if backbone else RunConfig(**read_toml(folder / "config.toml"))
    config = replace(config, backbone=backbone or config.backbone, data=data or config.data)
    images = read_data(config, console)
    if data and not backbone:  # what the run's network was trained on
        images = replace(images, normalize=read_record(folder)["data"]["normalize"])
    network, _ = create_backbone(config.backbone or "", images.image_size)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise FileFormatError(f"{target} does not fit the backbone {config.backbone}: {error}") from error
    return network.to("cuda" if torch.cuda.is_available() else "cpu"), images


def _backbone_weights(target: Path, *, foreign: bool) -> dict[str, Tensor]:
    """The state dict in a run folder, in a checkpoint of ours, or in a foreign file, without its classifier."""
    if target.is_dir():
        if not (target / "backbone.pt").exists():
            raise FileFormatError(
                f"{target} holds no backbone.pt, so no finished run: finish it with --resume, or name its "
                "checkpoints/last.ckpt"
            )
        return load_tensors(target / "backbone.pt", "a backbone written by a run")
    whole = load_tensors(target, "a state dict" if foreign else "a checkpoint written by `idaa-bench run`")
    weights = whole.get("state_dict", whole if foreign else None)
    prefix, left_out = ("", ("fc.", "head.")) if foreign else ("method.backbone.", ())
    state = {
        name.removeprefix(prefix): value
        for name, value in (weights if isinstance(weights, dict) else {}).items()
        if name.startswith(prefix) and not name.startswith(left_out) and ".adversarial." not in name
    }
    if not state:
        raise FileFormatError(
            f"{target} holds tensors, but no checkpoint written by `idaa-bench run`; for a state dict of torchvision "
            "or timm name its network with --backbone, and --data"
        )
    return state


def load_run(folder: Path, console: Console) -> tuple[Parts, SelfSupervised]:
    """A run as its last checkpoint holds it: method, augmentation and their weights, on the CPU.

    Raises:
        FileFormatError: the folder is no run, or has no checkpoint.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    for path in (folder / "config.toml", checkpoint):
        if not path.exists():
            raise FileFormatError(f"{path} does not exist; expected the folder of a run of `idaa-bench run`")
    config = resolve(RunConfig(**read_toml(folder / "config.toml")))
    augmentation = make_augmentation(config)
    parts = make_parts(config, augmentation, read_data(config, console))
    fit(augmentation, parts, torch.device("cpu"))
    steps = len(parts.views) // parts.batch_size
    module = SelfSupervised(parts.method, augmentation, epochs=parts.epochs, steps_per_epoch=steps, seed=config.seed)
    try:
        module.load_state_dict(load_tensors(checkpoint, "a checkpoint of a run")["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise FileFormatError(f"{checkpoint} does not fit the method of its config.toml: {error}") from error
    return parts, module
