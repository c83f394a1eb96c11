"""Targets of evaluations: run directories, checkpoints, state dicts and files of features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.bench.evaluate.layers import LayerOutputs
from idaa_lightly.bench.evaluate.state_dicts import NOTHING, Given, load_state_dict, note_path
from idaa_lightly.bench.features import Features, features_of, pick_device
from idaa_lightly.bench.record import no_run, read_record
from idaa_lightly.bench.run.checkpoint import LAST, PREVIOUS, checkpoint_to_evaluate
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.plugins import make_augmentation, trained_network
from idaa_lightly.bench.run.setup import Parts, make_parts, read_data, resolve
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError, UsageError
from idaa_lightly.files import load_tensors, require_file
from idaa_lightly.training import SelfSupervised

CLASSES = 10_000_000
"""Largest number of classes. Memory is needed for each number below the largest label."""


def read_features(target: Path, given: Given = NOTHING, *, labelled: bool = True) -> Features:
    """Return the features of a target. Features are read from a file, or computed if the target is a network.

    Args:
        target: A run directory, one of its checkpoints, a state dict from torchvision or timm, an .npz file with
            the arrays of `Features`, or a directory with one .npy file per array. The .npy files are memory-mapped.
        given: Options about the network and its images; see `load_backbone`.
        labelled: Refuse images without labels. Such images have no test features.

    Raises:
        FileFormatError: The target is none of these, or its labels do not fit its features.
        UsageError: An option does not go with the target, or the images have no labels.
    """
    arrays = holds_features(target)
    if arrays and given != NOTHING:
        options = " and ".join(_named(given))
        raise UsageError(f"{target} holds features already: leave out {options}")
    features = _arrays(target) if arrays else features_of(*load_backbone(target, given, labelled=labelled))
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


def _named(given: Given) -> list[str]:
    """Return the options of the command line that were given."""
    return [f"--{name.replace('_', '-')}" for name, value in given._asdict().items() if value is not None]


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
                return features_from(arrays)
        return features_from(found)
    except Exception as error:  # The readers of zip files and arrays may raise anything on other files.
        raise FileFormatError(f"{path} is not a file of features ({error}): expected {', '.join(names)}") from error


def features_from(arrays: Mapping[str, Any]) -> Features:
    """Return the features in a mapping of arrays.

    Raises:
        KeyError: An array is missing.
        ValueError: An array is not of numbers, or labels are not whole numbers.
    """
    found = {name: arrays[name] for name in Features._fields}
    for name, values in found.items():
        if values.dtype.kind not in ("iu" if name.endswith("labels") else "iuf"):
            raise ValueError(f"{name} is of type {values.dtype}")
    return Features(**found)


def load_backbone(target: Path, given: Given = NOTHING, *, labelled: bool = True) -> tuple[nn.Module, DataSet]:
    """Load the backbone of a run or of another checkpoint, and the data set to evaluate it on.

    Args:
        target: A run directory, one of its checkpoints, or a state dict from torchvision, timm or `export`.
        given: Options. `data` defaults to the run's `eval_data`, or else its `data`. For a run's network, the images
            are always normalised as in the run. `layer` is for any network. All others are for state dicts; see
            `load_state_dict`.
        labelled: Refuse images without labels.

    Returns:
        The backbone on the device of `pick_device`, and the data set.

    Raises:
        FileFormatError: The target is none of these, or its weights do not fit the backbone.
        UsageError: The images have no labels, or an option does not go with the target.
    """
    if not target.exists() and not (target.name == LAST and target.with_name(PREVIOUS).exists()):
        raise FileFormatError(f"{target} does not exist; expected a run directory, a checkpoint or an .npz file")
    foreign = given.backbone or note_path(target).exists()
    network, images = (load_state_dict if foreign else _load_run_backbone)(target, given)
    if labelled and not images.labelled:
        raise UsageError(
            f"{images.name} of {target} has no labels, which this evaluation needs: name a data set that has some by "
            "--data of `idaa-bench knn` or `linear`, by --to of `idaa-bench transfer`, or by --eval-data of the run"
        )
    network = LayerOutputs(network, given.layer) if given.layer is not None else network
    return network.to(pick_device()), images


def _load_run_backbone(target: Path, given: Given) -> tuple[nn.Module, DataSet]:
    """Load the backbone of a run directory or one of its checkpoints, and the data set to evaluate it on."""
    folder = target if target.is_dir() else target.parent.parent
    state = backbone_weights(target)
    if not (folder / "config.toml").exists():
        raise FileFormatError(f"{folder} has no config.toml, so nothing says which network and data {target} is for")
    if others := _named(given._replace(data=None, layer=None)):
        raise UsageError(f"{target} is of a run, which holds its own settings: leave out {' and '.join(others)}")
    own = config = RunConfig(**read_toml(folder / "config.toml"))
    if data := given.data or config.eval_data:  # limit_train is about the images to train on.
        config = replace(config, limit_train=None, eval_data=None)
    images = read_data(replace(config, data=data or config.data))
    if data:  # The run's network expects the normalisation that it was trained with.
        finished = (folder / "record.json").exists()
        images = replace(
            images, normalize=read_record(folder)["data"]["normalize"] if finished else read_data(own).normalize
        )
    network, _ = trained_network(
        config, *create_backbone(config.backbone or "", images.image_size, config.set.get("backbone"))
    )
    load_weights(network, state, target, f"the backbone {config.backbone}")
    return network, images


def backbone_weights(target: Path) -> dict[str, Tensor]:
    """Read a backbone's state dict from a run directory or one of its checkpoints.

    Args:
        target: A run directory, or a file in its checkpoints.

    Raises:
        FileFormatError: The target is neither, or the run is not finished.
    """
    if target.is_dir():
        if not any((target / name).exists() for name in ("config.toml", "record.json", "backbone.pt")):
            raise no_run(target)
        if not (target / "backbone.pt").exists():
            raise FileFormatError(
                f"{target} holds no backbone.pt, so it is not a finished run of idaa-bench run: finish it with "
                "--resume, or pass its checkpoints/last.ckpt"
            )
        return load_tensors(target / "backbone.pt", "a backbone written by a run")
    found = checkpoint_to_evaluate(target.parent) if target.name == LAST else None
    content = found.content if found else load_tensors(target, "a checkpoint written by `idaa-bench run`")
    whole = content.get("state_dict")
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
    found = checkpoint_to_evaluate(folder / "checkpoints")
    if found is None or not (folder / "config.toml").exists():
        missing = folder / ("checkpoints/last.ckpt" if found is None else "config.toml")
        raise FileFormatError(f"{missing} does not exist; expected a run directory written by `idaa-bench run`")
    config = replace(resolve(RunConfig(**read_toml(folder / "config.toml"))), weights=None)
    augmentation = make_augmentation(config)
    parts = make_parts(config, augmentation, read_data(config))
    fit(augmentation, fit_context(parts, torch.device("cpu")), config.precision)
    module = SelfSupervised(
        parts.method, augmentation, epochs=parts.epochs, steps_per_epoch=parts.steps, seed=config.seed
    )
    load_weights(module, found.content["state_dict"], found.path, "the method of its config.toml")
    return parts, module
