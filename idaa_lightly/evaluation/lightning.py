"""kNN evaluation inside Lightning: in the place of Lightly's `KNNClassifier`, and during anybody's training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.utils.benchmarking import KNNClassifier
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from idaa_lightly.errors import DataError, ModelError, UsageError
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.evaluation.knn import knn_places, neighbours_that_vote
from idaa_lightly.evaluation.search import prepared


class FaissKNNClassifier(KNNClassifier):  # type: ignore[misc]
    """Lightly's `KNNClassifier`, searched by FAISS: the same arguments, data loaders, accuracies and names in the log.

    The queries are kept and searched in large blocks, so val_knn_top1/dataloader_idx_1 and val_knn_top5/... are logged
    once, with the last batch. Either loader may come first, batches may be (images, labels) or (images, labels, names),
    k may be larger than the bank, and features in half precision are compared in float32. With DDP the bank is gathered
    once, and each process searches its own queries; Lightning's sampler then repeats up to one image a process.

    Differs from Lightly's: a class that got no vote is a miss in top-5, where Lightly ranks such classes at random. It
    shows where the k neighbours have fewer than five classes.

    Args:
        model: images to features; None where the batches hold features.
        num_classes: of the data.
        knn_k: neighbours that vote.
        knn_t: temperature of the votes.
        train_dataloader_idx: which of the loaders gives the bank.
        val_dataloader_idx: which gives the queries.
        topk: accuracies to log.
        feature_dtype: in which features are kept; torch.float16 halves the memory.
        normalize: compare by cosine; False compares by the inner product.

    Raises:
        DataError: a loader gave nothing, or labels do not fit.
        NonFiniteError: NaN or infinity in the features.
        UsageError: knn_k or knn_t out of range.
    """

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's features; refuses settings before any are made."""
        neighbours_that_vote([self.knn_k], [self.knn_t], self.knn_k)
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._done = False

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (N, C, H, W), normalised and of `feature_dtype`."""
        features = (images if self.model is None else self.model(images)).flatten(1)
        return prepared(features, "features", normalize=self.normalize).to(self.feature_dtype)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keeps the features and labels of a batch."""
        if dataloader_idx in (self.train_dataloader_idx, self.val_dataloader_idx):
            images, targets = images_and_labels(batch)
            self._kept.setdefault(dataloader_idx, []).append((self(images).cpu(), targets.cpu()))
        last = batch_idx + 1 == self.trainer.num_val_batches[dataloader_idx]
        if last and dataloader_idx == self.val_dataloader_idx > self.train_dataloader_idx:
            self._evaluate("")  # Lightning adds the loader; callbacks, Lightly's MetricCallback, see what is logged now

    def on_validation_epoch_end(self) -> None:
        """Evaluates where the bank came last, or a loader could not say how many batches it has."""
        if not self._done:
            self._evaluate(f"/dataloader_idx_{self.val_dataloader_idx}")

    def _evaluate(self, suffix: str) -> None:
        """Searches, votes and logs."""
        bank, labels = map(self._gathered, self._concatenated(self.train_dataloader_idx, "bank"))
        queries, targets = self._concatenated(self.val_dataloader_idx, "queries")
        setting = [self.knn_k], [self.knn_t], self.num_classes
        places = knn_places(bank, labels, queries.to(self.device), targets, *setting, normalize=self.normalize)[0, 0]
        sums = torch.tensor([len(places), *((places < k).sum() for k in self.topk)], device=self.device)
        count, *hits = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        accuracies = {f"val_knn_top{k}{suffix}": hit / count for k, hit in zip(self.topk, hits, strict=True)}
        self.log_dict(accuracies, prog_bar=True, sync_dist=True, batch_size=count, add_dataloader_idx=not suffix)
        self._done = True

    def _concatenated(self, loader: int, name: str) -> tuple[Tensor, Tensor]:
        if loader not in self._kept:
            raise DataError(
                f"no batch came from data loader {loader} for the {name}: give trainer.validate a list of two, with "
                f"train_dataloader_idx={self.train_dataloader_idx} and val_dataloader_idx={self.val_dataloader_idx}"
            )
        features, targets = zip(*self._kept.pop(loader), strict=True)
        return torch.cat(features), torch.cat(targets)

    def _gathered(self, part: Tensor) -> Tensor:
        """The rows of all processes, also where they are not equally many."""
        if self.trainer.world_size == 1:
            return part
        return torch.cat([rows.cpu() for rows in gather_all_tensors(part.to(self.device))])


class KNNCallback(pl.Callback):
    """Logs val_knn_top1 and val_knn_top5 of any LightningModule while it trains.

    Training goes on as if nothing had happened: the mode of every part and the random state of the CPU are restored.
    With DDP the first process evaluates and the others wait; not for sharded models.

    Args:
        bank: batches (images, labels, ...) of training images without augmentation; it is read at each evaluation.
        queries: the same of the validation images.
        k: neighbours that vote; the size of the bank, with a warning, where it is larger.
        temperature: of the votes.
        backbone: dotted name of the part of the module that gives features, such as "method.backbone"; "" for the
            module itself.
        every: epochs between evaluations.
        topk: accuracies to log.

    Example:
        >>> knn = KNNCallback(train_loader, test_loader, every=10)
        >>> trainer = Trainer(callbacks=[knn, ModelCheckpoint(monitor="val_knn_top1", mode="max", every_n_epochs=10)])
    """

    def __init__(
        self,
        bank: Iterable[Any],
        queries: Iterable[Any],
        *,
        k: int = 200,
        temperature: float = 0.1,
        backbone: str = "backbone",
        every: int = 1,
        topk: Sequence[int] = (1, 5),
    ) -> None:
        neighbours_that_vote([k], [temperature], k)
        if every < 1:
            raise UsageError(f"every is {every}, but expected 1 epoch or more between evaluations")
        self.bank, self.queries, self.backbone, self.every = bank, queries, backbone, every
        self.k, self.temperature, self.topk = k, temperature, topk

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluates after every `every` epochs, and logs."""
        if (trainer.current_epoch + 1) % self.every:
            return
        accuracies = self._evaluate(pl_module) if trainer.is_global_zero else {}
        accuracies = trainer.strategy.broadcast(accuracies)
        pl_module.log_dict(accuracies, prog_bar=True, sync_dist=True)

    def _evaluate(self, module: pl.LightningModule) -> dict[str, float]:
        try:
            backbone = module.get_submodule(self.backbone)
        except AttributeError as error:
            raise ModelError(
                f"{type(module).__name__} has no part {self.backbone!r}, but has "
                f"{', '.join(name for name, _ in module.named_children())}: name what gives features, "
                'KNNCallback(..., backbone="...")'
            ) from error
        with torch.random.fork_rng(devices=[]):  # data loaders draw a seed
            bank, labels = embed(backbone, map(images_and_labels, self.bank))
            queries, targets = embed(backbone, map(images_and_labels, self.queries))
        places = knn_places(bank, labels, queries, targets, [self.k], [self.temperature])
        return {f"val_knn_top{k}": (places < k).double().mean().item() for k in self.topk}


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """The first two parts of a batch, which may have more, as those of Lightly's data sets have."""
    if not (isinstance(batch, (tuple, list)) and len(batch) > 1 and all(isinstance(x, Tensor) for x in batch[:2])):
        got = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise DataError(f"a batch is {got}, but expected images and labels, two tensors, and what else there may be")
    return batch[0], batch[1]
