"""Evaluates what is there already: a run folder, a checkpoint or a file of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.bench.prepare import read_data
from idaa_lightly.bench.run import features_of
from idaa_lightly.errors import FileFormatError
from idaa_lightly.evaluation.knn import backend, knn_classify
from idaa_lightly.files import load_tensors

ARRAYS = ("train_features", "train_labels", "test_features", "test_labels")


def evaluate_knn(target: Path, k: int, temperature: float, console: Console) -> dict[str, Any]:
    """Top-1 and top-5 accuracy in [0, 1], and how they were found.

    Args:
        target: a run folder, its checkpoints/last.ckpt, or an .npz with the arrays `ARRAYS`.
        k: neighbours.
        temperature: of the votes.
        console: for what is said on the way.

    Raises:
        FileFormatError: it is none of these.
    """
    features = _from_npz(target) if target.suffix == ".npz" else _from_run(target, console)
    bank, queries = features["train_features"], features["test_features"]
    for split in ("train", "test"):
        rows, labels = features[f"{split}_features"], features[f"{split}_labels"]
        if labels.shape != (len(rows),) or not len(rows):
            raise FileFormatError(
                f"{split}_labels has shape {tuple(labels.shape)}, but expected ({len(rows)},) for {split}_features of "
                f"shape {tuple(rows.shape)}, with a row or more"
            )
    classes = int(max(features["train_labels"].max(), features["test_labels"].max())) + 1
    if k > len(bank):
        console.print(f"Note: k is {k}, but the bank has {len(bank)} features: using {len(bank)}.")
    k = min(k, len(bank))
    ranked = knn_classify(bank, features["train_labels"], queries, k, temperature, classes)
    hits = ranked == features["test_labels"][:, None]
    return {
        "bank": len(bank),
        "queries": len(queries),
        "k": k,
        "temperature": temperature,
        "top1": hits[:, 0].double().mean().item(),
        "top5": hits[:, :5].any(1).double().mean().item(),
        "backend": backend(queries.numel()),
    }


def _from_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ARRAYS}
        for name, values in found.items():
            if values.dtype.kind not in ("iu" if name.endswith("labels") else "iuf"):
                raise ValueError(f"{name} is of type {values.dtype}")
        return {
            name: torch.from_numpy(values.astype(np.int64) if name.endswith("labels") else values)
            for name, values in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError, KeyError, EOFError, BadZipFile) as error:
        raise FileFormatError(f"{path} is no file of features ({error}): expected {', '.join(ARRAYS)}") from error


def _from_run(target: Path, console: Console) -> dict[str, Tensor]:
    """Features of the backbone that a run left in backbone.pt, or in a checkpoint in its checkpoints/."""
    folder = target if target.is_dir() else target.parent.parent
    if not target.exists():
        raise FileFormatError(f"{target} does not exist; expected a run folder, a checkpoint or an .npz file")
    if target.is_dir() and not (target / "backbone.pt").exists():
        raise FileFormatError(
            f"{target} holds no backbone.pt, so no finished run: finish it with --resume, or name its "
            "checkpoints/last.ckpt"
        )
    if target.is_dir():
        state = load_tensors(target / "backbone.pt", "a backbone written by a run")
    else:
        whole = load_tensors(target, "a checkpoint written by `idaa-bench run`")
        prefix = "method.backbone."
        weights = whole.get("state_dict")
        weights = weights if isinstance(weights, dict) else {}
        state = {
            name.removeprefix(prefix): value
            for name, value in weights.items()
            if name.startswith(prefix) and ".adversarial." not in name
        }
        if not state:
            raise FileFormatError(f"{target} holds tensors, but no checkpoint written by `idaa-bench run`")
    if not (folder / "config.toml").exists():
        raise FileFormatError(f"{folder} has no config.toml, so nothing says which network and data {target} is for")
    config = RunConfig(**read_toml(folder / "config.toml"))
    data = read_data(config, console)
    backbone, _ = create_backbone(config.backbone or "", data.image_size)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise FileFormatError(f"{target} does not fit the backbone {config.backbone} of its config.toml") from error
    return features_of(backbone.to("cuda" if torch.cuda.is_available() else "cpu"), data)
