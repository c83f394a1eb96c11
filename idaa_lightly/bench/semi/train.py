"""Training of one semi-supervised configuration into a run directory."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, Timer
from torch import Tensor

from idaa_lightly.batchnorm import strip_dual_batchnorm
from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.record import SCHEMA, environment, pace_of, run_in, write_json
from idaa_lightly.bench.run.checkpoint import CheckpointFiles, Found, SameImages, adopt, last_checkpoint, require_fit
from idaa_lightly.bench.run.cost import step_flops
from idaa_lightly.bench.run.figures import save_views
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.health import warnings_of
from idaa_lightly.bench.run.loggers import MetricsCSV, begin, failures, finish, make_loggers
from idaa_lightly.bench.run.pace import Progression
from idaa_lightly.bench.run.setup import read_data
from idaa_lightly.bench.run.train import fit_with_ranks
from idaa_lightly.bench.run.trainer import (
    KeepHandler,
    choices,
    make_trainer,
    quiet_lightning,
)
from idaa_lightly.bench.schema import Record
from idaa_lightly.bench.semi.config import SemiConfig
from idaa_lightly.bench.semi.fixmatch import FixMatch, SemiSupervised
from idaa_lightly.bench.semi.results import save_convergence
from idaa_lightly.bench.semi.setup import SemiParts, make_semi_parts, resolve
from idaa_lightly.data import Images
from idaa_lightly.errors import UsageError
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.files import atomic_write, save_tensors
from idaa_lightly.loading import evaluation_batches, require_labelled
from idaa_lightly.training import LOG_EVERY, Evaluation

log = logging.getLogger(__name__)


def run(config: SemiConfig, out: Path, *, resume: bool = False) -> Record | None:
    """Train and evaluate one configuration, and write its run directory.

    Args:
        config: Configuration, resolved or not.
        out: The run directory.
        resume: Resume an interrupted run of this configuration. A finished one is left unchanged.

    Returns:
        The record. With several processes (DDP), only the first process returns it. The others return None.

    Raises:
        UsageError: An option cannot be used.
        DataError: The data set cannot be read or has no labels.
        RunFolderError: The directory holds something else, another process is using it, or it holds the same run and
            `resume` is False.
        FileFormatError: The checkpoint or the record of an earlier process cannot be read.
        NonFiniteError: The training diverged.
    """
    start = time.perf_counter(), time.process_time()
    config = resolve(config)
    data = read_data(config)
    require_labelled(data)
    parts = make_semi_parts(config, data)
    return run_in(out, parts.config, resume, lambda: _run(parts, out, start))


def _run(parts: SemiParts, out: Path, start: tuple[float, float]) -> Record | None:
    config, found = parts.config, last_checkpoint(out)
    resumed = found.content if found else {}
    images = SameImages(parts.data.name, parts.data.train.fingerprint)
    evaluation, timer = Evaluation(_evaluator(parts), parts.epochs), Timer()
    images.check(resumed)
    if found and found.content["idaa_lightly_epochs"] != parts.epochs:
        raise UsageError(f"{out} cannot be lengthened, because the schedule depends on the epochs: use another --out")
    with warnings.catch_warnings():
        quiet_lightning()
        trainer = make_trainer(
            config,
            max_epochs=parts.epochs,
            limit_train_batches=parts.steps,
            gradient_clip_val=config.clip,
            logger=make_loggers(config, out, resumed.get("global_step", 0)),
            callbacks=[
                KeepHandler(),
                Progression(parts.images_per_step, parts.epochs, parts.steps, evaluation),
                images,
                evaluation,
                timer,
                ModelCheckpoint(out / "checkpoints", filename="last", enable_version_counter=False),
            ],
            enable_progress_bar=False,
            log_every_n_steps=min(LOG_EVERY, parts.steps),
            plugins=[CheckpointFiles()],
        )
        if (config.batch_size or 1) % trainer.world_size:
            ranks = trainer.world_size
            raise UsageError(f"batch_size is {config.batch_size}, but {ranks} devices need a multiple of {ranks}")
        log.info(choices(config, trainer))
        _announce(parts, out, resumed.get("epoch"))
        fit(parts.augmentation, fit_context(parts, trainer.strategy.root_device), config.precision)
        module = SemiSupervised(
            cast(FixMatch, parts.method),
            parts.augmentation,
            epochs=parts.epochs,
            steps_per_epoch=parts.steps,
            seed=config.seed,
        )
        if found:
            require_fit(found, module, trainer)
            history = found.content["callbacks"][evaluation.state_key]["history"]
            cast(MetricsCSV, trainer.logger).set_evaluations(history, parts.steps)
        _train(parts, trainer, module, out, found)
        batch, *_ = next(iter(parts.loaders()))
        flops = step_flops(module, module.arguments(batch), trainer.strategy.root_device)
    if not trainer.is_global_zero:
        return None
    averaged = strip_dual_batchnorm(copy.deepcopy(module.method.averaged.module)).cpu()
    save_tensors(averaged.state_dict(), out / "model.pt")
    save_views(out / "views.png", _view_rows(parts, module.to(trainer.strategy.root_device)), parts.data.normalize)
    record = _record(parts, trainer, evaluation, timer, resumed.get("epoch"), start, flops)
    save_convergence([record], out / "curves.png")
    write_json(out / "record.json", record)
    with failures():
        finish(trainer.loggers, config, out, record, trainer.global_step)
    for warning in record.get("warnings", []):
        log.info(f"Warning: {warning}.")
    return record


def _evaluator(parts: SemiParts) -> Any:
    """Return a function that computes accuracies of the averaged weights, given the method and finished epochs.

    The test images are read before and after the training only.
    """

    def accuracy(method: FixMatch, images: Images) -> float:
        logits, labels = embed(method.averaged, evaluation_batches(parts.data, images))
        return float((logits.argmax(1) == labels).float().mean())

    def evaluate(method: FixMatch, epoch: int) -> dict[str, float]:
        found = {"accuracy_validation": accuracy(method, parts.validation)} if len(parts.validation) else {}
        if epoch in (0, parts.epochs):
            found["accuracy"] = accuracy(method, parts.data.test)
        words = (f"{name.replace('_', ' on ')} {100 * value:.2f} %" for name, value in found.items())
        log.info(f"epoch {epoch}/{parts.epochs}: {', '.join(words) or 'no validation images'}")
        return found

    return evaluate


def _announce(parts: SemiParts, out: Path, resumed_at: int | None) -> None:
    config, data = parts.config, parts.data
    used = f"{len(data.train)} images without labels" if cast(FixMatch, parts.method).unlabelled else "no others"
    log.info(
        f"{config.method} × {config.aug} on {config.data}: {len(parts.chosen)} labelled images and {used}, "
        f"{len(data.test)} test images of {data.image_size} px in {len(data.classes)} classes; {config.backbone}; "
        f"{quantity(parts.epochs, 'epoch')} of {quantity(parts.steps, 'step')}."
    )
    log.info(f"Run directory: {out}" if resumed_at is None else f"Resuming after epoch {resumed_at + 1}.")


def _train(parts: SemiParts, trainer: pl.Trainer, module: SemiSupervised, out: Path, found: Found | None) -> None:
    loaders = parts.loaders(trainer.world_size, trainer.global_rank)
    for loader in loaders.flattened if found else ():  # Workers load batches before Lightning tells them the epoch.
        loader.sampler.set_epoch(cast(Found, found).content["epoch"] + 1)
    checkpoint = adopt(found) if found else None
    if trainer.is_global_zero:  # Written only now, so that a refused command leaves the directory unused.
        with atomic_write(out / "config.toml") as temporary:
            temporary.write_text(parts.config.to_toml())
    begin(trainer.loggers, parts.config, out)
    fit_with_ranks(trainer, module, loaders, checkpoint)


def _view_rows(parts: SemiParts, module: SemiSupervised) -> dict[str, Tensor]:
    """Return rows of images: weak views, strong views, adversarial views and the rows of the augmentation."""
    samples = [parts.views[parts.epochs, index][0] for index in range(min(64, len(parts.views)))]
    strong, weak = (torch.stack(view).to(module.device) for view in zip(*samples, strict=True))
    if not module.method.unlabelled:
        return {"weak view": weak}
    targets = torch.zeros(len(weak), dtype=torch.long, device=module.device)
    views = module.train().objective(module.method, weak, targets, strong, weak).views
    rows = {"weak view": weak, "strong view x": strong}
    rows |= {} if views is None else {"x'": views, "x' − x": views - strong}
    return rows | parts.augmentation.panels(strong)


def _record(
    parts: SemiParts,
    trainer: pl.Trainer,
    evaluation: Evaluation,
    timer: Timer,
    resumed_at: int | None,
    start: tuple[float, float],
    flops: int,
) -> Record:
    config, history, fitted = parts.config, evaluation.history, parts.augmentation.fitted()
    train_s, method = timer.time_elapsed("train") - evaluation.seconds, cast(FixMatch, parts.method)
    per_step = (config.batch_size or 1) * (1 + method.ratio * method.unlabelled)
    # The loss may rise, because more and more pseudo-labels become confident.
    rows = [{key: row.get(key) for key in ("attack/fallbacks",)} for row in cast(MetricsCSV, trainer.logger).rows]
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "config": config.to_dict(),
        "initial": history[0],
        "last": history[-1],
        "history": history,
        "evaluation": {
            "accuracy": f"top-1 of the averaged weights on the {config.evaluate_on} images",
            "accuracy_validation": f"on {len(parts.validation)} images whose labels are not trained on",
        },
        "time": {
            **pace_of(parts.epochs * parts.steps * per_step, train_s),
            "flops_per_image": round(flops / per_step),
            "fit_flops": sum(part.get("flops", 0) for part in fitted.values()),
            "wall_s": round(time.perf_counter() - start[0], 2),
            "cpu_s": round(time.process_time() - start[1], 2),
            "resumed_at_epoch": resumed_at,
        },
        "warnings": warnings_of(history, rows, fitted),
        "fitted": fitted,
        "data": parts.data.facts(),
        "labelled": parts.labelled_facts(),
        **environment(trainer.strategy.root_device, trainer.world_size),
    }
    return cast(Record, record)
