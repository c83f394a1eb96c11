"""Export of a run's backbone for other programs: a plain state dict, and the Python lines that load it."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from idaa_lightly.backbones import SMALL, create_backbone
from idaa_lightly.bench.evaluate.targets import load_weights
from idaa_lightly.bench.record import config_of, read_record
from idaa_lightly.bench.schema import Record
from idaa_lightly.errors import UsageError, require_extra
from idaa_lightly.files import load_tensors, save_tensors


def run_backbone(folder: Path) -> tuple[nn.Module, Record]:
    """Load the backbone of a finished run on the CPU. The run's images are not needed.

    Args:
        folder: The run directory.

    Returns:
        The backbone, and the run's record.

    Raises:
        FileFormatError: The directory is not a finished run, or its files do not go together.
    """
    record = read_record(folder)
    config, image_size = config_of(record), record["data"]["image_size"]
    name, path = config.backbone or "", folder / "backbone.pt"
    network, _ = create_backbone(name, image_size, config.set.get("backbone"))
    load_weights(network, load_tensors(path, "a backbone written by a run"), path, f"the backbone {name}")
    return network, record


def export(folder: Path, out: Path, form: str | None = None) -> str:
    """Write a run's backbone as a state dict that torchvision's or timm's own network can load.

    Args:
        folder: Directory of a finished run.
        out: File to write.
        form: Library to load the file with, "torchvision" or "timm". Default: the first of them that has the network.
            A narrow network is in neither; `create_backbone` loads it.

    Returns:
        Lines of Python that build the network, load the file and state which images it expects.

    Raises:
        FileFormatError: The directory is not a finished run.
        UsageError: The library has no such network, or `out` is a directory.
        MissingExtraError: The network or `form` needs timm, which is not installed.
    """
    if form == "timm":
        require_extra("timm", "vision", "--format timm")
    if out.is_dir():
        raise UsageError(f"--out is {out}, a directory, but expected a file such as {out / 'backbone.pth'}")
    network, record = run_backbone(folder)
    backbone, image_size = record["config"]["backbone"], record["data"]["image_size"]
    name = backbone.removeprefix("timm/")
    holders = _libraries_with(name)
    if form and form not in holders:
        raise UsageError(
            f"{form} has no {name}: "
            + (f"export it with --format {holders[0]}" if holders else "leave --format out for create_backbone's")
        )
    library = form or next(iter(holders), "")
    state = network.state_dict()
    lines = _lines(library, name, image_size, state, record["config"]["set"].get("backbone"))
    normalize = record["data"]["normalize"]
    lines += [
        f"model.load_state_dict(torch.load({str(out)!r}, weights_only=True))",
        "model.eval()",
        f"# RGB in [0, 1], {image_size} px, less mean {normalize['mean']}, divided by std {normalize['std']}",
    ]
    save_tensors(state, out)
    return "\n".join(lines)


def _libraries_with(name: str) -> list[str]:
    """Return those of torchvision and timm that have the network. Skip timm if it is not installed."""
    libraries = []
    if name in torchvision.models.list_models(module=torchvision.models):
        libraries.append("torchvision")
    if importlib.util.find_spec("timm") and importlib.import_module("timm").is_model(name):
        libraries.append("timm")
    return libraries


def _lines(
    library: str, name: str, image_size: int, state: dict[str, torch.Tensor], options: dict[str, Any] | None
) -> list[str]:
    """Return lines of Python that build the untrained network."""
    if not library:
        return [
            "import torch",
            "from idaa_lightly.backbones import create_backbone",
            f"model, num_features = create_backbone({name!r}, {image_size}{f', {options!r}' if options else ''})",
        ]
    if library == "timm":
        lines = ["import timm, torch", f"model = timm.create_model({name!r}, num_classes=0)"]
    else:
        lines = ["import torch, torchvision", f"model = torchvision.models.{name}()"]
        lines.append("model.fc = torch.nn.Identity()  # features, not classes; or keep fc and load with strict=False")
    if image_size <= SMALL:
        width = len(state["conv1.weight"])
        lines += [
            f"model.conv1 = torch.nn.Conv2d(3, {width}, 3, padding=1, bias=False)  # the CIFAR stem",
            "model.maxpool = torch.nn.Identity()",
        ]
    return lines
