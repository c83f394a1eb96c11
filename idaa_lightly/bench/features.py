"""Frozen features of a data set and their kNN accuracy, for training runs and evaluations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from idaa_lightly.bench.progress import progress
from idaa_lightly.data import DataSet, Images
from idaa_lightly.evaluation.embed import embed
from idaa_lightly.evaluation.knn import knn_classify
from idaa_lightly.loading import evaluation_batches
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import Method
from idaa_lightly.splits import validation_split

KNN_K, KNN_TEMPERATURE = 200, 0.1
EVALUATION_BATCH = 256


class Features(NamedTuple):
    """Features of both splits of a data set, on the CPU.

    Attributes:
        train_features: Features (N, D) of the training images, float32.
        train_labels: Classes (N,) of the training images.
        test_features: Features (M, D) of the test images, float32.
        test_labels: Classes (M,) of the test images.
    """

    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor

    def held_out(self) -> Features:
        """Return the training features, divided into a bank and queries by `validation_split`."""
        kept, held = validation_split(self.train_labels)
        features, labels = self.train_features, self.train_labels
        return Features(features[kept], labels[kept], features[held], labels[held])


def pick_device() -> torch.device:
    """Return the device for evaluations: CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def features_of(network: nn.Module, data: DataSet) -> Features:
    """Return the frozen features of both splits, without augmentation. Without labels, there are no test features.

    Args:
        network: Module that maps images (N, 3, H, W) to features (N, D).
        data: Data set with both splits.
    """
    train, *test = _features(network, data, *filter(len, (data.train, data.test)))
    return Features(*train, *(test[0] if test else (part[:0] for part in train)))


def training_features_of(network: nn.Module, data: DataSet) -> Features:
    """Return the frozen features of the training images, divided by `Features.held_out`.

    Args:
        network: Module that maps images (N, 3, H, W) to features (N, D).
        data: Data set. Its test images are not read.
    """
    (train,) = _features(network, data, data.train)
    return Features(*train, *train).held_out()


def _features(network: nn.Module, data: DataSet, *parts: Images) -> list[tuple[Tensor, Tensor]]:
    step = progress("features", sum(-(-len(part) // EVALUATION_BATCH) for part in parts))
    return [embed(network, evaluation_batches(data, images, EVALUATION_BATCH), lambda _: step("")) for images in parts]


def features_and_projections(method: Method, data: DataSet) -> tuple[Features, Features]:
    """Return a method's backbone features and its embeddings, from one pass over the images.

    Args:
        method: The method. If it has a momentum network too, only the trained network is used.
        data: Data set with both splits.

    Returns:
        Backbone features, and the embeddings that the loss compares: projections, or predictions if there are any.
    """
    both = features_of(WithEmbedding(method), data)
    width = method.num_features
    train, test = both.train_features, both.test_features
    features = both._replace(train_features=train[:, :width], test_features=test[:, :width])
    return features, both._replace(train_features=train[:, width:], test_features=test[:, width:])


class WithEmbedding(nn.Module):
    """Module that maps images (N, C, H, W) to backbone features and embeddings, concatenated (N, num_features + D).

    Args:
        method: The method. If it has a momentum network too, only the trained network is used.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """Return features and embeddings."""
        found: list[Tensor] = []
        with self.method.backbone.register_forward_hook(lambda *call: found.append(call[2])):
            embedding = embedding_of(self.method(images))
        features = found[0] if found else self.method.backbone(images)
        return torch.cat([features.flatten(1), embedding], 1)


def knn_accuracy(features: Features, k: int = KNN_K, temperature: float = KNN_TEMPERATURE) -> float:
    """Return the top-1 accuracy in [0, 1] of weighted kNN, with the training features as the bank.

    Args:
        features: Features and labels of both splits.
        k: Neighbours that vote. Limited to the size of the bank.
        temperature: Temperature of the votes.
    """
    ranked = knn_classify(
        features.train_features, features.train_labels, features.test_features, min(k, len(features.train_labels)),
        temperature,
    )  # fmt: skip
    return (ranked[:, 0] == features.test_labels).double().mean().item()
