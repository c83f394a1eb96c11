"""Lightning's training loop in a run directory: its callbacks, its start or resumption, and its cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pytorch_lightning.callbacks import ModelCheckpoint, Timer
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.record import pace_of
from idaa_lightly.bench.run.checkpoint import CheckpointFiles, Found, adopt, require_fit
from idaa_lightly.bench.run.inputs import SameInputs
from idaa_lightly.bench.run.lengthen import keep_results, lengthened
from idaa_lightly.bench.run.loggers import MetricsCSV, begin, failures, make_loggers
from idaa_lightly.bench.run.pace import Progression
from idaa_lightly.bench.run.ranks import supervisor
from idaa_lightly.bench.run.trainer import KeepHandler, make_trainer
from idaa_lightly.errors import UsageError
from idaa_lightly.files import atomic_write
from idaa_lightly.loading import EpochSampler
from idaa_lightly.training import LOG_EVERY, Evaluation, Training


class Loop:
    """Training of one module in a run directory, from its start or from its last checkpoint.

    Attributes:
        trainer: Lightning's Trainer.
        evaluation: Callback that evaluates, with its history.

    Args:
        config: Resolved configuration. Its `batch_size` is over all devices.
        out: The run directory.
        found: The last checkpoint, if there is one.
        inputs: Callback that knows the training images and files.
        evaluate: See `Evaluation`.
        images_per_step: Images per optimiser step, over all devices, for the pace.
        epochs: Number of epochs of the whole training.
        steps: Optimiser steps per epoch.
        every: Epochs between checkpoints.
        options: Further arguments of the Trainer.

    Raises:
        DataError: The images or files have changed since the run was begun.
        UsageError: The devices cannot be used, or do not divide the batch.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        found: Found | None,
        inputs: SameInputs,
        evaluate: Callable[[Any, int], dict[str, float]],
        *,
        images_per_step: int,
        epochs: int,
        steps: int,
        every: int = 1,
        **options: Any,
    ) -> None:
        self.config, self.out, self.found, self.steps = config, out, found, steps
        resumed = found.content if found else {}
        self.resumed_at: int | None = resumed.get("epoch")
        self.images = epochs * steps * images_per_step
        self.evaluation, self.timer = Evaluation(evaluate, epochs), Timer()
        inputs.check(resumed)
        progression = Progression(images_per_step, epochs, steps, self.evaluation)
        saving = ModelCheckpoint(
            out / "checkpoints", filename="last", enable_version_counter=False, every_n_epochs=every
        )
        self.trainer = make_trainer(
            config,
            max_epochs=epochs,
            limit_train_batches=steps * config.accumulate,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.clip,
            logger=make_loggers(config, out, resumed.get("global_step", 0)),
            callbacks=[KeepHandler(), progression, inputs, self.evaluation, self.timer, saving],
            enable_progress_bar=False,
            log_every_n_steps=min(LOG_EVERY, steps),
            plugins=[CheckpointFiles(config.save_every)],
            **options,
        )
        ranks = self.trainer.world_size
        if (config.batch_size or 1) % ranks:
            raise UsageError(f"batch_size is {config.batch_size}, but {ranks} devices need a multiple of {ranks}")

    def fit(self, module: Training, batches: DataLoader[Any] | CombinedLoader) -> None:
        """Train a module to the end. A checkpoint of another length is adapted first.

        Args:
            module: Module to train.
            batches: Data loader of this process, or several combined.

        Raises:
            FileFormatError: The checkpoint does not fit the module.
            UsageError: The run cannot be lengthened.
            NonFiniteError: The training diverged.
            KeyboardInterrupt: The training was interrupted.
        """
        found, trainer = self.found, self.trainer
        if found:
            require_fit(found, module, trainer)
            found = lengthened(found, module, self.evaluation)
            evaluated = found.content["callbacks"][self.evaluation.state_key]
            cast(MetricsCSV, trainer.logger).set_evaluations(evaluated["history"], self.steps)
            # Worker processes load the first batches before Lightning tells the sampler the epoch.
            for loader in batches.flattened if isinstance(batches, CombinedLoader) else [batches]:
                cast(EpochSampler, loader.sampler).set_epoch(found.content["epoch"] + 1)
        if found and found.begun_with and trainer.is_global_zero:  # before the checkpoint is that of a longer run
            keep_results(self.out, found.begun_with)
        checkpoint = adopt(found) if found else None
        if trainer.is_global_zero:  # Written only now, so that a refused command leaves the directory unused.
            with atomic_write(self.out / "config.toml") as temporary:
                temporary.write_text(self.config.to_toml(), encoding="utf-8")
        begin(trainer.loggers, self.config, self.out)
        if trainer.global_rank == 0 and (watching := supervisor()):
            watching.send(cast(Any, trainer.strategy).cluster_environment.main_port)  # It starts the other ranks.
        try:
            with failures():
                trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # Lightning turns KeyboardInterrupt and its subclasses into SystemExit.
            raise (
                stop.__context__ if isinstance(stop.__context__, KeyboardInterrupt) else KeyboardInterrupt()
            ) from None

    def time(self, start: tuple[float, float]) -> dict[str, float | int | None]:
        """Return what the training took, for `time` in a record.

        Args:
            start: `perf_counter` and `process_time` at the start of the run.
        """
        return {
            **pace_of(self.images, self.timer.time_elapsed("train") - self.evaluation.seconds),
            "wall_s": round(time.perf_counter() - start[0], 2),
            "cpu_s": round(time.process_time() - start[1], 2),
            "resumed_at_epoch": self.resumed_at,
        }
