"""Progress of a training: images per second and time left, on a bar or in lines."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn

from idaa_lightly.bench.run.cost import in_words
from idaa_lightly.training import LOG_EVERY, Evaluation

WARM_UP = 5
"""Optimiser steps at the start that no estimate uses, because compilation and caches slow them down."""
log = logging.getLogger(__name__)


class Pace:
    """Speed of a training, from the time of its steps after the warm-up.

    Args:
        images: Images per optimiser step.
        steps: Optimiser steps of the whole training.
        done: Steps that an earlier process has done.
    """

    def __init__(self, images: int, steps: int, done: int = 0) -> None:
        self.images, self.steps, self.done = images, steps, done
        self.first = done
        self.since: tuple[int, float] | None = None
        self.now = 0.0

    def tick(self, done: int, seconds: float) -> None:
        """Take note of finished steps.

        Args:
            done: Finished steps of the whole training.
            seconds: Reading of a clock that stands still during evaluations.
        """
        self.done, self.now = done, seconds
        if self.since is None and done - self.first >= WARM_UP:
            self.since = done, seconds

    @property
    def images_per_s(self) -> float:
        """Images per second after the warm-up. 0 if they are not known yet."""
        if self.since is None or self.done == self.since[0]:
            return 0.0
        return (self.done - self.since[0]) * self.images / max(1e-9, self.now - self.since[1])

    def speed_in_words(self) -> str:
        """Return images per second for people to read, such as "0.5 images/s" or "120 images/s"."""
        return f"{self.images_per_s:.{0 if self.images_per_s >= 10 else 1}f} images/s"

    def left(self, evaluations: int, seconds_each: float) -> float:
        """Return the estimated seconds to the end of the training. `images_per_s` must be known.

        Args:
            evaluations: Evaluations to come.
            seconds_each: Seconds of an evaluation.
        """
        return (self.steps - self.done) * self.images / self.images_per_s + evaluations * seconds_each


class Progression(pl.Callback):
    """Callback that shows the progress of a training: on a terminal as a bar, else as a line per tenth.

    Args:
        images: Images per optimiser step, over all devices.
        epochs: Epochs of the whole training.
        steps: Optimiser steps of an epoch.
        evaluation: Callback that evaluates. Its time is no training time.
        terminal: Console to draw the bar on. Default: stderr, if it is a terminal. Rich obeys NO_COLOR.
    """

    def __init__(
        self, images: int, epochs: int, steps: int, evaluation: Evaluation, terminal: Console | None = None
    ) -> None:
        self.images, self.epochs, self.steps, self.evaluation = images, epochs, steps, evaluation
        self.terminal = terminal or (Console(stderr=True) if sys.stderr.isatty() else None)
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the clock and the bar."""
        self.pace = Pace(self.images, self.epochs * self.steps, trainer.global_step)
        if self.terminal and trainer.is_global_zero:
            columns = ("epoch {task.fields[epoch]}", BarColumn(), TaskProgressColumn(), "{task.fields[state]}")
            redirect = sys.stdout.isatty()
            self.bar = Progress(*columns, console=self.terminal, transient=True, redirect_stdout=redirect)
            self.bar.add_task("", total=self.pace.steps, completed=self.pace.done, epoch="", state="")
            self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        """Update the bar every tenth step, or log a line at each tenth of the training."""
        before, done = self.pace.done, trainer.global_step
        if done == before:  # Gradients are accumulated.
            return
        self.pace.tick(done, time.perf_counter() - self.evaluation.seconds)
        tenth = 10 * done // self.pace.steps
        if self.bar and done % LOG_EVERY == 0:
            epoch = f"{trainer.current_epoch + 1}/{self.epochs}"
            self.bar.update(self.bar.task_ids[0], completed=done, epoch=epoch, state=self._state(trainer))
        elif not self.bar and tenth > 10 * before // self.pace.steps and tenth < 10 and self.pace.images_per_s:
            log.info(f"{10 * tenth} %: epoch {trainer.current_epoch + 1}/{self.epochs}, {self._state(trainer)}.")

    def _state(self, trainer: pl.Trainer) -> str:
        """Return loss, speed and time left in words."""
        loss = f"loss {float(trainer.callback_metrics['loss']):.4g}"
        if not self.pace.images_per_s:
            return loss
        finished = trainer.current_epoch
        left = self.pace.left(*self.evaluation.expected(finished))
        return f"{loss}, {self.pace.speed_in_words()}, {in_words(left)} left"

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the bar."""
        if self.bar:
            self.bar.stop()
