"""Training of one detector into a run directory."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from idaa_lightly.bench.detect.coco import Target, read_coco
from idaa_lightly.bench.detect.config import DetectConfig
from idaa_lightly.bench.detect.network import Detector, activates
from idaa_lightly.bench.detect.results import average_precision, predictor, save_predictions
from idaa_lightly.bench.detect.setup import DetectParts, ObjectViews, make_parts, resolve
from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.record import SCHEMA, environment, run_in, write_json
from idaa_lightly.bench.run.checkpoint import last_checkpoint
from idaa_lightly.bench.run.inputs import SameInputs
from idaa_lightly.bench.run.loggers import failures, finish
from idaa_lightly.bench.run.loop import Loop
from idaa_lightly.bench.run.trainer import choices, quiet_lightning
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import UsageError
from idaa_lightly.files import save_tensors
from idaa_lightly.loading import view_loader
from idaa_lightly.training import Training

log = logging.getLogger(__name__)
WARM_UP = 1000
"""Steps in which the learning rate rises from a thousandth; a tenth of the training if that is less."""
CHECKPOINTS = 50
"""Checkpoints in a training, at most."""


class Detection(Training):
    """LightningModule that trains a detector. A batch is a list of images and their objects.

    Args:
        network: Detector.
        batch_size: Images per batch, over all devices.
        options: Arguments of `Training`.
    """

    def __init__(self, network: Detector, batch_size: int, **options: Any) -> None:
        super().__init__(**options)
        self.method, self.batch_size = network, batch_size

    def configure_optimizers(self) -> Any:
        """Return SGD with the 1x schedule: warm-up, and a tenth of the learning rate after 2/3 and 8/9."""
        total = self.schedule[0] * self.schedule[1]
        warm = min(WARM_UP, total / 10)
        optimizer = torch.optim.SGD(
            [part for part in self.parameters() if part.requires_grad],
            self.method.lr * self.batch_size / 16,
            momentum=0.9,
            weight_decay=self.method.weight_decay,
        )

        def factor(step: int) -> float:
            rise = min(1.0, 1e-3 + (1 - 1e-3) * step / warm)
            return rise * 0.1 ** ((3 * step >= 2 * total) + (9 * step >= 8 * total))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

    def training_step(self, batch: list[tuple[Tensor, Target]], index: int) -> Tensor:
        """Compute the losses of the proposals, boxes, classes and masks of a batch, and log them."""
        images, targets = map(list, zip(*batch, strict=True))
        losses: dict[str, Tensor] = self.method(images, targets)
        total = torch.stack(list(losses.values())).sum()
        named = {f"loss/{name.removeprefix('loss_')}": value.detach() for name, value in losses.items()}
        self.keep(total, {"loss/total": total.detach()} | named)
        return total


def run(config: DetectConfig, out: Path, *, resume: bool = False) -> Record | None:
    """Train and evaluate one detector, and write its run directory.

    Args:
        config: Configuration, resolved or not.
        out: The run directory.
        resume: Resume an interrupted run of this configuration. A finished one is left unchanged.

    Returns:
        The record. With several processes (DDP), only the first process returns it. The others return None.

    Raises:
        UsageError: An option cannot be used.
        DataError: The images cannot be read, or an annotation is malformed.
        RunFolderError: The directory holds something else, another process is using it, or it holds the same run and
            `resume` is False.
        FileFormatError: The run to start from, its checkpoint or the record of an earlier process cannot be read.
        NonFiniteError: The training diverged.
    """
    start = time.perf_counter(), time.process_time()
    parts = prepare(config)
    return run_in(out, parts.config, resume, lambda: _run(parts, out, start))


def prepare(config: DetectConfig) -> DetectParts:
    """Read the annotations, build the detector, and log what will be trained. Errors are those of `run`.

    Args:
        config: Configuration, resolved or not.
    """
    config = resolve(config)
    parts = make_parts(config, read_coco(config.data))
    data = parts.data
    for note in (*data.train.notes, *data.test.notes):
        log.info(f"Note: {note}.")
    sizes = [sum(map(len, images.things)) for images in (data.train, data.test)]
    weights = sum(part.numel() for part in parts.detector.parameters() if part.requires_grad)
    log.info(
        f"{config.method} on {config.backbone}, initialised by {config.run or config.init}: {weights / 1e6:.1f} "
        f"million weights, BatchNorms {config.norm}; {len(data.train)} training images with {sizes[0]} objects and "
        f"{len(data.test)} test images with {sizes[1]}, in {len(data.train.categories)} classes; "
        f"{quantity(parts.epochs, 'epoch')} of {quantity(parts.steps, 'step')}, {parts.batch_size} images each."
    )
    return parts


def _run(parts: DetectParts, out: Path, start: tuple[float, float]) -> Record | None:
    config, found = parts.config, last_checkpoint(out)
    inputs = SameInputs(config, parts.data.name, parts.data.train.fingerprint)
    with warnings.catch_warnings():
        quiet_lightning()
        loop = Loop(
            config, out, found, inputs, _evaluator(parts),
            images_per_step=parts.batch_size, epochs=parts.epochs, steps=parts.steps,
            every=max(1, parts.epochs // CHECKPOINTS), sync_batchnorm=config.norm == "sync",
        )  # fmt: skip
        trainer, ranks = loop.trainer, loop.trainer.world_size
        if ranks > 1 and config.norm == "sync" and any(map(activates, parts.detector.modules())):
            raise UsageError(
                f"norm is sync, but the BatchNorms of {config.backbone} contain their activations, which conversion to "
                "synchronised ones drops: use --norm batch"
            )
        if ranks > 1 and config.norm == "sync" and trainer.strategy.root_device.type == "cpu":
            raise UsageError(
                f"norm is sync, but {ranks} processes on the CPU cannot share statistics: use --norm batch"
            )
        log.info(choices(config, trainer))
        log.info(f"Run directory: {out}" if loop.resumed_at is None else f"Resuming after epoch {loop.resumed_at + 1}.")
        module = Detection(
            parts.detector, parts.batch_size, epochs=parts.epochs, steps_per_epoch=parts.steps, seed=config.seed
        )
        loader = view_loader(
            ObjectViews(parts.data.train, config.seed), parts.batch_size // ranks,
            workers=config.workers or 0, ranks=ranks, rank=trainer.global_rank,
        )  # fmt: skip
        loop.fit(module, loader)
    if not trainer.is_global_zero:
        return None
    network = module.method.cpu()
    save_tensors(network.state_dict(), out / "model.pt")
    save_predictions(out / "predictions.png", predictor(network, torch.device("cpu")), parts.data.test)
    record = _record(parts, loop, start)
    write_json(out / "record.json", record)
    with failures():
        finish(trainer.loggers, config, out, record, trainer.global_step, ["predictions"])
    return record


def _evaluator(parts: DetectParts) -> Callable[[Any, int], dict[str, float]]:
    """Return a function that measures the average precision on the test images after the last epoch, and only then."""

    def evaluate(network: Any, epoch: int) -> dict[str, float]:
        if epoch < parts.epochs:
            return {}
        device = next(network.parameters()).device
        found = average_precision(predictor(network, device), parts.data.test)
        log.info(f"box AP {100 * found['box_ap']:.2f} %, mask AP {100 * found['mask_ap']:.2f} % on the test images.")
        return found

    return evaluate


def _record(parts: DetectParts, loop: Loop, start: tuple[float, float]) -> Record:
    config, data, trainer = parts.config, parts.data, loop.trainer
    history = [loop.evaluation.history[0], loop.evaluation.history[-1]]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "config": config.to_dict(),
        "initial": history[0],
        "last": history[-1],
        "history": history,
        "evaluation": {
            "ap": "COCO's average precision over IoU 0.50 to 0.95, of up to 100 detections per image, on all test "
            "images, once, after the last epoch; ap50 and ap75 at IoU 0.50 and 0.75"
        },
        "time": {
            **loop.time(start),
            "flops_per_image": None,
            "evaluation_s": round(loop.evaluation.seconds, 2),
        },
        "fitted": {"init": parts.init, "steps": trainer.global_step},
        "data": {
            "name": data.name,
            "train": len(data.train),
            "test": len(data.test),
            "classes": len(data.train.categories),
            "image_size": config.image_size,
            "normalize": parts.normalize,
            "fingerprint": [data.train.fingerprint, data.test.fingerprint],
            "notes": [*data.train.notes, *data.test.notes],
            "objects": [sum(map(len, images.things)) for images in (data.train, data.test)],
            "categories": list(data.train.categories.values()),
        },
        **environment(trainer.strategy.root_device, trainer.world_size),
    }
    return cast(Record, record)
