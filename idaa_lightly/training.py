"""The one LightningModule, and its callbacks."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn

from idaa_lightly.ascent import Noise
from idaa_lightly.batchnorm import dual_batchnorm
from idaa_lightly.errors import NonFiniteError
from idaa_lightly.evaluation.identity import batch_figures
from idaa_lightly.files import atomic_write
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import Augmentation, Method
from idaa_lightly.seeding import STREAMS, seed_of
from idaa_lightly.transforms.device import DeviceViews

LOG_EVERY = 10  # steps; scalars leave the device only then


def to_fast_layout(module: nn.Module) -> None:
    """Puts convolutions into channels_last, which is the same up to rounding, and faster."""
    widths = [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)]
    if all(width % 16 == 0 for width in widths):  # narrower ones end torch 2.15 in a segmentation fault on the CPU
        module.to(memory_format=torch.channels_last)


class SelfSupervised(pl.LightningModule):
    """Trains a method with an augmentation on batches of (views, labels), or of (pixels, labels).

    Args:
        method: converted by `dual_batchnorm` here if the augmentation needs it.
        augmentation: fitted already.
        epochs: of the whole training.
        steps_per_epoch: optimiser steps.
        seed: of the run; epoch e begins with the random state that the seed and e give, resumed or not.
        device_views: makes the views of pixels; None where the batches are views already.
    """

    first_bad_step: Tensor
    method: Method

    def __init__(
        self,
        method: Method,
        augmentation: Augmentation,
        *,
        epochs: int,
        steps_per_epoch: int,
        seed: int,
        device_views: DeviceViews | None = None,
    ) -> None:
        super().__init__()
        if augmentation.dual_batchnorm:
            dual_batchnorm(method)
        self.method = method
        self.objective, self.device_views = augmentation.loss(method), device_views
        to_fast_layout(self)
        for part in self.objective.modules():
            if isinstance(part, Noise):
                part.seed = seed  # or all seeds would share their random directions
        self.objective_lr = augmentation.lr
        self.schedule, self.seed = (epochs, steps_per_epoch), seed
        self.sums: dict[str, Tensor] = {}
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)

    def configure_optimizers(self) -> Any:
        """The method's recipe; the objective's own parameters are a group of their own."""
        groups: list[dict[str, Any]] = [{"params": [p for p in self.method.parameters() if p.requires_grad]}]
        if own := list(self.objective.parameters()):
            groups.append({"params": own} | ({} if self.objective_lr is None else {"lr": self.objective_lr}))
        optimizer, scheduler = self.method.optimizer(groups, *self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint with the version of the random streams."""
        checkpoint["idaa_lightly_streams"] = STREAMS

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, so that a resumed run goes on as an uninterrupted one would."""
        torch.manual_seed(seed_of("epoch", self.seed, self.current_epoch, self.global_rank))
        self.sums = {}

    def training_step(self, batch: tuple[Any, Tensor], index: int) -> Tensor:
        """One step of the objective on the views."""
        views: list[Tensor] = batch[0]
        if self.device_views is not None:
            views = self.device_views(batch[0], self.seed, self.current_epoch, index, self.global_rank)
        self.method.before_step(self.global_step, *self.schedule)
        output = self.objective(self.method, *views)
        total: Tensor = output.total
        bad = ~total.detach().isfinite() & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.global_step + 1, self.first_bad_step)
        scalars = {name: value for name, value in output._asdict().items() if getattr(value, "ndim", None) == 0}
        losses = {f"loss/{name}": value.detach() for name, value in scalars.items()}
        self.log_dict(losses, on_epoch=False)
        if (self.global_step + 1) % min(LOG_EVERY, self.schedule[1]) == 0:
            self._log_identity(*getattr(output, "outputs", ()))
        self.sums = {name: value + self.sums.get(name, 0.0) for name, value in losses.items()}
        self.log("loss", total.detach(), prog_bar=True, logger=False)
        return total

    @torch.no_grad()
    def _log_identity(self, anchor: Any = None, *views: Any) -> None:
        """Is the second view hard, and the adversarial one, and do they keep the identity?"""
        for name, view in zip(("second", "adversarial"), views, strict=False):
            figures = batch_figures(embedding_of(anchor), embedding_of(view))
            self.log_dict({f"identity/{name}_{figure}": value for figure, value in figures.items()}, on_epoch=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Stops at NaN: looks now and then, and at an epoch's end before anything is evaluated or saved."""
        last = index + 1 == self.schedule[1]
        if last:
            floats = [part for part in (*self.parameters(), *self.buffers()) if part.is_floating_point()]
            broken = ~torch.stack([part.isfinite().all() for part in floats]).all() & (self.first_bad_step < 0)
            self.first_bad_step = torch.where(broken, self.global_step, self.first_bad_step)
        if (last or (index + 1) % LOG_EVERY == 0) and self.first_bad_step >= 0:
            raise NonFiniteError(
                f"the loss or the network became NaN or infinite at step {int(self.first_bad_step)}: lower the "
                "learning rate or eps; checkpoints/last.ckpt, if there is one, is from before"
            )

    def on_train_epoch_end(self) -> None:
        """Logs the means of the epoch.

        Lightning would do so after the checkpoint, and a run that is killed in between would lose them.
        """
        if self.logger is not None:
            means = {f"{name}_epoch": float(value) / self.schedule[1] for name, value in self.sums.items()}
            self.logger.log_metrics(means, self.global_step - 1)
            self.logger.finalize("epoch")


class Evaluation(pl.Callback):
    """Evaluates before the first step, about ten times during training and at its end.

    Args:
        evaluate: from the method and the number of epochs done to metrics; it leaves the method's mode as it is.
        epochs: of the whole training.
    """

    def __init__(self, evaluate: Callable[[Method, int], dict[str, float]], epochs: int) -> None:
        self.evaluate, self.every = evaluate, max(1, round(epochs / 10))
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluates the untrained method."""
        if not self.history:
            self._evaluate(trainer, module.method, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluates after every tenth of the epochs."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            self._evaluate(trainer, module.method, epoch)

    def _evaluate(self, trainer: pl.Trainer, method: Any, epoch: int) -> None:
        start = time.perf_counter()
        if trainer.is_global_zero:
            metrics = self.evaluate(method, epoch)
            self.history.append({"epoch": epoch, **metrics})
            if trainer.logger is not None:
                trainer.logger.log_metrics({"epochs_done": epoch, **metrics}, max(0, trainer.global_step - 1))
        trainer.strategy.barrier()
        self.seconds += time.perf_counter() - start if epoch else 0.0  # what Lightning's Timer has counted too

    def state_dict(self) -> dict[str, Any]:
        """History and time, for the checkpoint."""
        return {"history": self.history, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """History and time up to the checkpoint."""
        self.history, self.seconds = state["history"], state["seconds"]


class MetricsCSV(Logger):
    """Writes metrics.csv, a row per logged step, after each epoch; a resumed run goes on where it was.

    Lightning's CSVLogger deletes what an earlier, interrupted process wrote.

    Args:
        path: of the file.
        resume_at: steps done in the checkpoint that is resumed; later rows of the file are dropped. 0 starts anew.
    """

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if resume_at and path.exists():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) < resume_at]

    @property
    def name(self) -> str:
        """Of the file."""
        return self.path.name

    @property
    def version(self) -> str:
        """There is one only."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.toml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Adds to the row of this step."""
        if not self.rows or int(self.rows[-1]["step"]) != step:
            self.rows.append({"step": step})
        self.rows[-1] |= {name: float(value) for name, value in metrics.items()}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the file."""
        names = ["step", "epoch", *sorted({name for row in self.rows for name in row} - {"step", "epoch"})]
        with atomic_write(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
