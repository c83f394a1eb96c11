"""Targets of evaluations: run directories, checkpoints, state dicts and files of features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.bench.features import Features, features_of, pick_device
from idaa_lightly.bench.record import read_record
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.setup import Parts, make_augmentation, make_parts, read_data, resolve
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError, UsageError
from idaa_lightly.files import load_tensors, require_file
from idaa_lightly.training import SelfSupervised
from idaa_lightly.weights import load_pretrained

CLASSES = 10_000_000
"""Largest number of classes. Memory is needed for each number below the largest label."""


def read_features(
    target: Path, *, backbone: str | None = None, data: str | None = None, labelled: bool = True
) -> Features:
    """Return the features of a target. Features are read from a file, or computed if the target is a network.

    Args:
        target: A run directory, its checkpoints/last.ckpt, a state dict from torchvision or timm, an .npz file with
            the arrays of `Features`, or a directory with one .npy file per array. The .npy files are memory-mapped.
        backbone: Name of the network that a state dict belongs to.
        data: Data set to embed; see `load_backbone`.
        labelled: Refuse images without labels. Such images have no test features.

    Raises:
        FileFormatError: The target is none of these, or its labels do not fit its features.
        UsageError: An option does not go with the target, or the images have no labels.
    """
    arrays = holds_features(target)
    if (backbone or data) and arrays:
        raise UsageError(f"{target} holds features already: leave out --backbone and --data")
    if backbone and not data:
        raise UsageError(f"--backbone is {backbone}, but nothing says which images to embed: add --data")
    if arrays:
        features = _arrays(target)
    else:
        features = features_of(*load_backbone(target, backbone=backbone, data=data, labelled=labelled))
    for split in ("train", "test") if labelled else ("train",):
        rows, labels = getattr(features, f"{split}_features"), getattr(features, f"{split}_labels")
        shapes = f"{target}: {split}_features has shape {tuple(rows.shape)}"
        if rows.ndim != 2 or not all(rows.shape):
            raise FileFormatError(f"{shapes}, but expected (N, D) with N and D of 1 or more")
        if labels.shape != (len(rows),):
            raise FileFormatError(
                f"{shapes} and {split}_labels has {tuple(labels.shape)}, but expected ({len(rows)},): one label per row"
            )
        if int(labels.max()) >= CLASSES:
            raise FileFormatError(f"{target}: {split}_labels has {int(labels.max())}, but expected less than {CLASSES}")
    return features


def holds_features(target: Path) -> bool:
    """Return True if the target is a file or a directory of features, not a network."""
    return target.suffix == ".npz" or (target / "train_features.npy").exists()


def _arrays(path: Path) -> Features:
    """Read features and labels from an .npz file, or memory-map the .npy files of a directory."""
    names = Features._fields
    if not path.is_dir():
        require_file(path, "features")
    try:
        if path.is_dir():
            found: dict[str, Any] = {
                name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names
            }
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # closes the file in any case
                found = {name: arrays[name] for name in names}
        for name, values in found.items():
            if values.dtype.kind not in ("iu" if name.endswith("labels") else "iuf"):
                raise ValueError(f"{name} is of type {values.dtype}")
        return Features(**found)
    except Exception as error:  # The readers of zip files and arrays may raise anything on other files.
        raise FileFormatError(f"{path} is not a file of features ({error}): expected {', '.join(names)}") from error


def load_backbone(
    target: Path, *, backbone: str | None = None, data: str | None = None, labelled: bool = True
) -> tuple[nn.Module, DataSet]:
    """Load the backbone of a run or of another checkpoint, and the data set to evaluate it on.

    Args:
        target: A run directory, its checkpoints/last.ckpt, or a state dict from torchvision or timm.
        backbone: Name of the network that a state dict belongs to. Default: the run's.
        data: Data set, as for `idaa-bench run --data`. Default: the run's `eval_data`, or else its `data`. For a run's
            network, the images are always normalised as in the run.
        labelled: Refuse images without labels.

    Returns:
        The backbone on the device of `pick_device`, and the data set.

    Raises:
        FileFormatError: The target is none of these, or its weights do not fit the backbone.
        UsageError: The images have no labels.
    """
    if not target.exists():
        raise FileFormatError(f"{target} does not exist; expected a run directory, a checkpoint or an .npz file")
    folder = target if target.is_dir() else target.parent.parent
    state = None if backbone else _backbone_weights(target)
    if backbone is None and not (folder / "config.toml").exists():
        raise FileFormatError(f"{folder} has no config.toml, so nothing says which network and data {target} is for")
    own = config = RunConfig() if backbone else RunConfig(**read_toml(folder / "config.toml"))
    if not data and config.eval_data is not None:  # limit_train is about the images to train on.
        data, config = config.eval_data, replace(config, limit_train=None, eval_data=None)
    config = replace(config, backbone=backbone or config.backbone, data=data or config.data)
    images = read_data(config)
    if labelled and not images.labelled:
        raise UsageError(
            f"{config.data} of {target} has no labels, which this evaluation needs: name a data set that has some by "
            "--data of `idaa-bench knn` or `linear`, by --to of `idaa-bench transfer`, or by --eval-data of the run"
        )
    if data and not backbone:  # The run's network expects the normalisation that it was trained with.
        finished = (folder / "record.json").exists()
        images = replace(
            images, normalize=read_record(folder)["data"]["normalize"] if finished else read_data(own).normalize
        )
    network, _ = create_backbone(config.backbone or "", images.image_size, config.set.get("backbone"))
    if state is not None:
        load_weights(network, state, target, f"the backbone {config.backbone}")
    elif missing := load_pretrained(network, str(target))[0].missing:
        raise FileFormatError(
            f"{target} does not fit the backbone {backbone}: it has no {missing[0]} of the same shape"
        )
    return network.to(pick_device()), images


def _backbone_weights(target: Path) -> dict[str, Tensor]:
    """Read a backbone's state dict from a run directory or one of our checkpoints."""
    if target.is_dir():
        if not (target / "backbone.pt").exists():
            raise FileFormatError(
                f"{target} holds no backbone.pt, so it is not a finished run: finish it with --resume, or pass its "
                "checkpoints/last.ckpt"
            )
        return load_tensors(target / "backbone.pt", "a backbone written by a run")
    whole = load_tensors(target, "a checkpoint written by `idaa-bench run`").get("state_dict")
    prefix = "method.backbone."
    state = {
        str(name).removeprefix(prefix): value
        for name, value in (whole if isinstance(whole, dict) else {}).items()
        if str(name).startswith(prefix) and ".adversarial." not in str(name)
    }
    if not state:
        raise FileFormatError(
            f"{target} holds tensors, but no checkpoint written by `idaa-bench run`; for a state dict from torchvision "
            "or timm, name its network with --backbone, and add --data"
        )
    return state


def load_weights(network: nn.Module, state: Any, path: Path, what: str) -> None:
    """Load a state dict from a file into a network.

    Args:
        network: Network to change in place.
        state: Content of the file, which may be anything.
        path: The file, for the error message.
        what: Name of the network, for the error message.

    Raises:
        FileFormatError: The state is no state dict of this network.
    """
    try:
        network.load_state_dict(state)
    except Exception as error:  # torch raises anything if names or values have other types.
        raise FileFormatError(f"{path} does not fit {what}: {shorten(str(error), 300)}") from error


def load_run(folder: Path) -> tuple[Parts, SelfSupervised]:
    """Restore a run from its last checkpoint, on the CPU.

    Args:
        folder: The run directory.

    Returns:
        The run's parts, with the augmentation fitted; and the module with the weights of the checkpoint.

    Raises:
        FileFormatError: The directory is not a run, or has no checkpoint.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    for path in (folder / "config.toml", checkpoint):
        if not path.exists():
            raise FileFormatError(f"{path} does not exist; expected a run directory written by `idaa-bench run`")
    config = replace(resolve(RunConfig(**read_toml(folder / "config.toml"))), weights=None)
    augmentation = make_augmentation(config)
    parts = make_parts(config, augmentation, read_data(config))
    fit(augmentation, fit_context(parts, torch.device("cpu")), config.precision)
    steps = len(parts.views) // parts.batch_size
    module = SelfSupervised(parts.method, augmentation, epochs=parts.epochs, steps_per_epoch=steps, seed=config.seed)
    state = load_tensors(checkpoint, "a checkpoint of a run").get("state_dict")
    load_weights(module, state, checkpoint, "the method of its config.toml")
    return parts, module
