"""Linear evaluation of frozen features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly.errors import DataError, NonFiniteError

LEAST = 20  # training features
L2_GRID = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


class LinearResult(NamedTuple):
    """Top-1 accuracy in [0, 1] on the test features, and the L2 strength that was chosen on a part of train."""

    accuracy: float
    l2: float


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
    std, mean = torch.std_mean(train, 0)
    train, test = ((part - mean) / std.clamp_min(1e-6) for part in (train, test))
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held_out, rest = order[: len(train) // 10], order[len(train) // 10 :]
    weight = train.new_zeros(classes, train.shape[1] + 1)
    scores = []
    for l2 in L2_GRID:  # strong to weak, each from the last one's solution
        weight = _fit(train[rest], train_labels[rest], weight, l2)
        scores.append(_accuracy(weight, train[held_out], train_labels[held_out]))
    best = L2_GRID[scores.index(max(scores))]
    weight = _fit(train, train_labels, torch.zeros_like(weight), best)
    return LinearResult(_accuracy(weight, test, test_labels), best)


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
