"""The LightningModule that trains every method, with an evaluation callback."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from idaa_lightly.ascent import Noise
from idaa_lightly.batchnorm import dual_batchnorm
from idaa_lightly.errors import ModelError, NonFiniteError, UsageError
from idaa_lightly.evaluation.identity import batch_figures
from idaa_lightly.learned import LatentNetwork
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import Augmentation, Method
from idaa_lightly.seeding import STREAMS, seed_of
from idaa_lightly.transforms.device import DeviceViews
from idaa_lightly.views import ViewGenerator

EPOCHS = "idaa_lightly_epochs"
"""Key of checkpoints: number of epochs of the whole training."""
LOG_EVERY = 10  # steps between logs; scalars are copied to the host only then


def to_fast_layout(module: nn.Module) -> None:
    """Convert a module to channels_last, which is faster. Results differ by rounding only.

    A module with a convolution whose output channels are not a multiple of 16 is left unchanged.

    Args:
        module: Module to convert in place.
    """
    widths = [part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)]
    if all(width % 16 == 0 for width in widths):  # others crash torch 2.15 with a segmentation fault on the CPU
        module.to(memory_format=torch.channels_last)


class Training(pl.LightningModule):
    """LightningModule whose resumed run equals an uninterrupted one, and that stops if something is NaN or infinite.

    Args:
        epochs: Number of epochs of the whole training.
        steps_per_epoch: Optimiser steps per epoch.
        accumulate: Batches per optimiser step.
        seed: Seed of the run. The seed and the epoch determine the random state at the start of each epoch, so that
            a resumed run equals an uninterrupted one.
    """

    first_bad_step: Tensor

    def __init__(self, *, epochs: int, steps_per_epoch: int, accumulate: int = 1, seed: int) -> None:
        super().__init__()
        self.schedule, self.accumulate, self.seed = (epochs, steps_per_epoch), accumulate, seed
        self.sums: dict[str, Tensor] = {}
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint with the version of the random streams and the length of the training."""
        checkpoint |= {"idaa_lightly_streams": STREAMS, EPOCHS: self.schedule[0]}

    def on_train_epoch_start(self) -> None:
        """Seed the epoch, so that a resumed run equals an uninterrupted one."""
        torch.manual_seed(seed_of("epoch", self.seed, self.current_epoch, self.global_rank))
        self.sums = {}

    def keep(self, total: Tensor, losses: dict[str, Tensor]) -> None:
        """Log the losses of a step, and remember the first one whose total is NaN or infinite.

        Args:
            total: Scalar that is minimised.
            losses: Scalars without gradients, by name in the logs.
        """
        bad = ~total.detach().isfinite() & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.global_step + 1, self.first_bad_step)
        self.log_dict(losses, on_epoch=False)
        self.sums = {name: value + self.sums.get(name, 0.0) for name, value in losses.items()}
        self.log("loss", total.detach(), prog_bar=True, logger=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Stop the run if the loss or the network is NaN or infinite.

        Losses are checked every 10 steps. At the end of an epoch, parameters and buffers are checked as well, before
        anything is evaluated or saved.

        Raises:
            NonFiniteError: A loss, parameter or buffer is NaN or infinite.
        """
        last = index + 1 == self.schedule[1] * self.accumulate
        if last:
            floats = [part for part in (*self.parameters(), *self.buffers()) if part.is_floating_point()]
            broken = ~torch.stack([part.isfinite().all() for part in floats]).all() & (self.first_bad_step < 0)
            self.first_bad_step = torch.where(broken, self.global_step, self.first_bad_step)
        if (last or (index + 1) % LOG_EVERY == 0) and self.first_bad_step >= 0:
            raise NonFiniteError(
                f"the loss or the network became NaN or infinite at step {int(self.first_bad_step)}: lower the "
                "learning rate or eps; checkpoints/last.ckpt, if there is one, is from an earlier epoch"
            )

    def on_train_epoch_end(self) -> None:
        """Log the mean losses of the epoch, and further figures.

        Lightning would log them after the checkpoint. A run that is killed in between would lose them.
        """
        batches = self.schedule[1] * self.accumulate
        figures = {f"{name}_epoch": float(value) / batches for name, value in self.sums.items()} | self.figures()
        for logger in self.loggers:
            logger.log_metrics(figures, self.global_step - 1)
            logger.save()

    def figures(self) -> dict[str, float]:
        """Return figures to log at the end of an epoch, besides mean losses."""
        return {}


class SelfSupervised(Training):
    """LightningModule that trains a method with an augmentation.

    A batch is (views, labels), or (pixels, labels) if `device_views` is given.

    Args:
        method: Method to train. It is converted by `dual_batchnorm` if the augmentation needs it.
        augmentation: Augmentation whose `fit` has been called.
        epochs: See `Training`.
        steps_per_epoch: See `Training`.
        accumulate: See `Training`.
        seed: See `Training`.
        device_views: Makes views from batches of pixels. None if the batches hold views already.
    """

    method: Method

    def __init__(
        self,
        method: Method,
        augmentation: Augmentation,
        *,
        epochs: int,
        steps_per_epoch: int,
        accumulate: int = 1,
        seed: int,
        device_views: DeviceViews | None = None,
    ) -> None:
        super().__init__(epochs=epochs, steps_per_epoch=steps_per_epoch, accumulate=accumulate, seed=seed)
        if augmentation.dual_batchnorm:
            dual_batchnorm(method)
        self.method = method
        self.objective, self.device_views = augmentation.loss(method), device_views
        to_fast_layout(self)
        for part in self.objective.modules():
            if isinstance(part, Noise):
                part.seed = seed  # Otherwise all runs would share their random directions.
        self.objective_lr = augmentation.lr
        self.fallbacks = 0
        self.gradient_seen = False

    def configure_optimizers(self) -> Any:
        """Return the method's optimiser and schedule, with a parameter group for the objective's own parameters."""
        groups: list[dict[str, Any]] = [{"params": [p for p in self.method.parameters() if p.requires_grad]}]
        if own := list(self.objective.parameters()):
            groups.append({"params": own} | ({} if self.objective_lr is None else {"lr": self.objective_lr}))
        optimizer, scheduler = self.method.optimizer(groups, *self.schedule)
        trained = {id(part) for group in optimizer.param_groups for part in group["params"]}
        if any(part.requires_grad and id(part) not in trained for part in own):
            raise ModelError(
                f"the optimizer of {type(self.method).__name__} leaves out parameters of "
                f"{type(self.objective).__name__}, but expected all groups that optimizer(parameters, ...) was given: "
                "pass them on"
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def losses(self, *views: Tensor) -> Any:
        """Return the objective's terms on views of the same samples.

        Raises:
            ModelError: The total has no gradient.
            UsageError: A BatchNorm gets a single sample.
        """
        try:
            output = self.objective(self.method, *views)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"a BatchNorm got one sample ({str(error).rpartition('got ')[2]}), but needs 2 or more: use a larger "
                "batch size per device, 4 or more if half of the batch is attacked"
            ) from error
        if torch.is_grad_enabled() and not output.total.requires_grad:
            raise ModelError(
                f"the loss of {type(self.method).__name__} with {type(self.objective).__name__} has no gradient, but "
                "expected one to train by: return a loss that is computed from the views without detach() or no_grad()"
            )
        return output

    def training_step(self, batch: tuple[Any, Tensor], index: int) -> Tensor:
        """Compute the objective on the views of a batch, and log its terms."""
        views: list[Tensor] = batch[0]
        if self.device_views is not None:
            views = self.device_views(batch[0], self.seed, self.current_epoch, index, self.global_rank)
        if index % self.accumulate == 0:
            self.method.before_step(self.global_step, *self.schedule)
        output = self.losses(*views)
        total: Tensor = output.total
        scalars = {name: value for name, value in output._asdict().items() if getattr(value, "ndim", None) == 0}
        self.keep(total, {f"loss/{name}": value.detach() for name, value in scalars.items()})
        if (self.global_step + 1) % min(LOG_EVERY, self.schedule[1]) == 0:
            self._log_identity(*getattr(output, "outputs", ()))
        return total

    def on_after_backward(self) -> None:
        """Check once, after the first backward pass, that there is something to learn.

        Raises:
            ModelError: No parameter of the backbone has a gradient.
            UsageError: The gradient of every parameter is exactly zero.
        """
        if self.gradient_seen:
            return
        backbone = [part for part in self.method.backbone.parameters() if part.requires_grad]
        if backbone and all(part.grad is None for part in backbone):
            raise ModelError(
                f"no parameter of the backbone has a gradient, but expected {type(self.method).__name__} to train it: "
                "compute the embeddings from self.backbone(images)"
            )
        if not any(part.grad is not None and part.grad.any() for part in self.method.parameters()):
            raise UsageError(
                "the gradient of the first step is exactly zero, so the run would train nothing: usual causes are a "
                "batch without negatives (a batch size of 1 per device), a temperature too large or too small, a "
                "precision of 16 bits, and images that are all equal"
            )
        self.gradient_seen = True

    @torch.no_grad()
    def _log_identity(self, anchor: Any = None, *views: Any) -> None:
        """Log how hard the second and the adversarial view are, and whether they keep the identity."""
        for name, view in zip(("second", "adversarial"), views, strict=False):
            if view is None:
                continue
            figures = batch_figures(embedding_of(anchor), embedding_of(view))
            self.log_dict({f"identity/{name}_{figure}": value for figure, value in figures.items()}, on_epoch=False)

    def figures(self) -> dict[str, float]:
        """Return the number of samples whose attack failed, see `ViewGenerator.fallbacks`, and the network's spread."""
        found: dict[str, float] = {}
        if searches := [part for part in self.objective.modules() if isinstance(part, ViewGenerator)]:
            before, self.fallbacks = self.fallbacks, sum(search.fallbacks for search in searches)
            found["attack/fallbacks"] = self.fallbacks - before
        for part in self.objective.modules():
            if isinstance(part, LatentNetwork):
                found["attack/spread"] = float(part.spread)
        return found


class Evaluation(pl.Callback):
    """Callback that evaluates before the first step, about ten times during training and at its end.

    Args:
        evaluate: Computes metrics from the method and the number of finished epochs. Must not change the method's
            train or eval mode.
        epochs: Number of epochs of the whole training.
    """

    def __init__(self, evaluate: Callable[[Method, int], dict[str, float]], epochs: int) -> None:
        self.evaluate, self.epochs, self.every = evaluate, epochs, max(1, round(epochs / 10))
        self.history: list[dict[str, float]] = []
        self.seconds = self.first_seconds = 0.0

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate the untrained method, unless the run is resumed."""
        if not self.history:
            self._evaluate(trainer, module.method, 0)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Evaluate after each tenth of the training, and after the last epoch."""
        epoch = trainer.current_epoch + 1
        if self.due(epoch):
            self._evaluate(trainer, module.method, epoch)

    def expected(self, finished: int) -> tuple[int, float]:
        """Return the number of evaluations to come, and the mean seconds of those during the training so far.

        Before the first of them, the second value is the duration of the evaluation before training. It is 0 if this
        process did not make that evaluation.

        Args:
            finished: Finished epochs.
        """
        later = [epoch for epoch in range(finished + 1, self.epochs + 1) if self.due(epoch)]
        during = len(self.history) - 1
        return len(later), self.seconds / during if during > 0 else self.first_seconds

    def due(self, epoch: int) -> bool:
        """Return True if the training is evaluated after this number of epochs."""
        return epoch % self.every == 0 or epoch == self.epochs

    def _evaluate(self, trainer: pl.Trainer, method: Any, epoch: int) -> None:
        start = time.perf_counter()
        if trainer.is_global_zero:
            metrics = self.evaluate(method, epoch)
            self.history.append({"epoch": epoch, **metrics})
            grouped = {f"evaluation/{name}": value for name, value in {"epochs_done": epoch, **metrics}.items()}
            for logger in trainer.loggers:
                logger.log_metrics(grouped, max(0, trainer.global_step - 1))
        trainer.strategy.barrier()
        spent = time.perf_counter() - start
        if epoch:
            self.seconds += spent  # Lightning's Timer includes it.
        else:
            self.first_seconds = spent

    def state_dict(self) -> dict[str, Any]:
        """Return the history and the evaluation time for the checkpoint."""
        return {"history": self.history, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the history and the evaluation time from a checkpoint."""
        self.history, self.seconds = state["history"], state["seconds"]
