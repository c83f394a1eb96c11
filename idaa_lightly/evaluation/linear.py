"""Linear evaluation of frozen features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from lightly.utils.scheduler import CosineWarmupScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

from idaa_lightly.errors import DataError, NonFiniteError
from idaa_lightly.options import Count, checked

LEAST = 20  # training features
PAPER_EPOCHS, SGD_EPOCHS, BATCH_SIZE = 1000, 90, 256
L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


class LinearResult(NamedTuple):
    """Accuracies in [0, 1] on the test features.

    Attributes:
        accuracy: top-1.
        l2: the strength that was chosen on a part of train.
        mean_per_class: mean over the classes of the test features of the share of each that is right.
    """

    accuracy: float
    l2: float
    mean_per_class: float


class TrainedResult(NamedTuple):
    """Top-1 accuracy in [0, 1] on the test features.

    Attributes:
        accuracy: of the last epoch; the figure to cite.
        best: of the best epoch; chosen on the test features, so optimistic.
        best_epoch: the first one that has it, from 1.
    """

    accuracy: float
    best: float
    best_epoch: int


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    seed: int = 0,
) -> LinearResult:
    """Multinomial logistic regression by L-BFGS on standardised features.

    The L2 strength is chosen on a tenth of the training features, then the regression is fitted to all of them; the
    test set is used once. Kornblith et al., "Do Better ImageNet Models Transfer Better?", CVPR 2019, App. A.

    Args:
        train_features: (N, D).
        train_labels: classes (N,) from 0.
        test_features: (M, D).
        test_labels: classes (M,).
        seed: of the split.

    Raises:
        DataError: fewer than 20 training features, or shapes that do not match.
        NonFiniteError: NaN or infinity in the features.
    """
    train, train_labels, test, test_labels, classes = _checked(train_features, train_labels, test_features, test_labels)
    std, mean = torch.std_mean(train, 0)
    train, test = ((part - mean) / std.clamp_min(1e-6) for part in (train, test))
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(train) // 10], order[len(train) // 10 :]
    weight = train.new_zeros(classes, train.shape[1] + 1)
    scores = []
    for l2 in L2_GRID:  # strong to weak, each from the last one's solution
        weight = _fit(train[rest], train_labels[rest], weight, l2)
        scores.append(_accuracy(weight, train[held_out], train_labels[held_out]))
    best = L2_GRID[scores.index(max(scores))]
    weight = _fit(train, train_labels, torch.zeros_like(weight), best)
    classes_of_test = [test_labels == label for label in test_labels.unique()]
    shares = [_accuracy(weight, test[rows], test_labels[rows]) for rows in classes_of_test]
    return LinearResult(_accuracy(weight, test, test_labels), best, sum(shares) / len(shares))


@checked
def paper_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: Count = PAPER_EPOCHS,
    batch_size: Count = BATCH_SIZE,
    seed: int = 0,
    on_epoch: Callable[[str], None] | None = None,
) -> TrainedResult:
    """A linear layer by Adam, learning rate 3e-4, on features as they are: the protocol of IDAA's and CLAE's authors.

    Source: Yang et al., ICML 2022, and Ho & Vasconcelos, NeurIPS 2020: 1000 epochs on frozen features of images
    without augmentation. Their tables hold the best epoch on the test set; here it stands beside the last one.

    Differs from the paper: it gives no batch size; 256 is ours, and each epoch leaves out the images, drawn anew, that
    would make a smaller last batch.

    Args:
        train_features: (N, D).
        train_labels: classes (N,) from 0.
        test_features: (M, D), on the same device.
        test_labels: classes (M,).
        epochs: 1 or more.
        batch_size: 1 or more; N where that is smaller.
        seed: of the initial weights and the batches.
        on_epoch: called after each epoch with its accuracy in words, for a progress bar.

    Raises:
        DataError: fewer than 20 training features, or shapes that do not match.
        NonFiniteError: NaN or infinity in the features, or in the weights after the training.
        UsageError: epochs or batch_size is below 1.
    """
    parts = _checked(train_features, train_labels, test_features, test_labels)
    return _result(_train(parts, _paper, epochs, batch_size, seed, on_epoch)[1])


@checked
def sgd_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    epochs: Count = SGD_EPOCHS,
    batch_size: Count = BATCH_SIZE,
    seed: int = 0,
    on_epoch: Callable[[str], None] | None = None,
) -> TrainedResult:
    """A linear layer by SGD on features as they are: the protocol of Lightly's benchmark, which is SimCLR's.

    Learning rate 0.1 · batch / 256, momentum 0.9, no weight decay, cosine to a thousandth of it over 90 epochs;
    Lightly's tables hold the best epoch. Source: `lightly.utils.benchmarking.LinearClassifier`; Chen et al., "A Simple
    Framework for Contrastive Learning of Visual Representations", ICML 2020.

    Differs from Lightly: the features are computed once, of images without augmentation; there each epoch sees random
    crops and flips.

    Args and errors as for `paper_probe`.
    """
    parts = _checked(train_features, train_labels, test_features, test_labels)
    return _result(_train(parts, _sgd, epochs, batch_size, seed, on_epoch)[1])


Parts = tuple[Tensor, Tensor, Tensor, Tensor, int]
"""Features (N, D) and labels (N,) of train, the same of test, and the number of classes."""


def _checked(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> Parts:
    """As floats and class numbers, or refused."""
    train, test = train_features.float(), test_features.float()
    train_labels, test_labels = train_labels.long(), test_labels.long()
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
    """Weights, trained on the features' device, and the accuracy after each epoch."""
    x, y, test, test_labels, classes = parts
    draws = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5  # as nn.Linear has it
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
