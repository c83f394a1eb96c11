"""Training of one semi-supervised configuration into a run directory."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from idaa_lightly.batchnorm import strip_dual_batchnorm
from idaa_lightly.bench.progress import quantity
from idaa_lightly.bench.record import SCHEMA, environment, run_in, write_json
from idaa_lightly.bench.run.checkpoint import last_checkpoint
from idaa_lightly.bench.run.cost import step_flops
from idaa_lightly.bench.run.figures import save_views
from idaa_lightly.bench.run.fitting import fit, fit_context
from idaa_lightly.bench.run.health import warnings_of
from idaa_lightly.bench.run.inputs import SameInputs
from idaa_lightly.bench.run.loggers import MetricsCSV, failures, finish
from idaa_lightly.bench.run.loop import Loop
from idaa_lightly.bench.run.setup import read_data
from idaa_lightly.bench.run.trainer import choices, quiet_lightning
from idaa_lightly.bench.schema import Record
from idaa_lightly.bench.semi.config import SemiConfig
from idaa_lightly.bench.semi.fixmatch import FixMatch, SemiSupervised
from idaa_lightly.bench.semi.results import save_convergence
from idaa_lightly.bench.semi.setup import SemiParts, make_semi_parts, resolve
from idaa_lightly.data import Images
from idaa_lightly.errors import UsageError
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.files import save_tensors
from idaa_lightly.loading import evaluation_batches, require_labelled

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
    if found and found.content["idaa_lightly_epochs"] != parts.epochs:
        raise UsageError(f"{out} cannot be lengthened, because the schedule depends on the epochs: use another --out")
    inputs = SameInputs(config, parts.data.name, parts.data.train.fingerprint)
    with warnings.catch_warnings():
        quiet_lightning()
        loop = Loop(
            config, out, found, inputs, _evaluator(parts),
            images_per_step=parts.images_per_step, epochs=parts.epochs, steps=parts.steps,
        )  # fmt: skip
        trainer, device = loop.trainer, loop.trainer.strategy.root_device
        log.info(choices(config, trainer))
        _announce(parts, out, loop.resumed_at)
        fit(parts.augmentation, fit_context(parts, device), config.precision)
        module = SemiSupervised(
            cast(FixMatch, parts.method),
            parts.augmentation,
            epochs=parts.epochs,
            steps_per_epoch=parts.steps,
            seed=config.seed,
        )
        loop.fit(module, parts.loaders(trainer.world_size, trainer.global_rank))
        if not trainer.is_global_zero:
            return None
        batch, *_ = next(iter(parts.loaders()))
        flops = step_flops(module, module.arguments(batch), device, config.precision)
    averaged = strip_dual_batchnorm(copy.deepcopy(module.method.averaged.module)).cpu()
    save_tensors(averaged.state_dict(), out / "model.pt")
    save_views(out / "views.png", _view_rows(parts, module.to(device)), parts.data.normalize)
    record = _record(parts, loop, start, flops)
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


def _record(parts: SemiParts, loop: Loop, start: tuple[float, float], flops: int) -> Record:
    config, trainer, history, fitted = parts.config, loop.trainer, loop.evaluation.history, parts.augmentation.fitted()
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
            **loop.time(start),
            "flops_per_image": round(flops / parts.images_per_step),
            "fit_flops": sum(part.get("flops", 0) for part in fitted.values()),
        },
        "warnings": warnings_of(history, rows, fitted),
        "fitted": fitted,
        "data": parts.data.facts(),
        "labelled": parts.labelled_facts(),
        **environment(trainer.strategy.root_device, trainer.world_size),
    }
    return cast(Record, record)
