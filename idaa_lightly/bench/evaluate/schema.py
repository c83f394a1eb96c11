"""Schemas of the results of evaluations in a run directory; see `idaa_lightly.bench.evaluate.store`."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Len, MinLen
from pydantic import AfterValidator
from typing_extensions import NotRequired

from idaa_lightly.bench.schema import Device, Open, Quantity, Size
from idaa_lightly.options import Fraction


class Kept(Open):
    """Result of an evaluation; see `idaa_lightly.bench.evaluate.store`."""

    options: dict[str, Any]
    source: str
    seconds: Quantity
    versions: dict[str, str]
    device: Device
    git_commit: str | None


class BestEpoch(Open):
    """Best epoch of a linear layer by its accuracy on the test images."""

    epoch: Size
    accuracy: Fraction


class Accuracy(Kept):
    """Result in linear.json, finetune.json or transfer.json."""

    accuracy: Fraction
    protocol: str
    best: NotRequired[BestEpoch]
    mean_per_class: NotRequired[Fraction]
    top1: NotRequired[Fraction]
    metric: NotRequired[Literal["top1", "mean_per_class"]]


class Votes(Open):
    """Accuracy of kNN for one k and one temperature; see `KNNAccuracy`."""

    k: Annotated[int, Interval(ge=1, le=10**18)]
    temperature: float
    top1: Fraction
    top5: Fraction
    recall: Fraction | None
    change: Annotated[float, Interval(ge=-1, le=1)] | None


class Asked(Open):
    """Options of kNN."""

    k: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)]
    temperature: Annotated[list[float], MinLen(1)]


class Neighbours(Kept):
    """Result in knn.json."""

    options: Asked  # type: ignore[misc]
    bank: Size
    queries: Size
    backend: str
    accuracies: Annotated[list[Votes], MinLen(1)]


def _complete(result: Neighbours) -> Neighbours:
    """Return a result if it has an accuracy for every k and temperature that its options ask for."""
    pairs = product(result["options"]["k"], result["options"]["temperature"])
    asked = sorted({(min(k, result["bank"]), temperature) for k, temperature in pairs})
    if [(found["k"], found["temperature"]) for found in result["accuracies"]] != asked:
        raise ValueError(f"accuracies should be those of the {len(asked)} pairs of k and temperature in options")
    return result


class Accuracies(Open):
    """Content of linear.json, finetune.json or transfer.json."""

    results: dict[str, Accuracy]


class NeighboursFile(Open):
    """Content of knn.json."""

    results: dict[str, Annotated[Neighbours, AfterValidator(_complete)]]


class Views(Open):
    """Figures of an augmentation in identity.json.

    Attributes:
        lost: Fraction of samples that lost their identity.
        hardness: Percentiles 5, 25, 50, 75 and 95 of the ratio of distances.
    """

    lost: Fraction
    hardness: Annotated[list[Quantity], Len(5, 5)]
    l2: NotRequired[Quantity]
    linf: NotRequired[Quantity]
    own_l2: NotRequired[Quantity]
    own_linf: NotRequired[Quantity]


class Study(Open):
    """Content of identity.json."""

    augmentations: dict[str, Views]
