"""Training of one configuration into a run directory: fit, train, export, record."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from idaa_lightly.batchnorm import strip_dual_batchnorm
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.record import SCHEMA, environment, run_in, write_json
from idaa_lightly.bench.run.checkpoint import Found, last_checkpoint
from idaa_lightly.bench.run.cost import estimate, flops_per_image, in_words
from idaa_lightly.bench.run.evaluation import evaluator, protocol
from idaa_lightly.bench.run.figures import save_curves, save_views
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.health import warnings_of
from idaa_lightly.bench.run.inputs import SameInputs
from idaa_lightly.bench.run.lengthen import require_same_start
from idaa_lightly.bench.run.loggers import MetricsCSV, failures, finish
from idaa_lightly.bench.run.loop import Loop
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import Parts, make_parts, read_data, read_labelled, resolve
from idaa_lightly.bench.run.trainer import choices, quiet_lightning
from idaa_lightly.bench.schema import Record
from idaa_lightly.data import DataSet
from idaa_lightly.errors import UsageError
from idaa_lightly.files import save_tensors
from idaa_lightly.loading import require_trainable
from idaa_lightly.training import SelfSupervised

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


def _run(parts: Parts, out: Path, start: tuple[float, float]) -> Record | None:
    found = last_checkpoint(out)
    with warnings.catch_warnings():
        quiet_lightning()
        if found:
            require_same_start(found, parts, out)
        loop, module = _fitted(parts, out, found)
        ranks, rank = loop.trainer.world_size, loop.trainer.global_rank
        flops = flops_per_image(parts, module, loop.trainer.strategy.root_device, ranks)
        if parts.config.compile:
            parts.method.backbone.compile()
        loader = parts.loader(parts.batch_size // ranks, ranks=ranks, rank=rank)
        loop.fit(module, loader)
    rows = _export(parts, module, loop.trainer, out)  # All processes take part: the loss may gather over them.
    if not loop.trainer.is_global_zero:
        return None
    save_curves(out)
    save_views(out / "views.png", rows, parts.data.normalize)
    record = _record(parts, loop, start, flops)
    write_json(out / "record.json", record)
    with failures():
        finish(loop.trainer.loggers, parts.config, out, record, loop.trainer.global_step)
    for warning in record.get("warnings", []):
        log.info(f"Warning: {warning}.")
    return record


def _fitted(parts: Parts, out: Path, found: Found | None) -> tuple[Loop, SelfSupervised]:
    """Log what will be run, fit the augmentation and set up the training."""
    config, inputs = parts.config, SameInputs(parts.config, parts.data.name, parts.data.train.fingerprint)
    loop = Loop(
        config, out, found, inputs, evaluator(parts),
        images_per_step=parts.images_per_step, epochs=parts.epochs, steps=parts.steps,
    )  # fmt: skip
    ranks = loop.trainer.world_size
    if parts.batch_size == ranks and any(isinstance(part, nn.BatchNorm1d) for part in parts.method.modules()):
        raise UsageError(
            f"batch_size is {ranks}, 1 image on each of {ranks} devices, but {config.method!r} has a BatchNorm1d, "
            f"which needs 2 or more: use --batch-size {2 * ranks} or more, or fewer devices"
        )
    context = fit_context(parts, loop.trainer.strategy.root_device)
    log.info(choices(config, loop.trainer))
    _announce(parts, out, in_words(sum(estimate(parts, context, ranks))), loop.resumed_at)
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
    return loop, module


def _export(parts: Parts, module: SelfSupervised, trainer: pl.Trainer, out: Path) -> dict[str, Tensor]:
    """Write backbone.pt, and return the rows of views.png."""
    if trainer.is_global_zero:
        backbone = strip_dual_batchnorm(copy.deepcopy(parts.method.backbone)).cpu()
        save_tensors(backbone.state_dict(), out / "backbone.pt")
    module.to(trainer.strategy.root_device)  # Lightning has moved the module to the CPU.
    return _view_rows(parts, module)


def _record(parts: Parts, loop: Loop, start: tuple[float, float], flops: int) -> Record:
    data, labelled, history = parts.data, parts.labelled, loop.evaluation.history
    fitted, trainer = parts.augmentation.fitted(), loop.trainer
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "config": parts.config.to_dict(),
        "initial": history[0],
        "last": history[-1],
        "history": history,
        "evaluation": protocol(parts),
        "time": {
            **loop.time(start),
            "flops_per_image": flops,
            "fit_flops": sum(part.get("flops", 0) for part in fitted.values()),
        },
        "warnings": warnings_of(history, cast(MetricsCSV, trainer.logger).rows, fitted),
        "fitted": fitted | parts.weights,
        "data": {
            **data.facts(),
            "views": {"by": "device" if parts.device_views else "loader", "because": parts.views_reason},
        },
        **environment(trainer.strategy.root_device, trainer.world_size),
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
    return f"{where}kNN by {protocol(parts)['knn_backend']}"


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
