"""State dicts as targets. No run directory holds their image size and normalisation.

`idaa-bench export` writes both to a JSON file beside the state dict. Options override the file. Without either, the
values of the data set are assumed, and a message says so.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn
from typing_extensions import TypedDict

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.run.setup import read_data
from idaa_lightly.bench.schema import read_json
from idaa_lightly.data import DataSet
from idaa_lightly.errors import FileFormatError, UsageError
from idaa_lightly.weights import load_pretrained

log = logging.getLogger(__name__)


class Given(NamedTuple):
    """Options of an evaluation that describe a network and its images. None if not given.

    Attributes:
        backbone: Name of the network that a state dict belongs to.
        data: Data set to embed, as for `idaa-bench run --data`.
        image_size: Height and width of the images that a state dict expects, in pixels.
        mean: Mean of red, green and blue that a state dict expects to be subtracted, on images in [0, 1].
        std: Standard deviations that a state dict expects the images to be divided by.
        layer: Layer of the network whose outputs are the features; see `LayerOutputs`.
    """

    backbone: str | None = None
    data: str | None = None
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layer: str | None = None


NOTHING = Given()


class Note(TypedDict):
    """JSON file beside an exported state dict.

    Attributes:
        backbone: Name of the network.
        options: Options of a backbone that is a plugin.
        image_size: Height and width of the images, in pixels.
        mean: Mean of each channel, on images in [0, 1].
        std: Standard deviation of each channel.
    """

    backbone: str
    options: dict[str, Any]
    image_size: int
    mean: list[float]
    std: list[float]


def note_path(target: Path) -> Path:
    """Return the path of the JSON file beside a state dict."""
    return target.parent / f"{target.name}.json"


def load_state_dict(target: Path, given: Given) -> tuple[nn.Module, DataSet]:
    """Load a state dict and the data set to evaluate it on. Log the image size and normalisation, and their origin.

    Args:
        target: State dict from torchvision or timm, or from `idaa-bench export`.
        given: Options. They override the JSON file beside the state dict.

    Returns:
        The network, and the data set with the image size and normalisation that the network expects.

    Raises:
        FileFormatError: The weights do not fit the backbone.
        UsageError: The data set is not given, or the normalisation is not possible.
    """
    note: Any = read_json(note_path(target), Note, "a note of an export") if note_path(target).exists() else {}
    backbone = given.backbone or note["backbone"]
    if not given.data:
        asked = f"--backbone is {backbone}" if given.backbone else f"{target} is for {backbone}"
        raise UsageError(f"{asked}, but nothing says which images to embed: add --data")
    size = given.image_size or note.get("image_size")
    found = {name: _channels(name, getattr(given, name)) or note.get(name) for name in ("mean", "std")}
    images = read_data(RunConfig(data=given.data, image_size=size))
    images = replace(images, normalize={name: values or images.normalize[name] for name, values in found.items()})
    missing = [name for name, value in {"image-size": size, **found}.items() if not value]
    assumed = f"; assumed from the data set: {', '.join(f'--{name}' for name in missing)}" if missing else ""
    mean, std = ([round(value, 4) for value in images.normalize[name]] for name in ("mean", "std"))
    log.info(f"{target}: {backbone}, images of {images.image_size} px, less mean {mean}, divided by std {std}{assumed}")
    options = note.get("options") if backbone == note.get("backbone") else None
    network, _ = create_backbone(backbone, images.image_size, options)
    match, _ = load_pretrained(network, str(target))
    if absent := match.missing:
        raise FileFormatError(f"{target} does not fit the backbone {backbone}: it has no {absent[0]} of the same shape")
    if match.unexpected:
        log.info(f"{target}: {match.in_words()}.")
    return network, images


def _channels(name: str, values: tuple[float, ...] | None) -> list[float] | None:
    if values is not None and (len(values) != 3 or (name == "std" and min(values) <= 0)):
        kind = "numbers above 0" if name == "std" else "numbers"
        raise UsageError(f"--{name} is {','.join(map(str, values))}, but expected three {kind}: red, green, blue")
    return values and list(values)
