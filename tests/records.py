"""A complete run record, for tests that need runs but do not train any; and a run that was killed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECORD: dict[str, Any] = {
    "schema": 2,
    "config": {
        "method": "simclr", "aug": "none", "data": "digits", "seed": 0, "epochs": 10, "set": {"method": {}, "aug": {}}
    },
    "initial": {"epoch": 0, "knn": 0.1, "knn_projection": 0.05, "linear": 0.2, "linear_l2": 0.1},
    "last": {"epoch": 10, "knn": 0.5, "knn_projection": 0.4, "linear": 0.6, "linear_l2": 0.1},
    "best": {"epoch": 10, "knn": 0.5, "selected_on": "the test images: optimistic"},
    "history": [{"epoch": 0, "knn": 0.1}, {"epoch": 5, "knn": 0.3}, {"epoch": 10, "knn": 0.5}],
    "evaluation": {"knn_k": 200, "knn_temperature": 0.1, "knn_backend": "torch, exact"},
    "time": {
        "train_s": 10.0, "images_per_s": 100.0, "flops_per_image": 10**9, "wall_s": 12.0, "cpu_s": 11.0,
        "resumed_at_epoch": None,
    },
    "fitted": {},
    "data": {
        "name": "digits", "train": 1437, "test": 360, "classes": 10, "image_size": 32,
        "normalize": {"mean": [0.5] * 3, "std": [0.25] * 3}, "fingerprint": ["aaaaaaaa", "bbbbbbbb"], "notes": [],
    },
    "versions": {"idaa-lightly": "0.1.0"},
    "device": {"type": "cpu", "name": "cpu", "count": 1, "cpus": 2, "torch_threads": 2},
    "git_commit": "c0ffee",
}  # fmt: skip


def a_record(**changes: Any) -> dict[str, Any]:
    """Return a copy of `RECORD` in which `changes` replace fields at any depth."""
    return merged(RECORD, changes)


def merged(whole: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of `whole` in which `changes` replace values at any depth."""
    result = dict(whole)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def interrupted(whole: Path, part: Path) -> None:
    """Make a run directory as if the finished run `whole` had been killed after its last epoch but one."""
    (part / "checkpoints").mkdir(parents=True)
    for name in ("config.toml", "metrics.csv"):
        (part / name).write_bytes((whole / name).read_bytes())
    (part / "checkpoints/last.ckpt").write_bytes((whole / "checkpoints/previous.ckpt").read_bytes())
