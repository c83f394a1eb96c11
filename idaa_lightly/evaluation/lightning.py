"""kNN evaluation for Lightning: a replacement of Lightly's `KNNClassifier`, and a callback for any training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.utils.benchmarking import KNNClassifier
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from idaa_lightly.errors import DataError, ModelError, UsageError
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.evaluation.knn import knn_places, neighbours_that_vote
from idaa_lightly.evaluation.search import prepared
from idaa_lightly.evaluation.unlabelled import figures
from idaa_lightly.outputs import first_of


class FaissKNNClassifier(KNNClassifier):  # type: ignore[misc]
    """Drop-in replacement of Lightly's `KNNClassifier` that searches with FAISS.

    Arguments, data loaders, accuracies and logged names are those of Lightly. Queries are kept and searched in large
    blocks, so val_knn_top1/dataloader_idx_1 and val_knn_top5/... are logged once, with the last batch. Either data
    loader may come first. Batches may be (images, labels) or (images, labels, names). `knn_k` may be larger than the
    bank. Half-precision features are compared in float32.

    With DDP, the bank is gathered once and each process searches its own queries. Lightning's sampler then repeats up
    to one image per process.

    Differs from Lightly: a class without a vote is a miss in top-5. Lightly ranks such classes arbitrarily. The results
    differ only if the k neighbours have fewer than five classes.

    Args:
        model: Module from images to features. None if the batches hold features.
        num_classes: Number of classes.
        knn_k: Number of neighbours that vote.
        knn_t: Temperature of the votes.
        train_dataloader_idx: Index of the data loader that gives the bank.
        val_dataloader_idx: Index of the data loader that gives the queries.
        topk: Values of k for which the top-k accuracy is logged.
        feature_dtype: Type in which features are stored. torch.float16 halves the memory.
        normalize: Compare by cosine. False compares by the inner product.

    Raises:
        DataError: A data loader is empty, or labels do not match the features or `num_classes`.
        NonFiniteError: The features hold NaN or infinity.
        UsageError: `knn_k` or `knn_t` is out of range.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> features = TensorDataset(torch.eye(4), torch.arange(4))  # images, with a model
        >>> bank, queries = DataLoader(features), DataLoader(features)
        >>> classifier = FaissKNNClassifier(
        ...     None, 4, 2, 0.1, train_dataloader_idx=0, val_dataloader_idx=1
        ... )
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> _, accuracies = trainer.validate(classifier, [bank, queries], verbose=False)
        >>> accuracies["val_knn_top1/dataloader_idx_1"]
        1.0
    """

    def on_validation_epoch_start(self) -> None:
        """Clear the features of the last epoch, and check `knn_k` and `knn_t` before features are computed."""
        neighbours_that_vote([self.knn_k], [self.knn_t], self.knn_k)
        self._kept: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._done = False

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (N, D) of images (N, C, H, W), normalised unless disabled, in `feature_dtype`."""
        features = (images if self.model is None else self.model(images)).flatten(1)
        return prepared(features, "features", normalize=self.normalize).to(self.feature_dtype)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Store the features and labels of a batch. Evaluate after the last batch of queries if the bank came first."""
        if dataloader_idx in (self.train_dataloader_idx, self.val_dataloader_idx):
            images, targets = images_and_labels(batch)
            self._kept.setdefault(dataloader_idx, []).append((self(images).cpu(), targets.cpu()))
        last = batch_idx + 1 == self.trainer.num_val_batches[dataloader_idx]
        if last and dataloader_idx == self.val_dataloader_idx > self.train_dataloader_idx:
            # Lightly's MetricCallback sees only what is logged here, and Lightning adds the suffix.
            self._evaluate("")

    def on_validation_epoch_end(self) -> None:
        """Evaluate if it has not been done: the bank came last, or the number of batches was unknown."""
        if not self._done:
            self._evaluate(f"/dataloader_idx_{self.val_dataloader_idx}")

    def _evaluate(self, suffix: str) -> None:
        """Search, vote and log the accuracies."""
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
        """Return the rows of all processes, which may differ in number."""
        if self.trainer.world_size == 1:
            return part
        return torch.cat([rows.cpu() for rows in gather_all_tensors(part.to(self.device))])


class _FeatureCallback(pl.Callback):
    """Callback that measures the features of a submodule after every `every` epochs, and logs the result.

    Training is not affected: train and eval modes and the random state of the CPU are restored. With DDP, the first
    process evaluates while the others wait. Sharded models are not supported.
    """

    def __init__(self, backbone: str, every: int) -> None:
        if every < 1:
            raise UsageError(f"every is {every}, but expected 1 epoch or more between evaluations")
        self.backbone, self.every = backbone, every

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate and log after every `every` epochs."""
        if (trainer.current_epoch + 1) % self.every:
            return
        figures = self._evaluate(pl_module) if trainer.is_global_zero else {}
        figures = trainer.strategy.broadcast(figures)
        pl_module.log_dict(figures, prog_bar=True, sync_dist=True)

    def _evaluate(self, module: pl.LightningModule) -> dict[str, float]:
        try:
            backbone = module.get_submodule(self.backbone)
        except AttributeError as error:
            raise ModelError(
                f"{type(module).__name__} has no part {self.backbone!r}, but has "
                f"{', '.join(name for name, _ in module.named_children())}: name what gives features, "
                f'{type(self).__name__}(..., backbone="...")'
            ) from error
        with torch.random.fork_rng(devices=[]):  # data loaders draw a seed
            return self.measure(backbone)

    def measure(self, backbone: nn.Module) -> dict[str, float]:
        """Return what is logged, by name."""
        raise NotImplementedError


class KNNCallback(_FeatureCallback):
    """Callback that logs val_knn_top1 and val_knn_top5 of any LightningModule during training.

    Training is not affected: train and eval modes and the random state of the CPU are restored. With DDP, the first
    process evaluates while the others wait. Sharded models are not supported. A `ModelCheckpoint` that monitors the
    accuracies needs `save_on_train_epoch_end=True` and `every_n_epochs` equal to `every`.

    Args:
        bank: Data loader of training images without augmentation, with batches (images, labels, ...). It is read at
            each evaluation.
        queries: Data loader of validation images, with batches (images, labels, ...).
        k: Number of neighbours that vote. Reduced to the size of the bank with a warning if it is larger.
        temperature: Temperature of the votes.
        backbone: Dotted name of the submodule that gives features, such as "method.backbone". "" takes the module
            itself.
        every: Number of epochs between evaluations.
        topk: Values of k for which the top-k accuracy is logged.

    Raises:
        ModelError: The module has no submodule `backbone`. Raised at the first evaluation.
        UsageError: `k`, `temperature` or `every` is out of range.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> loader = [(torch.eye(4).view(4, 4, 1, 1), torch.arange(4))]  # images and labels
        >>> knn = KNNCallback(bank=loader, queries=loader, k=2, every=10)
        >>> trainer = Trainer(callbacks=[knn], accelerator="cpu", logger=False)
        >>> knn.measure(nn.Flatten())
        {'val_knn_top1': 1.0, 'val_knn_top5': 1.0}
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
        super().__init__(backbone, every)
        self.bank, self.queries = bank, queries
        self.k, self.temperature, self.topk = k, temperature, topk

    def measure(self, backbone: nn.Module) -> dict[str, float]:
        """Return the top-k accuracies by kNN."""
        bank, labels = embed(backbone, map(images_and_labels, self.bank))
        queries, targets = embed(backbone, map(images_and_labels, self.queries))
        places = knn_places(bank, labels, queries, targets, [self.k], [self.temperature])
        return {f"val_knn_top{k}": (places < k).double().mean().item() for k in self.topk}


class UnlabelledCallback(_FeatureCallback):
    """Callback that logs val_rankme, val_uniformity and val_spread of any LightningModule during training.

    These figures need no labels; see `idaa_lightly.evaluation.unlabelled`. Training is not affected, as for
    `KNNCallback`.

    Args:
        images: Data loader of images without augmentation. Batches are images, or tuples or lists that start with
            images or with several views of them, as Lightly's do. Of several views, the first is taken.
        backbone: Dotted name of the submodule that gives features. "" takes the module itself.
        every: Number of epochs between evaluations.

    Raises:
        DataError: A batch does not start with images. Raised at the first evaluation.
        ModelError: The module has no submodule `backbone`. Raised at the first evaluation.
        UsageError: `every` is out of range.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> loader = [torch.eye(8).view(8, 8, 1, 1)]  # images
        >>> callback = UnlabelledCallback(loader)
        >>> trainer = Trainer(callbacks=[callback], accelerator="cpu", logger=False)
        >>> figures = callback.measure(nn.Flatten())
        >>> {name: round(value, 2) for name, value in figures.items()}
        {'val_rankme': 8.0, 'val_uniformity': -4.0, 'val_spread': 1.0}
    """

    def __init__(self, images: Iterable[Any], *, backbone: str = "backbone", every: int = 1) -> None:
        super().__init__(backbone, every)
        self.images = images

    def measure(self, backbone: nn.Module) -> dict[str, float]:
        """Return effective rank, uniformity and spread."""
        batches = map(_first_images, self.images)
        features, _ = embed(backbone, ((images, torch.zeros(len(images))) for images in batches))
        return {f"val_{name}": value for name, value in figures(features).items()}


def _first_images(batch: Any) -> Tensor:
    """Return the images of a batch, or the first views in it."""
    first = first_of(batch)
    if not isinstance(first, Tensor):
        raise DataError(f"a batch starts with {type(first).__name__}, but expected images, a tensor (N, C, H, W)")
    return first


def images_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the first two parts of a batch, and ignore others such as the file names of Lightly's data sets.

    Args:
        batch: Tuple or list that starts with images and labels.

    Raises:
        DataError: The batch does not start with two tensors.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) > 1 and all(isinstance(x, Tensor) for x in batch[:2])):
        got = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise DataError(f"a batch is {got}, but expected images and labels, two tensors, as its first two parts")
    return batch[0], batch[1]
