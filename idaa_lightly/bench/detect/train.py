"""Training of one detector into a run directory."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, Timer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from idaa_lightly.bench.detect.coco import Target, read_coco
from idaa_lightly.bench.detect.config import DetectConfig
from idaa_lightly.bench.detect.network import Detector
from idaa_lightly.bench.detect.results import average_precision, predictor, save_predictions
from idaa_lightly.bench.detect.setup import DetectParts, ObjectViews, make_parts, resolve
from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.record import SCHEMA, environment, pace_of, run_in, write_json
from idaa_lightly.bench.run.checkpoint import CheckpointFiles, Found, SameImages, adopt, last_checkpoint, require_fit
from idaa_lightly.bench.run.loggers import MetricsCSV, begin, failures, finish, make_loggers
from idaa_lightly.bench.run.pace import Progression
from idaa_lightly.bench.run.train import fit_with_ranks
from idaa_lightly.bench.run.trainer import KeepHandler, choices, make_trainer, quiet_lightning
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import UsageError
from idaa_lightly.files import atomic_write, save_tensors
from idaa_lightly.loading import view_loader
from idaa_lightly.training import LOG_EVERY, Evaluation, Training

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
    resumed = found.content if found else {}
    images = SameImages(parts.data.name, parts.data.train.fingerprint)
    evaluation, timer = Evaluation(_evaluator(parts), parts.epochs), Timer()
    images.check(resumed)
    every = max(1, parts.epochs // CHECKPOINTS)
    saving = ModelCheckpoint(out / "checkpoints", filename="last", enable_version_counter=False, every_n_epochs=every)
    with warnings.catch_warnings():
        quiet_lightning()
        trainer = make_trainer(
            config,
            max_epochs=parts.epochs,
            limit_train_batches=parts.steps,
            gradient_clip_val=config.clip,
            sync_batchnorm=config.norm == "sync",
            logger=make_loggers(config, out, resumed.get("global_step", 0)),
            callbacks=[
                KeepHandler(),
                Progression(parts.batch_size, parts.epochs, parts.steps, evaluation),
                images,
                evaluation,
                timer,
                saving,
            ],
            enable_progress_bar=False,
            log_every_n_steps=min(LOG_EVERY, parts.steps),
            plugins=[CheckpointFiles()],
        )
        _require_ranks(config, trainer)
        log.info(choices(config, trainer))
        log.info(f"Resuming after epoch {resumed['epoch'] + 1}." if found else f"Run directory: {out}")
        module = Detection(
            parts.detector, parts.batch_size, epochs=parts.epochs, steps_per_epoch=parts.steps, seed=config.seed
        )
        if found:
            require_fit(found, module, trainer)
            history = found.content["callbacks"][evaluation.state_key]["history"]
            cast(MetricsCSV, trainer.logger).set_evaluations(history, parts.steps)
        _train(parts, trainer, module, out, found)
    if not trainer.is_global_zero:
        return None
    network = module.method.cpu()
    save_tensors(network.state_dict(), out / "model.pt")
    save_predictions(out / "predictions.png", predictor(network, torch.device("cpu")), parts.data.test)
    record = _record(parts, trainer, evaluation, timer, resumed.get("epoch"), start)
    write_json(out / "record.json", record)
    with failures():
        finish(trainer.loggers, config, out, record, trainer.global_step, ["predictions"])
    return record


def _require_ranks(config: DetectConfig, trainer: pl.Trainer) -> None:
    ranks = trainer.world_size
    if (config.batch_size or 1) % ranks:
        raise UsageError(f"batch_size is {config.batch_size}, but {ranks} devices need a multiple of {ranks}")
    if ranks > 1 and config.norm == "sync" and trainer.strategy.root_device.type == "cpu":
        raise UsageError(f"norm is sync, but {ranks} processes on the CPU cannot share statistics: use --norm batch")


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


def _train(parts: DetectParts, trainer: pl.Trainer, module: Detection, out: Path, found: Found | None) -> None:
    config, ranks = parts.config, trainer.world_size
    views = ObjectViews(parts.data.train, config.seed)
    loader = view_loader(
        views, parts.batch_size // ranks, workers=config.workers or 0, ranks=ranks, rank=trainer.global_rank
    )
    if found:  # Worker processes load the first batches before Lightning tells the sampler the epoch.
        cast(Any, loader.sampler).set_epoch(found.content["epoch"] + 1)
    checkpoint = adopt(found) if found else None
    if trainer.is_global_zero:  # Written only now, so that a refused command leaves the directory unused.
        with atomic_write(out / "config.toml") as temporary:
            temporary.write_text(config.to_toml())
    begin(trainer.loggers, config, out)
    fit_with_ranks(trainer, module, loader, checkpoint)


def _record(
    parts: DetectParts,
    trainer: pl.Trainer,
    evaluation: Evaluation,
    timer: Timer,
    resumed_at: int | None,
    start: tuple[float, float],
) -> Record:
    config, data, history = parts.config, parts.data, [evaluation.history[0], evaluation.history[-1]]
    train_s = timer.time_elapsed("train") - evaluation.seconds
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
            **pace_of(parts.epochs * parts.steps * parts.batch_size, train_s),
            "flops_per_image": None,
            "evaluation_s": round(evaluation.seconds, 2),
            "wall_s": round(time.perf_counter() - start[0], 2),
            "cpu_s": round(time.process_time() - start[1], 2),
            "resumed_at_epoch": resumed_at,
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
