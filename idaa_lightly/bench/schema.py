"""Schemas of the JSON files in a run directory, and the one reader that checks them."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Interval, Len, MinLen
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from idaa_lightly.errors import FileFormatError
from idaa_lightly.files import require_file
from idaa_lightly.options import Fraction, Seed

T = TypeVar("T")
Size = Annotated[int, Interval(ge=0, le=10**18)]
Quantity = Annotated[float, Interval(ge=0, le=1e18)]
"""Largest numbers that are accepted, so that products of three of them stay finite."""
Epochs = Annotated[int, Interval(ge=1, le=10**9)]


class Open(TypedDict):
    """Base class of tables that may have further keys. Numbers must be finite."""

    __pydantic_config__ = ConfigDict(extra="allow", allow_inf_nan=False)  # type: ignore[misc]


class Evaluated(Open):
    """Figures of the network after an epoch.

    Embeddings are what the loss compares: projections, or predictions if there are any. Their figures are explained in
    `idaa_lightly.evaluation.unlabelled`.

    Attributes:
        epoch: Number of finished epochs.
        rankme: Effective rank of the embeddings, 1 to their dimension.
        uniformity: Logarithm of the mean Gaussian potential of all pairs of embeddings, -8 to 0.
        alignment: Mean squared distance of the embeddings of two views, 0 to 4.
        embedding_spread: Standard deviation of l2-normalised embeddings, in units of 1/sqrt(D). Near 0 they collapsed.
        knn_validation: Accuracy in [0, 1] of kNN on backbone features, on the validation images, a tenth of the
            training images. All accuracies are missing if there are no labels.
        knn: Accuracy of kNN on all test images. During training, in records of schema 2 and older only.
        accuracy: Accuracy of the averaged classifier on all test images. Semi-supervised runs only.
        accuracy_validation: The same on validation images.
    """

    epoch: Size
    rankme: NotRequired[Quantity]
    uniformity: NotRequired[float]
    alignment: NotRequired[Quantity]
    embedding_spread: NotRequired[Quantity]
    knn_validation: NotRequired[Fraction]
    knn: NotRequired[Fraction]
    accuracy: NotRequired[Fraction]
    accuracy_validation: NotRequired[Fraction]


class AtEnd(Evaluated):
    """Figures before or after training. Accuracies are top-1 in [0, 1] on all test images.

    With `evaluate_on = "validation"`, the validation images take the place of the test images.

    Attributes:
        knn_projection: Accuracy of kNN on the method's embeddings: projections, or predictions if there are any.
        linear: Accuracy of a linear probe on backbone features.
        linear_l2: L2 strength of the probe, chosen on a tenth of the training images.
        knn_pixels: Accuracy of kNN on raw pixels. Present only before training, for images of 64 px or less.
    """

    knn_projection: NotRequired[Fraction]
    linear: NotRequired[Fraction]
    linear_l2: NotRequired[Quantity]
    knn_pixels: NotRequired[Fraction]


class Best(Open):
    """Best epoch by kNN, selected on the validation images; in records of schema 2 and older on the test images.

    Attributes:
        epoch: Number of finished epochs.
        knn: Accuracy of kNN on backbone features.
        selected_on: Images that the epoch was selected on, in words.
    """

    epoch: Size
    knn: Fraction
    selected_on: str


class Progress(Open):
    """State of the evaluations in a checkpoint.

    Attributes:
        history: Accuracies so far, from epoch 0.
        seconds: Seconds that the evaluations took.
    """

    history: Annotated[list[Evaluated], MinLen(1)]
    seconds: Quantity


class Position(Open):
    """Position of a checkpoint in its training. The rest of a checkpoint is checked against the run.

    Attributes:
        epoch: Number of finished epochs, less one.
        idaa_lightly_epochs: Number of epochs of the whole training. Missing in older checkpoints.
    """

    epoch: Size
    idaa_lightly_epochs: NotRequired[Epochs]


class Protocol(Open):
    """Protocol of the evaluations. Further keys describe the features and the linear probe in words.

    Attributes:
        unlabelled: Images and embeddings of the figures without labels, in words.
        knn_k: Neighbours that voted.
        knn_temperature: Temperature of the votes.
        knn_backend: Library that searched, with its version.
    """

    unlabelled: NotRequired[str]
    knn_k: NotRequired[Annotated[int, Ge(1)]]
    knn_temperature: NotRequired[float]
    knn_backend: NotRequired[str]


class Time(Open):
    """Cost of the run.

    Attributes:
        train_s: Seconds of training without evaluation, summed over the processes of a resumed run.
        images_per_s: Training images per second of `train_s`.
        flops_per_image: Floating-point operations of one training step with its attack, divided by its images.
        fit_flops: Floating-point operations of fitting the augmentation, by this run or an earlier one. Missing in
            older records.
        wall_s: Wall time of the last process, in seconds.
        cpu_s: CPU time of the last process, in seconds.
        resumed_at_epoch: Epoch of the checkpoint that the last process resumed, from 0. None if it started anew.
    """

    train_s: Quantity
    images_per_s: Quantity
    flops_per_image: Size | None
    fit_flops: NotRequired[Quantity]
    wall_s: Quantity
    cpu_s: Quantity
    resumed_at_epoch: Size | None


class Data(Open):
    """Facts about the data set.

    Attributes:
        name: Name that was asked for, such as "cifar10".
        train: Number of training images.
        test: Number of test images. 0 without labels.
        classes: Number of classes. 0 without labels.
        image_size: Height and width of a view, in pixels.
        normalize: Mean and standard deviation per channel.
        fingerprint: Hashes of the training images and of the test images.
        notes: Sentences on how the images were converted.
    """

    name: str
    train: Size
    test: Size
    classes: Size
    image_size: Size
    normalize: dict[Annotated[str, StringConstraints(pattern="^(mean|std)$")], Annotated[list[float], Len(3, 3)]]
    fingerprint: Annotated[list[str], Len(2, 2)]
    notes: list[str]


class Device(Open):
    """Device that the run trained on.

    Attributes:
        type: Type of the torch device, such as "cuda".
        name: Name of the GPU or of the CPU.
        count: Number of devices.
        cpus: Number of CPUs of the machine.
        torch_threads: Threads that torch uses on the CPU.
    """

    type: str
    name: str
    count: Size
    cpus: Size | None
    torch_threads: Size


class Config(Open):
    """Fields of a resolved `RunConfig` that other commands rely on. `RunConfig` checks the others.

    Attributes:
        method: Name of the method.
        aug: Name of the augmentation.
        data: Name of the data set.
        seed: Random seed.
        epochs: Epochs that the run trained.
        backbone: Name of the backbone.
        image_size: Height and width of a view, in pixels.
        set: Options of the method and of the augmentation.
    """

    method: str
    aug: str
    data: str
    seed: Seed
    epochs: Epochs
    backbone: NotRequired[str]
    image_size: NotRequired[Size]
    set: dict[
        Annotated[str, StringConstraints(pattern="^(method|aug|backbone)$")],
        dict[str, str | bool | Annotated[float, Interval(ge=-1e300, le=1e300)]],
    ]


class Labelled(Open):
    """Labelled images of a semi-supervised run.

    Attributes:
        count: Number of images whose labels the training uses.
        per_class: Number of them in each class.
        sha256: First 16 hexadecimal digits of the hash of their indices, which are in ascending order, in int64.
    """

    count: Size
    per_class: list[Size]
    sha256: str


class Record(Open):
    """Content of record.json.

    Attributes:
        schema: Version of the record, `SCHEMA`.
        config: Resolved configuration, as in config.toml.
        initial: Figures of the untrained network.
        last: Figures after the last epoch. Cite these.
        best: Best epoch by kNN. Missing without labels.
        history: Figures during training, from epoch 0.
        evaluation: Protocol of the evaluations.
        time: Cost of the run.
        warnings: Signs that the training went wrong, such as a loss that did not fall.
        fitted: Facts about the fitting before training. For IDAA: {vae: {epochs, seconds, flops, loss, mse,
            kl, variance}}, with the sha256 of a VAE that was read from a file.
        data: Facts about the data set.
        eval_data: Facts about the data set that accuracies refer to, if it is another one.
        labelled: Images whose labels the training uses. Semi-supervised runs only.
        versions: Versions of Python and of the packages that results depend on.
        device: Device that the run trained on.
        git_commit: Commit of idaa-lightly's checkout, with "+" for uncommitted changes. None outside a checkout.
    """

    schema: int
    config: Config
    initial: AtEnd
    last: AtEnd
    best: NotRequired[Best]
    history: Annotated[list[Evaluated], MinLen(1)]
    evaluation: Protocol
    time: Time
    warnings: NotRequired[list[str]]
    fitted: dict[str, Any]
    data: Data
    eval_data: NotRequired[Data]
    labelled: NotRequired[Labelled]
    versions: dict[str, str]
    device: Device
    git_commit: str | None


def read_json(path: Path, schema: type[T], what: str, versions: Collection[int] = ()) -> T:
    """Read a JSON file and check it against its schema.

    Args:
        path: File to read.
        schema: Class in this module that the content must match.
        what: What the file is expected to be, for messages, such as "the record of a finished run".
        versions: Values of the key `schema` that can be read. Empty if the file has no such key.

    Raises:
        FileFormatError: The file is missing, is not JSON, or does not match the schema.
    """
    require_file(path, what)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not {what}: {error}") from error
    if not isinstance(content, dict) or (versions and "schema" not in content):
        raise FileFormatError(f"{path} is not {what}")
    if versions and content["schema"] not in versions:
        raise FileFormatError(f"{path} has schema {content['schema']}, but expected {max(versions)} or less")
    check_form(content, schema, path)
    found: Any = content  # as it is: pydantic's copy would turn whole numbers into fractions
    return found  # type: ignore[no-any-return]


def check_form(content: Any, schema: Any, path: Path, place: str = "") -> None:
    """Check a value against a schema.

    Args:
        content: Value to check.
        schema: Class in this module.
        path: File that holds the value, for the error message.
        place: Place of the value in the file, for the error message.

    Raises:
        FileFormatError: The value does not match the schema.
    """
    try:
        _adapter(schema).validate_python(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(filter(None, (place, *map(str, first["loc"]))))
        raise FileFormatError(f"{path} is damaged: {where}: {first['msg']}") from error


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)
