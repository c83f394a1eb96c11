"""Training of one configuration into a run directory: fit, train, export, record."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, Timer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from idaa_lightly.batchnorm import strip_dual_batchnorm
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.record import SCHEMA, environment, pace_of, run_in, write_json
from idaa_lightly.bench.run.checkpoint import (
    CheckpointFiles,
    Found,
    SameImages,
    adopt,
    last_checkpoint,
    require_fit,
)
from idaa_lightly.bench.run.cost import estimate, flops_per_image, in_words
from idaa_lightly.bench.run.evaluation import evaluator, protocol
from idaa_lightly.bench.run.figures import save_curves, save_views
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.health import warnings_of
from idaa_lightly.bench.run.lengthen import keep_results, lengthened, require_same_start
from idaa_lightly.bench.run.loggers import MetricsCSV, begin, failures, finish, make_loggers
from idaa_lightly.bench.run.pace import Progression
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.ranks import supervisor
from idaa_lightly.bench.run.setup import Parts, make_parts, read_data, read_labelled, resolve
from idaa_lightly.bench.run.trainer import KeepHandler, choices, make_trainer, quiet_lightning
from idaa_lightly.bench.schema import Record
from idaa_lightly.data import DataSet
from idaa_lightly.errors import UsageError
from idaa_lightly.evaluation.search import backend
from idaa_lightly.files import atomic_write, save_tensors
from idaa_lightly.loading import EpochSampler, require_trainable
from idaa_lightly.training import LOG_EVERY, Evaluation, SelfSupervised

log = logging.getLogger(__name__)


def run(config: RunConfig, out: Path, *, resume: bool = False) -> Record | None:
    """Train and evaluate one configuration, and write its run directory.

    Args:
        config: Configuration, resolved or not.
        out: The run directory.
        resume: Resume an interrupted run of this configuration, or of one that differs only in the number of epochs. A
            finished run of this configuration is left unchanged.

    Returns:
        The record. With several processes (DDP), only the first process returns it. The others return None.

    Raises:
        UsageError: An option cannot be used, or the run cannot be resumed with this number of epochs.
        DataError: The data set cannot be read or is too small.
        RunFolderError: The directory holds something else, another process is using it, or it holds the same run and
            `resume` is False.
        FileFormatError: The checkpoint or the record of an earlier process cannot be read.
        NonFiniteError: The training diverged.
        KeyboardInterrupt: The run was interrupted. `resume` continues after the last finished epoch.
    """
    start = time.perf_counter(), time.process_time()
    config = resolve(config)
    augmentation = make_augmentation(config)  # so that a bad option is reported before any data is read
    data = read_data(config)
    require_trainable(data, (config.batch_size or 1) * config.accumulate)
    config = replace(config, image_size=data.image_size)
    parts = make_parts(config, augmentation, data, read_labelled(config, data))
    return run_in(out, config, resume, lambda: _run(parts, out, start))


@dataclass
class _Training:
    """Module to train, with its trainer, callbacks and operations per image."""

    module: SelfSupervised
    trainer: pl.Trainer
    evaluation: Evaluation
    timer: Timer
    flops: int


def _run(parts: Parts, out: Path, start: tuple[float, float]) -> Record | None:
    found = last_checkpoint(out)
    resumed = found.content if found else {}
    with warnings.catch_warnings():
        quiet_lightning()
        if found:
            require_same_start(found, parts, out)
        training = _fitted(parts, out, resumed)
        if found:
            require_fit(found, training.module, training.trainer)
            found = lengthened(found, training.module, training.evaluation)
            evaluated = found.content["callbacks"][training.evaluation.state_key]
            cast(MetricsCSV, training.trainer.logger).set_evaluations(evaluated["history"], parts.steps)
        _train(parts, training, out, found)
    rows = _export(parts, training, out)  # All processes take part, because the loss may gather over them.
    if not training.trainer.is_global_zero:
        return None
    save_curves(out)
    save_views(out / "views.png", rows, parts.data.normalize)
    record = _record(parts, training, resumed.get("epoch"), start)
    write_json(out / "record.json", record)
    with failures():
        finish(training.trainer.loggers, parts.config, out, record, training.trainer.global_step)
    for warning in record.get("warnings", []):
        log.info(f"Warning: {warning}.")
    return record


def _fitted(parts: Parts, out: Path, resumed: dict[str, Any]) -> _Training:
    """Log what will be run, fit the augmentation and set up the training."""
    config, data = parts.config, parts.data
    images, evaluation, timer = (
        SameImages(data.name, data.train.fingerprint),
        Evaluation(evaluator(parts), parts.epochs),
        Timer(),
    )
    images.check(resumed)
    trainer = _trainer(parts, out, [images, evaluation, timer], evaluation, resumed.get("global_step", 0))
    device, ranks = trainer.strategy.root_device, trainer.world_size
    if parts.batch_size % ranks:
        raise UsageError(f"batch_size is {parts.batch_size}, but {ranks} devices need a multiple of {ranks}")
    if parts.batch_size == ranks and any(isinstance(part, nn.BatchNorm1d) for part in parts.method.modules()):
        raise UsageError(
            f"batch_size is {ranks}, 1 image on each of {ranks} devices, but {config.method!r} has a BatchNorm1d, "
            f"which needs 2 or more: use --batch-size {2 * ranks} or more, or fewer devices"
        )
    context = fit_context(parts, device)
    log.info(choices(config, trainer))
    _announce(parts, out, in_words(sum(estimate(parts, context))), resumed.get("epoch"))
    fit(parts.augmentation, context, config.precision)
    module = SelfSupervised(
        parts.method,
        parts.augmentation,
        epochs=parts.epochs,
        steps_per_epoch=parts.steps,
        accumulate=config.accumulate,
        seed=config.seed,
        device_views=parts.device_views,
    )
    return _Training(module, trainer, evaluation, timer, flops_per_image(parts, module, device))


def _train(parts: Parts, training: _Training, out: Path, found: Found | None) -> None:
    config, trainer = parts.config, training.trainer
    if config.compile:
        parts.method.backbone.compile()
    ranks, rank = trainer.world_size, trainer.global_rank
    loader = parts.loader(parts.batch_size // ranks, ranks=ranks, rank=rank)
    if found:  # Worker processes load the first batches before Lightning tells the sampler the epoch.
        cast(EpochSampler, loader.sampler).set_epoch(found.content["epoch"] + 1)
    checkpoint = adopt(found) if found else None
    if trainer.is_global_zero:  # Written only now, so that a refused command leaves the directory unused.
        if found and found.begun_with:
            keep_results(out, found.begun_with)
        with atomic_write(out / "config.toml") as temporary:
            temporary.write_text(config.to_toml())
    begin(trainer.loggers, config, out)
    fit_with_ranks(trainer, training.module, loader, checkpoint)


def fit_with_ranks(trainer: pl.Trainer, module: pl.LightningModule, loader: Any, checkpoint: Path | None) -> None:
    """Train a module. The first rank lets the other ranks start, and interruptions stay a KeyboardInterrupt.

    Args:
        trainer: Trainer from `make_trainer`.
        module: Module to train.
        loader: Data loader of this rank.
        checkpoint: Checkpoint to resume, if any.
    """
    if trainer.global_rank == 0 and (watching := supervisor()):
        watching.send(cast(Any, trainer.strategy).cluster_environment.main_port)  # It starts the other ranks.
    try:
        with failures():
            trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:  # Lightning turns KeyboardInterrupt and its subclasses into SystemExit.
        raise (stop.__context__ if isinstance(stop.__context__, KeyboardInterrupt) else KeyboardInterrupt()) from None


def _export(parts: Parts, training: _Training, out: Path) -> dict[str, Tensor]:
    """Write backbone.pt, and return the rows of views.png."""
    if training.trainer.is_global_zero:
        backbone = strip_dual_batchnorm(copy.deepcopy(parts.method.backbone)).cpu()
        save_tensors(backbone.state_dict(), out / "backbone.pt")
    training.module.to(training.trainer.strategy.root_device)  # Lightning has moved the module to the CPU.
    return _view_rows(parts, training.module)


def _record(parts: Parts, training: _Training, resumed_at: int | None, start: tuple[float, float]) -> Record:
    data, labelled, history = parts.data, parts.labelled, training.evaluation.history
    fitted = parts.augmentation.fitted()
    train_s = training.timer.time_elapsed("train") - training.evaluation.seconds
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "config": parts.config.to_dict(),
        "initial": history[0],
        "last": history[-1],
        "history": history,
        "evaluation": protocol(parts),
        "time": {
            **pace_of(parts.epochs * parts.steps * parts.images_per_step, train_s),
            "flops_per_image": training.flops,
            "fit_flops": sum(part.get("flops", 0) for part in fitted.values()),
            "wall_s": round(time.perf_counter() - start[0], 2),
            "cpu_s": round(time.process_time() - start[1], 2),
            "resumed_at_epoch": resumed_at,
        },
        "warnings": warnings_of(history, cast(MetricsCSV, training.trainer.logger).rows, fitted),
        "fitted": fitted | parts.weights,
        "data": {
            **data.facts(),
            "views": {"by": "device" if parts.device_views else "loader", "because": parts.views_reason},
        },
        **environment(training.trainer.strategy.root_device, training.trainer.world_size),
    }
    if labelled is not None:
        best = max(history[1:], key=lambda entry: entry["knn_validation"])  # The first entry is before the training.
        record["best"] = {"epoch": best["epoch"], "knn": best["knn_validation"], "selected_on": "the validation images"}
        record |= {} if labelled is data else {"eval_data": labelled.facts()}
    return cast(Record, record)


def _announce(parts: Parts, out: Path, duration: str, resumed_at: int | None) -> None:
    config, data = parts.config, parts.data
    trait = f" with {parts.trait}" * bool(parts.trait)
    log.info(
        f"{config.method} × {config.aug} on {config.data}: {_counted(data)}; "
        f"{config.backbone}{trait}; {quantity(parts.epochs, 'epoch')} of {quantity(parts.steps, 'step')}, "
        f"{parts.images_per_step} images each; {_evaluated(parts)}."
    )
    by = "the device, in batches" if parts.device_views else "the loader, image by image"
    log.info(f"Views by {by} ({parts.views_reason}).")
    norms = any(isinstance(part, _BatchNorm) for part in parts.method.backbone.modules())
    if parts.augmentation.dual_batchnorm and not norms:
        log.info(f"{config.backbone} has no BatchNorm, so it needs no second branch for adversarial views.")
    if resumed_at is not None:
        log.info(f"Resuming after epoch {resumed_at + 1}. The whole run would take about {duration}.")
    else:
        log.info(f"Takes about {duration}. Run directory: {out}")


def _counted(data: DataSet) -> str:
    if not data.labelled:
        return f"{len(data.train)} images of {data.image_size} px without labels"
    return (
        f"{len(data.train)} training and {len(data.test)} test images of {data.image_size} px in {len(data.classes)} "
        "classes"
    )


def _evaluated(parts: Parts) -> str:
    if parts.labelled is None:
        return "evaluated without labels, since neither --data nor --eval-data has any"
    where = "" if parts.labelled is parts.data else f"evaluated on {parts.labelled.name}: {_counted(parts.labelled)}; "
    return f"{where}kNN by {backend(len(parts.labelled.test) * parts.method.num_features)}"


def _trainer(
    parts: Parts, out: Path, callbacks: list[pl.Callback], evaluation: Evaluation, resumed_at: int
) -> pl.Trainer:
    config = parts.config
    saving = ModelCheckpoint(out / "checkpoints", filename="last", enable_version_counter=False)
    progression = Progression(parts.images_per_step, parts.epochs, parts.steps, evaluation)
    return make_trainer(
        config,
        max_epochs=parts.epochs,
        limit_train_batches=parts.steps * config.accumulate,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip,
        logger=make_loggers(config, out, resumed_at),
        callbacks=[KeepHandler(), progression, *callbacks, saving],
        enable_progress_bar=False,
        log_every_n_steps=min(LOG_EVERY, parts.steps),
        plugins=[CheckpointFiles(config.save_every)],
    )


def _view_rows(parts: Parts, module: SelfSupervised) -> dict[str, Tensor]:
    """Return rows of images: x, then x' and x' − x or else the second view, then rows of the augmentation.

    The forward pass changes running statistics of the network.
    """
    count = min(parts.batch_size, 64, len(parts.views))
    samples = [parts.views[parts.epochs, index][0] for index in range(count)]
    x0, x1, *others = [torch.stack(view).to(module.device) for view in zip(*samples, strict=True)]
    adversarial = getattr(module.train().objective(parts.method, x0, x1, *others), "views", None)
    rows = {"x": x0}
    rows |= (
        {"second view": x1}
        if adversarial is None
        else {"x'": adversarial, "x' − x": adversarial - x0[: len(adversarial)]}
    )
    return rows | parts.augmentation.panels(x0)
