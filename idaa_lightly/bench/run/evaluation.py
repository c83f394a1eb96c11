"""Evaluation of a run before, during and after its training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from idaa_lightly.bench.features import (
    EVALUATION_BATCH,
    KNN_K,
    KNN_TEMPERATURE,
    WithEmbedding,
    features_and_projections,
    features_of,
    knn_accuracy,
    training_features_of,
)
from idaa_lightly.bench.run.setup import Parts
from idaa_lightly.data import DataSet
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.evaluation.linear import linear_probe
from idaa_lightly.evaluation.search import backend
from idaa_lightly.evaluation.unlabelled import alignment, rankme, spread, uniformity
from idaa_lightly.libraries import SMALL
from idaa_lightly.loading import evaluation_batches
from idaa_lightly.plugin import Method
from idaa_lightly.splits import sample

log = logging.getLogger(__name__)
MEASURED = 1024  # training images whose embeddings are measured without labels, at most
ALIGNED = 128  # training images whose two views are compared, at most
NO_EPOCH = -1  # The views that are compared are those of no epoch, whatever the length of the training.
AT_ENDS = ("knn", "knn_projection", "linear", "linear_l2")
"""Figures that are computed before the first and after the last epoch only."""


def evaluator(parts: Parts) -> Callable[[Method, int], dict[str, float]]:
    """Return a function that evaluates a method, given the number of finished epochs.

    It computes figures without labels and, if there are labels, kNN accuracy on the validation images. Before the first
    and after the last epoch it also evaluates on the test images: by kNN on features and on projections, and by the
    linear probe.

    Args:
        parts: Parts of the run.
    """
    held = parts.config.evaluate_on == "validation"  # The test images are the validation images then.

    def evaluate(method: Method, epoch: int) -> dict[str, float]:
        metrics, words = unlabelled_figures(parts, method), ""
        if (data := parts.labelled) is not None:
            metrics |= _accuracies(method, data, held) if epoch in (0, parts.epochs) else _accuracy(method, data, held)
            words = f"kNN on validation {100 * metrics['knn_validation']:.2f} %, "
            if epoch == 0 and data.image_size <= SMALL:
                metrics["knn_pixels"] = knn_accuracy(features_of(nn.Flatten(), data))
        log.info(f"epoch {epoch}/{parts.epochs}: {words}RankMe {metrics['rankme']:.1f}")
        return metrics

    return evaluate


def protocol(parts: Parts) -> dict[str, Any]:
    """Return the protocol of the evaluations, for the record of a run."""
    images = len(parts.data.train)
    common = {
        "unlabelled": "on what the loss compares: the projection, or the prediction if there is one; RankMe, "
        f"uniformity and spread of {min(MEASURED, images)} training images without augmentation, alignment of two "
        f"views of {min(ALIGNED, images)}",
    }
    if (data := parts.labelled) is None:
        return common
    return common | {
        "knn_k": min(KNN_K, len(data.train)),
        "knn_temperature": KNN_TEMPERATURE,
        "knn_backend": backend(len(data.test), parts.method.num_features, min(KNN_K, len(data.train))),
        "features": "backbone, in eval mode, of images without augmentation",
        "knn_projection": "on what the loss compares: the projection, or the prediction if there is one",
        "linear": "L-BFGS on standardised features, L2 strength chosen on a tenth of train",
    }


def _accuracy(method: Method, data: DataSet, held: bool) -> dict[str, float]:
    found = features_of(method.backbone, data) if held else training_features_of(method.backbone, data)
    return {"knn_validation": knn_accuracy(found)}


def _accuracies(method: Method, data: DataSet, held: bool) -> dict[str, float]:
    features, projections = features_and_projections(method, data)
    device = next(method.parameters()).device  # The probe is the longest part of an evaluation.
    probe = linear_probe(*(part.to(device) for part in features))
    metrics = {"knn": knn_accuracy(features), "knn_projection": knn_accuracy(projections)}
    metrics |= {"linear": probe.accuracy, "linear_l2": probe.l2}
    return metrics | {"knn_validation": knn_accuracy(features if held else features.held_out())}


def unlabelled_figures(parts: Parts, method: Method) -> dict[str, float]:
    """Return RankMe, uniformity, alignment and spread of what the loss compares, in eval mode.

    The images are a random sample of the training images, the same at every call. So are the views that alignment
    compares.

    Args:
        parts: Parts of the run.
        method: The method. If it has a momentum network too, only the trained network is used.

    Returns:
        `rankme`, `uniformity`, `alignment` and `embedding_spread`, as in `idaa_lightly.bench.schema.Evaluated`. If all
        embeddings are zero, `rankme` is 0.
    """
    network, total = WithEmbedding(method), len(parts.data.train)

    def embeddings_of(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        return embed(network, batches)[0][:, method.num_features :]

    images = parts.data.train.take(sample(total, MEASURED))
    embeddings = embeddings_of(evaluation_batches(parts.data, images, EVALUATION_BATCH))
    pairs = [parts.views[NO_EPOCH, index][0][:2] for index in sample(total, ALIGNED).tolist()]
    views = [(torch.stack(view), torch.zeros(len(view))) for view in zip(*pairs, strict=True)]
    anchors, positives = (embeddings_of([batch]) for batch in views)
    return {
        "rankme": rankme(embeddings) if embeddings.any() else 0.0,
        "uniformity": uniformity(embeddings),
        "alignment": alignment(anchors, positives),
        "embedding_spread": spread(embeddings),
    }
