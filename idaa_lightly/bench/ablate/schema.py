"""Schema of ablation.json, the result of an ablation."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from typing_extensions import NotRequired, TypedDict

from idaa_lightly.bench.schema import Quantity, Size

SCHEMA = 1
Number = Annotated[float, Interval(ge=-1e18, le=1e18)]
"""A finite number."""


class RowResult(TypedDict):
    """Results of a row.

    Attributes:
        name: Name of the row.
        kind: One of `idaa_lightly.bench.ablate.rows.Kind`.
        adds: Part that it adds to the row before it on the ladder, or an empty string.
        aug: Augmentation.
        options: Options that are neither defaults nor shared by all rows, in words.
        epochs: Epochs of training.
        values: The metric by seed, in percent for accuracies.
        others: Means of the other figures after the last epoch, by name; accuracies in percent.
        flops: Mean operations of fitting and training.
        folders: Run directories, relative to that of the ablation.
    """

    name: str
    kind: str
    adds: str
    aug: str
    options: str
    epochs: Size
    values: list[Number]
    others: dict[str, Number]
    flops: Quantity
    folders: list[str]


class ContrastResult(TypedDict):
    """A contrast that was fixed beforehand.

    Attributes:
        name: Row that the candidate is compared with.
        center: Mean difference, in the units of the metric.
        low: Lower end of the simultaneous 95 % interval. None with one seed.
        high: Upper end.
    """

    name: str
    center: Number
    low: Number | None
    high: Number | None


class Trial(TypedDict):
    """A trial of the tuning.

    Attributes:
        row: Name of the row.
        options: Values of the options that were tried.
        value: The metric on the validation images, in percent for accuracies.
        chosen: True if the row's final runs have these values.
    """

    row: str
    options: dict[str, str]
    value: Number
    chosen: bool


class Ablation(TypedDict):
    """Content of ablation.json.

    Attributes:
        schema: Version of the file.
        method: Method.
        aug: Augmentation that was studied.
        data: Data set.
        metric: Key of the metric that decides, such as "knn".
        evaluate_on: "test" or "validation".
        seeds: Seeds that all rows have.
        rows: Results of the rows.
        contrasts: The contrasts.
        trials: Trials of the tuning. Empty without any.
        sampling_error: One standard error of the candidate's accuracy from the choice of the test images, in points.
            Missing for metrics without labels.
        images: Number of images that the metric was measured on: training images for RankMe.
        verdict: The paragraph that follows from the figures by fixed rules.
        notes: Further sentences for the reader.
    """

    schema: int
    method: str
    aug: str
    data: str
    metric: str
    evaluate_on: str
    seeds: list[int]
    rows: list[RowResult]
    contrasts: list[ContrastResult]
    trials: list[Trial]
    sampling_error: NotRequired[float]
    images: Size
    verdict: str
    notes: list[str]
