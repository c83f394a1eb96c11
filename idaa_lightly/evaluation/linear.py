"""Linear evaluation of frozen features, by three protocols."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from idaa_lightly.errors import DataError, NonFiniteError
from idaa_lightly.evaluation.knn import as_labels
from idaa_lightly.options import Count, checked

LEAST = 20  # minimum number of training features
PAPER_EPOCHS, SGD_EPOCHS, BATCH_SIZE = 1000, 90, 256
L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


class LinearResult(NamedTuple):
    """Accuracies in [0, 1] on the test features.

    Attributes:
        accuracy: Top-1 accuracy.
        l2: L2 regularisation strength that was selected on a part of the training features.
        mean_per_class: Top-1 accuracy of each class, averaged over the classes of the test features.
    """

    accuracy: float
    l2: float
    mean_per_class: float


class TrainedResult(NamedTuple):
    """Top-1 accuracy in [0, 1] on the test features.

    Attributes:
        accuracy: Accuracy of the last epoch. Cite this one.
        best: Accuracy of the best epoch. Selected on the test features, and therefore optimistic.
        best_epoch: First epoch with the best accuracy, counted from 1.
    """

    accuracy: float
    best: float
    best_epoch: int


@torch.inference_mode(False)
def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    seed: int = 0,
) -> LinearResult:
    """Fit a multinomial logistic regression by L-BFGS on standardised features, and evaluate it.

    The L2 strength is selected on a held-out tenth of the training features. The regression is then fitted to all of
    them, and the test set is used only once.

    Source: Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR 2019, App. A.

    Args:
        train_features: Training features (N, D), a tensor or array.
        train_labels: Class indices (N,).
        test_features: Test features (M, D).
        test_labels: Class indices (M,).
        seed: Seed of the split into fitted and held-out training features.

    Raises:
        DataError: There are fewer than 20 training features, shapes do not match, or a label is no class index.
        NonFiniteError: The features hold NaN or infinity.

    Example:
        >>> features, labels = torch.eye(3).repeat(10, 1), torch.arange(3).repeat(10)
        >>> linear_probe(features, labels, torch.eye(3), torch.arange(3)).accuracy
        1.0
    """
    train, train_labels, test, test_labels, classes = _checked(train_features, train_labels, test_features, test_labels)
    std, mean = torch.std_mean(train, 0)
    smallest = (1e-6 * std.max()).clamp_min(torch.finfo(std.dtype).tiny)
    train, test = ((part - mean) / std.clamp_min(smallest) for part in (train, test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(train) // 10], order[len(train) // 10 :]
    weight = train.new_zeros(classes, train.shape[1] + 1)
    scores = []
    for l2 in L2_GRID:  # from strong to weak, each fit starts at the previous solution
        weight = _fit(train[rest], train_labels[rest], weight, l2)
        scores.append(_accuracy(weight, train[held_out], train_labels[held_out]))
    best = L2_GRID[scores.index(max(scores))]
    weight = _fit(train, train_labels, torch.zeros_like(weight), best)
    classes_of_test = [test_labels == label for label in test_labels.unique()]
    shares = [_accuracy(weight, test[rows], test_labels[rows]) for rows in classes_of_test]
    return LinearResult(_accuracy(weight, test, test_labels), best, sum(shares) / len(shares))


@checked
@torch.inference_mode(False)
def paper_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    epochs: Count = PAPER_EPOCHS,
    batch_size: Count = BATCH_SIZE,
    seed: int = 0,
    on_epoch: Callable[[str], None] | None = None,
) -> TrainedResult:
    """Train and evaluate a linear layer with the protocol of the authors of IDAA and CLAE.

    The protocol is Adam with learning rate 3e-4 for 1000 epochs, on frozen features of images without augmentation. The
    features are not standardised.

    Source: Yang et al., ICML 2022, and Ho & Vasconcelos, NeurIPS 2020. Their tables report the best epoch on the test
    set. Here the result has both the last and the best epoch.

    Differs from the paper: the paper does not state a batch size, so 256 is our choice. In each epoch, features
    that would form an incomplete last batch are dropped. These features are drawn anew each time.

    Args:
        train_features: Training features (N, D), a tensor or array. The layer is trained on their device.
        train_labels: Class indices (N,).
        test_features: Test features (M, D), on the same device.
        test_labels: Class indices (M,).
        epochs: Number of epochs.
        batch_size: Features per batch, reduced to N if it is larger.
        seed: Seed of the initial weights and the batches.
        on_epoch: Called after each epoch with the test accuracy as text, for a progress bar.

    Raises:
        DataError: There are fewer than 20 training features, shapes do not match, or a label is no class index.
        NonFiniteError: The features, or the weights after training, hold NaN or infinity.
        UsageError: `epochs` or `batch_size` is out of range.
    """
    parts = _checked(train_features, train_labels, test_features, test_labels)
    return _result(_train(parts, _paper, epochs, batch_size, seed, on_epoch)[1])


@checked
@torch.inference_mode(False)
def sgd_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    epochs: Count = SGD_EPOCHS,
    batch_size: Count = BATCH_SIZE,
    seed: int = 0,
    on_epoch: Callable[[str], None] | None = None,
) -> TrainedResult:
    """Train and evaluate a linear layer with the protocol of Lightly's benchmarks and SimCLR.

    The protocol is SGD for 90 epochs with learning rate 0.1 · batch size / 256, momentum 0.9 and no weight decay. A
    cosine schedule lowers the learning rate to a thousandth. Features are not standardised. Lightly's tables report the
    best epoch.

    Source: `lightly.utils.benchmarking.LinearClassifier`; Chen et al., "A Simple Framework for Contrastive Learning of
    Visual Representations", ICML 2020.

    Differs from Lightly: features are computed once, from images without augmentation. In Lightly, each epoch uses new
    random crops and flips.

    Args:
        train_features: Training features (N, D), a tensor or array. The layer is trained on their device.
        train_labels: Class indices (N,).
        test_features: Test features (M, D), on the same device.
        test_labels: Class indices (M,).
        epochs: Number of epochs.
        batch_size: Features per batch, reduced to N if it is larger.
        seed: Seed of the initial weights and the batches.
        on_epoch: Called after each epoch with the test accuracy as text, for a progress bar.

    Raises:
        DataError: There are fewer than 20 training features, shapes do not match, or a label is no class index.
        NonFiniteError: The features, or the weights after training, hold NaN or infinity.
        UsageError: `epochs` or `batch_size` is out of range.

    Example:
        >>> from idaa_lightly.evaluation.linear import sgd_probe
        >>> features, labels = torch.eye(3).repeat(10, 1), torch.arange(3).repeat(10)
        >>> sgd_probe(features, labels, torch.eye(3), torch.arange(3), epochs=100).accuracy
        1.0
    """
    parts = _checked(train_features, train_labels, test_features, test_labels)
    return _result(_train(parts, _sgd, epochs, batch_size, seed, on_epoch)[1])


Parts = tuple[Tensor, Tensor, Tensor, Tensor, int]
"""Training features (N, D) and labels (N,), test features (M, D) and labels (M,), and the number of classes."""


def _checked(train_features: Any, train_labels: Any, test_features: Any, test_labels: Any) -> Parts:
    """Return features as float32, labels as int64 and the number of classes, after checking them."""
    train, test = (torch.as_tensor(part).float() for part in (train_features, test_features))
    train_labels, test_labels = (as_labels(part).to(train.device) for part in (train_labels, test_labels))
    train, test, train_labels, test_labels = (  # A graph cannot keep tensors of the inference mode.
        part.clone() if part.is_inference() else part for part in (train, test, train_labels, test_labels)
    )
    for name, x, y in (("train", train, train_labels), ("test", test, test_labels)):
        if x.ndim != 2 or x.shape[1:] != train.shape[1:] or y.shape != x.shape[:1] or not len(x) or y.min() < 0:
            raise DataError(
                f"{name}_features has shape {tuple(x.shape)} and {name}_labels {tuple(y.shape)}, but expected "
                f"(N, {train.shape[-1]}) and (N,) with classes from 0, N of 1 or more"
            )
    if len(train) < LEAST:
        raise DataError(f"got {len(train)} training features, but a linear probe needs {LEAST} or more")
    if not (train.isfinite().all() and test.isfinite().all()):
        raise NonFiniteError("the features hold NaN or infinity: the training diverged")
    return train, train_labels, test, test_labels, int(max(train_labels.max(), test_labels.max())) + 1


def _paper(weight: Tensor, batch: int, steps: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = Adam([weight], lr=3e-4)
    return optimizer, ConstantLR(optimizer, factor=1.0)


def _sgd(weight: Tensor, batch: int, steps: int) -> tuple[Optimizer, LRScheduler]:
    optimizer = SGD([weight], lr=0.1 * batch / 256, momentum=0.9)
    return optimizer, CosineWarmupScheduler(optimizer, warmup_epochs=0, max_epochs=steps)


@torch.enable_grad()
def _train(
    parts: Parts,
    recipe: Callable[[Tensor, int, int], tuple[Optimizer, LRScheduler]],
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[str], None] | None,
) -> tuple[Tensor, list[float]]:
    """Train a linear layer. Return its weights and biases (classes, D + 1), and the test accuracy of each epoch."""
    x, y, test, test_labels, classes = parts
    draws = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5  # as in nn.Linear
    weight = torch.empty(classes, x.shape[1] + 1).uniform_(-bound, bound, generator=draws)
    weight = weight.to(x.device).requires_grad_()
    batch = min(batch_size, len(x))
    steps = len(x) // batch
    optimizer, scheduler = recipe(weight, batch, epochs * steps)
    scores = []
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=draws)[: steps * batch].to(x.device)
        for rows in order.split(batch):
            optimizer.zero_grad()
            F.cross_entropy(_logits(weight, x[rows]), y[rows]).backward()
            optimizer.step()
            scheduler.step()
        scores.append(_accuracy(weight.detach(), test, test_labels))
        if on_epoch is not None:
            on_epoch(f"{100 * scores[-1]:.2f} %")
    if not weight.isfinite().all():
        raise NonFiniteError(
            f"the linear layer became NaN or infinite: the features, up to {x.abs().max():.3g} in size, are too large "
            "for this protocol; take lbfgs, which standardises them"
        )
    return weight.detach(), scores


def _result(scores: list[float]) -> TrainedResult:
    return TrainedResult(scores[-1], max(scores), scores.index(max(scores)) + 1)


@torch.enable_grad()
def _fit(x: Tensor, y: Tensor, start: Tensor, l2: float) -> Tensor:
    weight = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(_logits(weight, x), y) + l2 * weight[:, :-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def _logits(weight: Tensor, x: Tensor) -> Tensor:
    return F.linear(x, weight[:, :-1], weight[:, -1])


def _accuracy(weight: Tensor, x: Tensor, y: Tensor) -> float:
    return (_logits(weight, x).argmax(1) == y).float().mean().item()
