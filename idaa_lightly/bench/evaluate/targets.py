"""What can be evaluated: a run directory, a checkpoint, a state dict or a file of features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

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
from idaa_lightly.files import load_tensors
from idaa_lightly.training import SelfSupervised


def read_features(target: Path, *, backbone: str | None = None, data: str | None = None) -> Features:
    """Return the features of a target: read if it holds features, computed if it is a network.

    Args:
        target: A run directory, its checkpoints/last.ckpt, a state dict of torchvision or timm, an .npz with the arrays
            of `Features`, or a directory with each of them as an .npy, which is memory-mapped.
        backbone: Name of the network of a state dict.
        data: Images to embed instead of the run's.

    Raises:
        FileFormatError: The target is none of these, or its labels do not fit its features.
        UsageError: An option does not go with the target.
    """
    arrays = holds_features(target)
    if (backbone or data) and arrays:
        raise UsageError(f"{target} holds features already: leave out --backbone and --data")
    if backbone and not data:
        raise UsageError(f"--backbone is {backbone}, but nothing says which images to embed: add --data")
    features = _arrays(target) if arrays else features_of(*load_backbone(target, backbone=backbone, data=data))
    for split in ("train", "test"):
        rows, labels = getattr(features, f"{split}_features"), getattr(features, f"{split}_labels")
        if labels.shape != (len(rows),) or not len(rows):
            raise FileFormatError(
                f"{split}_labels has shape {tuple(labels.shape)}, but expected ({len(rows)},) for {split}_features of "
                f"shape {tuple(rows.shape)}, with a row or more"
            )
    return features


def holds_features(target: Path) -> bool:
    """Return True if the target is a file or directory of features, not a network."""
    return target.suffix == ".npz" or (target / "train_features.npy").exists()


def _arrays(path: Path) -> Features:
    """Read features and labels from an .npz, or map the .npy files of a directory into memory."""
    names = Features._fields
    try:
        if path.is_dir():
            found: dict[str, Any] = {
                name: np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names
            }
        else:
            with np.load(path, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in names}
        for name, values in found.items():
            if values.dtype.kind not in ("iu" if name.endswith("labels") else "iuf"):
                raise ValueError(f"{name} is of type {values.dtype}")
        return Features(**found)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, BadZipFile) as error:
        raise FileFormatError(f"{path} is no file of features ({error}): expected {', '.join(names)}") from error


def load_backbone(target: Path, *, backbone: str | None = None, data: str | None = None) -> tuple[nn.Module, DataSet]:
    """Return the network of a run or of another checkpoint, and its data.

    Args:
        target: A run directory, its checkpoints/last.ckpt, or a state dict of torchvision or timm.
        backbone: Name of the network of a state dict. Default: the run's.
        data: As for `idaa-bench run --data`. Default: the run's. A run's network gets its own normalisation.

    Returns:
        The backbone on the device of `pick_device`, and the data.

    Raises:
        FileFormatError: The target is none of these, or does not fit.
    """
    if not target.exists():
        raise FileFormatError(f"{target} does not exist; expected a run folder, a checkpoint or an .npz file")
    folder = target if target.is_dir() else target.parent.parent
    state = _backbone_weights(target, foreign=bool(backbone))
    if backbone is None and not (folder / "config.toml").exists():
        raise FileFormatError(f"{folder} has no config.toml, so nothing says which network and data {target} is for")
    config = RunConfig() if backbone else RunConfig(**read_toml(folder / "config.toml"))
    config = replace(config, backbone=backbone or config.backbone, data=data or config.data)
    images = read_data(config)
    if data and not backbone:  # what the run's network was trained on
        images = replace(images, normalize=read_record(folder)["data"]["normalize"])
    network, _ = create_backbone(config.backbone or "", images.image_size)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise FileFormatError(f"{target} does not fit the backbone {config.backbone}: {error}") from error
    return network.to(pick_device()), images


def _backbone_weights(target: Path, *, foreign: bool) -> dict[str, Tensor]:
    """Read the state dict in a run directory, a checkpoint of ours or a foreign file, without its classifier."""
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


def load_run(folder: Path) -> tuple[Parts, SelfSupervised]:
    """Return a run as its last checkpoint holds it: method, augmentation and their weights, on the CPU.

    Raises:
        FileFormatError: The directory is no run, or has no checkpoint.
    """
    checkpoint = folder / "checkpoints" / "last.ckpt"
    for path in (folder / "config.toml", checkpoint):
        if not path.exists():
            raise FileFormatError(f"{path} does not exist; expected the folder of a run of `idaa-bench run`")
    config = resolve(RunConfig(**read_toml(folder / "config.toml")))
    augmentation = make_augmentation(config)
    parts = make_parts(config, augmentation, read_data(config))
    fit(augmentation, fit_context(parts, torch.device("cpu")), config.precision)
    steps = len(parts.views) // parts.batch_size
    module = SelfSupervised(parts.method, augmentation, epochs=parts.epochs, steps_per_epoch=steps, seed=config.seed)
    try:
        module.load_state_dict(load_tensors(checkpoint, "a checkpoint of a run")["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise FileFormatError(f"{checkpoint} does not fit the method of its config.toml: {error}") from error
    return parts, module
