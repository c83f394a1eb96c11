"""One run, from a configuration to a folder: fit, train, evaluate, write down."""

from __future__ import annotations

import copy
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, Timer, TQDMProgressBar
from rich.console import Console
from torch import Tensor, nn

from idaa_lightly.backbones import SMALL
from idaa_lightly.batchnorm import strip_dual_batchnorm
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import SCHEMA, environment, open_folder, write_json
from idaa_lightly.bench.run.cost import estimate, flops_per_image, in_words
from idaa_lightly.bench.run.figures import save_curves, save_views
from idaa_lightly.bench.run.setup import (
    Parts,
    fit,
    fit_context,
    make_augmentation,
    make_parts,
    make_trainer,
    progress,
    read_data,
    resolve,
)
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError, UsageError
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.evaluation.knn import knn_classify
from idaa_lightly.evaluation.linear import linear_probe
from idaa_lightly.evaluation.search import backend
from idaa_lightly.files import atomic_write, claim, load_tensors
from idaa_lightly.loading import evaluation_batches, require_trainable
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import Method
from idaa_lightly.training import LOG_EVERY, Evaluation, MetricsCSV, SelfSupervised

KNN_K, KNN_TEMPERATURE = 200, 0.1
EVALUATION_BATCH = 256


def run(config: RunConfig, out: Path, *, resume: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Trains and evaluates; leaves the run folder `out`.

    Args:
        config: need not be resolved.
        out: the run folder.
        resume: go on with an interrupted run of this configuration; a finished one is left as it is.
        console: for what is said on the way.

    Returns:
        The record; see `idaa_lightly.bench.record`. Of several processes (DDP) only the first one returns it.
    """
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    console = (console or Console(markup=False)) if first else Console(quiet=True)
    start = time.perf_counter(), time.process_time()
    config = resolve(config)
    augmentation = make_augmentation(config)  # a bad option is said before anything is read
    data = read_data(config, console)
    require_trainable(data, config.batch_size or 1)
    config = replace(config, image_size=data.image_size)
    parts = make_parts(config, augmentation, data)
    if not first:  # the first process has checked the folder; a finished run is finished for all
        return {} if (out / "record.json").exists() else _run(parts, out, console, start)
    open_folder(out, config, resume=resume)  # what is refused leaves no lock behind
    with claim(out):
        record = open_folder(out, config, resume=resume)
        if record is not None:
            console.print(f"{out} is finished already.")
            return record
        return _run(parts, out, console, start)


def features_of(backbone: nn.Module, data: DataSet) -> dict[str, Tensor]:
    """Frozen features: train_features (N, D), train_labels (N,), and the same for test."""
    step = progress("features", sum(-(-len(part) // EVALUATION_BATCH) for part in (data.train, data.test)))
    result = {}
    for split, images in (("train", data.train), ("test", data.test)):
        batches = evaluation_batches(data, images, EVALUATION_BATCH)
        result[f"{split}_features"], result[f"{split}_labels"] = embed(backbone, batches, lambda _: step(""))
    return result


class WithProjection(nn.Module):
    """Images (N, C, H, W) to the features of a method's backbone, and beside them what its loss compares."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """Of a method of several networks, those of the one that is trained: (N, num_features + D)."""
        found: list[Tensor] = []
        with self.method.backbone.register_forward_hook(lambda *call: found.append(call[2])):
            embedding = embedding_of(self.method(images))
        features = found[0] if found else self.method.backbone(images)
        return torch.cat([features.flatten(1), embedding], 1)


def knn_accuracy(features: dict[str, Tensor], k: int = KNN_K, temperature: float = KNN_TEMPERATURE) -> float:
    """Top-1 accuracy of the test features in the bank of train features."""
    ranked = knn_classify(
        features["train_features"], features["train_labels"], features["test_features"], k, temperature
    )
    return (ranked[:, 0] == torch.as_tensor(features["test_labels"])).double().mean().item()


def _run(parts: Parts, out: Path, console: Console, start: tuple[float, float]) -> dict[str, Any]:
    config, data = parts.config, parts.data
    checkpoint = out / "checkpoints" / "last.ckpt"
    resumed = load_tensors(checkpoint, "a checkpoint of this run") if checkpoint.exists() else {}
    if resumed and not {"state_dict", "pytorch-lightning_version"} <= resumed.keys():
        raise FileFormatError(f"{checkpoint} is not a checkpoint of this run")

    evaluation, timer = Evaluation(_evaluator(parts, console), parts.epochs), Timer()
    with warnings.catch_warnings():
        _quiet_lightning()
        steps = len(parts.views) // parts.batch_size
        trainer = _trainer(config, out, [evaluation, timer], steps, resumed.get("global_step", 0))
        context = fit_context(parts, trainer.strategy.root_device)
        _announce(parts, console, out, in_words(estimate(parts, context)), resumed.get("epoch"))
        fit(parts.augmentation, parts, context.device)
        module = SelfSupervised(
            parts.method,
            parts.augmentation,
            epochs=parts.epochs,
            steps_per_epoch=steps,
            seed=config.seed,
            device_views=parts.device_views,
        )
        flops = flops_per_image(parts, module, context.device)
        if config.compile:
            parts.method.backbone.compile()
        ranks, rank = trainer.world_size, trainer.global_rank
        if parts.batch_size % ranks:
            raise UsageError(f"batch_size is {parts.batch_size}, but {ranks} devices need a multiple of {ranks}")
        loader = parts.loader(parts.batch_size // ranks, ranks=ranks, rank=rank)
        if trainer.is_global_zero:  # only now: a refused command leaves the folder free
            with atomic_write(out / "config.toml") as temporary:
                temporary.write_text(config.to_toml())
        try:
            trainer.fit(module, loader, ckpt_path=checkpoint if resumed else None, weights_only=True)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
    if trainer.is_global_zero:
        backbone = strip_dual_batchnorm(copy.deepcopy(parts.method.backbone)).cpu()
        with atomic_write(out / "backbone.pt") as temporary:
            torch.save(backbone.state_dict(), temporary)
    module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
    rows = _view_rows(parts, module)  # by all processes: the loss may gather
    if not trainer.is_global_zero:
        return {}
    save_curves(out)
    save_views(out / "views.png", rows, data.normalize)
    train_time = timer.time_elapsed("train") - evaluation.seconds
    best = max(evaluation.history, key=lambda entry: entry["knn"])
    record = {
        "schema": SCHEMA,
        "config": config.to_dict(),
        "initial": evaluation.history[0],
        "last": evaluation.history[-1],
        "best": {"epoch": best["epoch"], "knn": best["knn"], "selected_on": "the test images: optimistic"},
        "history": evaluation.history,
        "evaluation": {
            "knn_k": min(KNN_K, len(data.train)),
            "knn_temperature": KNN_TEMPERATURE,
            "knn_backend": backend(len(data.test) * parts.method.num_features),
            "features": "backbone, in eval mode, of images without augmentation",
            "knn_projection": "on what the loss compares: the projection, or the prediction if there is one",
            "linear": "L-BFGS on standardised features, L2 strength chosen on a tenth of train",
        },
        "time": {
            "train_s": round(train_time, 2),
            "images_per_s": round(parts.epochs * steps * parts.batch_size / train_time, 1),
            "flops_per_image": flops,
            "wall_s": round(time.perf_counter() - start[0], 2),
            "cpu_s": round(time.process_time() - start[1], 2),
            "resumed_at_epoch": resumed.get("epoch"),
        },
        "fitted": parts.augmentation.fitted(),
        "data": {
            **data.facts(),
            "views": {"by": "device" if parts.device_views else "loader", "because": parts.views_reason},
        },
        **environment(trainer.strategy.root_device, trainer.world_size),
    }
    write_json(out / "record.json", record)
    return record


def _evaluator(parts: Parts, console: Console) -> Callable[[Method, int], dict[str, float]]:
    """From the method and the epochs done to metrics: kNN, and at both ends of the training everything else."""
    data, neighbours = parts.data, min(KNN_K, len(parts.data.train))

    def evaluate(method: Method, epoch: int) -> dict[str, float]:
        ends = epoch in (0, parts.epochs)
        whole = features_of(WithProjection(method) if ends else method.backbone, data)
        features = {name: part[:, : method.num_features] if part.ndim == 2 else part for name, part in whole.items()}
        metrics = {"knn": knn_accuracy(features, k=neighbours)}
        if ends:
            beside = {name: part[:, method.num_features :] if part.ndim == 2 else part for name, part in whole.items()}
            probe = linear_probe(*features.values())
            metrics |= {"knn_projection": knn_accuracy(beside, k=neighbours)}
            metrics |= {"linear": probe.accuracy, "linear_l2": probe.l2}
        if epoch == 0 and data.image_size <= SMALL:
            metrics |= {"knn_pixels": knn_accuracy(features_of(nn.Flatten(), data), k=neighbours)}
        console.print(f"epoch {epoch}/{parts.epochs}: kNN {100 * metrics['knn']:.2f} %", highlight=False)
        return metrics

    return evaluate


def _announce(parts: Parts, console: Console, out: Path, duration: str, resumed_at: int | None) -> None:
    config, data = parts.config, parts.data
    stem = " with the CIFAR stem" if data.image_size <= SMALL else ""
    console.print(
        f"{config.method} × {config.aug} on {config.data}: {len(data.train)} training and {len(data.test)} test images "
        f"of {data.image_size} px in {len(data.classes)} classes; {config.backbone}{stem}; {parts.epochs} epochs of "
        f"{len(parts.views) // parts.batch_size} steps, {parts.batch_size} images each; "
        f"kNN by {backend(len(data.test) * parts.method.num_features)}.",
        highlight=False,
    )
    by = "the device, in batches" if parts.device_views else "the loader, image by image"
    console.print(f"Views by {by} ({parts.views_reason}).", highlight=False)
    if resumed_at is not None:
        console.print(f"Going on after epoch {resumed_at + 1}; all of it would take about {duration}.")
    else:
        console.print(f"Takes about {duration}. Run folder: {out}", highlight=False)


def _trainer(config: RunConfig, out: Path, callbacks: list[pl.Callback], steps: int, resumed_at: int) -> pl.Trainer:
    saving = ModelCheckpoint(out / "checkpoints", filename="last", enable_version_counter=False)
    bar = sys.stderr.isatty()
    return make_trainer(
        config,
        max_epochs=config.epochs,
        logger=MetricsCSV(out / "metrics.csv", resumed_at),
        callbacks=[*callbacks, saving, *([TQDMProgressBar(refresh_rate=LOG_EVERY)] if bar else [])],
        enable_progress_bar=bar,
        log_every_n_steps=min(LOG_EVERY, steps),
    )


def _quiet_lightning() -> None:
    """Silences what does not concern our users: hints on workers and on a validation loop that we replace."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for text in ("does not have many workers", "Checkpoint directory .* exists", "The dirpath has changed", "LeafSpec"):
        warnings.filterwarnings("ignore", message=f".*{text}")


def _view_rows(parts: Parts, module: SelfSupervised) -> dict[str, Tensor]:
    """x, the second view or x', and what the augmentation adds. Disturbs the network's running statistics."""
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
