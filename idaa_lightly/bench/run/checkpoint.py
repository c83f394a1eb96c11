"""Checkpoints of a run: last.ckpt, and previous.ckpt from an epoch earlier in case last.ckpt is damaged."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning import Callback

from idaa_lightly.data import DataSet
from idaa_lightly.errors import DataError, FileFormatError
from idaa_lightly.files import load_tensors, save_tensors
from idaa_lightly.seeding import STREAMS

log = logging.getLogger(__name__)
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Plugin of Lightning's Trainer that writes checkpoints atomically and keeps the previous one.

    Lightning's own writes to TMPDIR and moves the file. Between file systems, that overwrites the only checkpoint in
    place, and a kill meanwhile loses it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint, and keep the file that it replaces as previous.ckpt."""
        save_tensors(checkpoint, path, previous=Path(path).with_name(PREVIOUS))


class SameImages(Callback):
    """Callback that keeps the fingerprint of the training images in checkpoints.

    Args:
        data: Data set of the run.
    """

    def __init__(self, data: DataSet) -> None:
        self.data = data

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint for the checkpoint."""
        return {"fingerprint": self.data.train.fingerprint}

    def check(self, checkpoint: dict[str, Any]) -> None:
        """Check that a run is resumed on the images that it was begun with.

        Args:
            checkpoint: Checkpoint to resume. It may be empty, or older than this callback.

        Raises:
            DataError: The images are others.
        """
        if checkpoint.get("callbacks", {}).get(self.state_key, self.state_dict()) != self.state_dict():
            raise DataError(
                f"the images of {self.data.name} have changed since this run was begun: restore them, or start anew "
                "with another --out"
            )


def last_checkpoint(out: Path) -> dict[str, Any]:
    """Read the checkpoint of an interrupted run. Return an empty dictionary if there is none.

    If last.ckpt is missing or damaged, previous.ckpt is renamed to last.ckpt and read.

    Args:
        out: The run directory.

    Raises:
        FileFormatError: Neither file is a checkpoint of this version.
    """
    faults = []
    for name in (LAST, PREVIOUS):
        path = out / "checkpoints" / name
        try:
            content = _read(path)
        except FileFormatError as error:
            faults.append((path, str(error)))
            continue
        if content.get("idaa_lightly_streams") != STREAMS:
            raise FileFormatError(
                f"{path} was written by a version of idaa-lightly with other random streams, so a resumed run would "
                "differ from an uninterrupted one: finish it with that version, or start anew with another --out"
            )
        if faults:
            os.replace(path, faults[0][0])
            log.info(f"{faults[0][1]}. Falling back to {PREVIOUS}, from an epoch earlier, which is {LAST} now.")
        return content
    damaged = [fault for path, fault in faults if path.exists()]
    if damaged:
        raise FileFormatError(f"{', and '.join(damaged)}: start anew with another --out")
    return {}


def _read(path: Path) -> dict[str, Any]:
    content = load_tensors(path, "a checkpoint of this run")
    with suppress(BadZipFile), ZipFile(path) as parts:  # torch.load compares no checksums.
        if parts.testzip() is None and {"state_dict", "pytorch-lightning_version"} <= content.keys():
            return content
    raise FileFormatError(f"{path} is not a checkpoint of this run: it is damaged or holds something else")
