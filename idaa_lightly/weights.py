"""Weights to continue from: files of our runs, Lightly, torchvision and timm, matched by name and shape."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from idaa_lightly.errors import FileFormatError, UsageError, require_extra
from idaa_lightly.files import load_tensors, require_file
from idaa_lightly.libraries import Blueprint

SHOWN = 6
"""Number of names in a list of a message."""


class Match(NamedTuple):
    """Tensors of a file that fit a network.

    Attributes:
        found: Tensors by their name in the network.
        missing: Names in the network that have no tensor of the same shape.
        unexpected: Names in the file that have no place in the network.
    """

    found: dict[str, Tensor]
    missing: list[str]
    unexpected: list[str]

    def in_words(self) -> str:
        """Return a sentence that names the tensors that did not fit."""
        text = f"{len(self.found)} of {len(self.found) + len(self.missing)} tensors of the backbone"
        for title, names in (
            ("missing, so left at their initial values", self.missing),
            ("unexpected, so left out", self.unexpected),
        ):
            more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
            text += f"; {title}: {', '.join(names[:SHOWN])}{more}" * bool(names)
        return text


def load_pretrained(network: nn.Module, source: str, plan: Blueprint | None = None) -> tuple[Match, str]:
    """Load weights into a backbone.

    Args:
        network: Backbone to change in place.
        source: A run directory, a file, or "timm" for the pretrained weights of timm, which are downloaded. A file is a
            state dict, or a dictionary that holds one, such as a checkpoint of Lightning. The names of its tensors
            may have a common prefix such as "backbone.". The backbone may also be the
            `nn.Sequential(*children)` of Lightly's examples. Only tensors are read, no code.
        plan: Construction of the network, which "timm" needs.

    Returns:
        The tensors that fit, and the SHA-256 of the file or an empty string.

    Raises:
        FileFormatError: The file is missing or holds something else, or fewer than half of the tensors fit.
        UsageError: The source is "timm", but the network is not timm's or its weights cannot be loaded.
        MissingExtraError: A .safetensors file is given, but the package safetensors is not installed.
    """
    digest = ""
    states: list[Mapping[Any, Any]]
    if source == "timm":
        states = [_of_timm(plan)]
    else:
        path = Path(source)
        path = path / "backbone.pt" if path.is_dir() else path
        content = _read(path)
        states = [part for part in (content, *content.values()) if isinstance(part, Mapping)]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    match = max((matched(network, state) for state in states), key=lambda match: len(match.found))
    if len(match.found) < len(match.missing):
        raise FileFormatError(
            f"{source} does not fit the backbone: it has {len(match.found)} of {len(network.state_dict())} tensors, "
            "but expected most of them: choose the backbone that the weights belong to"
        )
    network.load_state_dict(match.found, strict=False)
    return match, digest


def matched(network: nn.Module, state: Mapping[Any, Any]) -> Match:
    """Find the tensors of a network in a state dict, whatever prefix their names have.

    Adversarial branches of BatchNorms are skipped.

    Args:
        network: Network to fill.
        state: State dict of the network, or of a larger module that contains it.
    """
    tensors = {str(key): part for key, part in state.items() if isinstance(part, Tensor)}
    tensors = {key: part for key, part in tensors.items() if ".adversarial." not in key}
    own = network.state_dict()
    best = Match({}, list(own), [])
    for names in ({name: name for name in own}, _numbered(network)):
        endings = set(names.values())
        prefixes = (key.removesuffix(end) for key in tensors for end in endings if key.endswith(end))
        for prefix in dict.fromkeys(prefixes):  # The first of several that fit as well is the trained network.
            places = {name: prefix + theirs for name, theirs in names.items() if prefix + theirs in tensors}
            found = {name: tensors[key] for name, key in places.items() if tensors[key].shape == own[name].shape}
            if len(found) > len(best.found):
                used = {places[name] for name in found}
                unexpected = [key for key in tensors if key.startswith(prefix) and key not in used]
                best = Match(found, [name for name in own if name not in found], unexpected)
    return best


def _numbered(network: nn.Module) -> dict[str, str]:
    """Return the names that the tensors of a network have in `nn.Sequential(*network.children())`."""
    places = {name: str(index) for index, (name, _) in enumerate(network.named_children())}
    parts = {name: name.partition(".") for name in network.state_dict()}
    return {name: places.get(first, first) + dot + rest for name, (first, dot, rest) in parts.items()}


def _read(path: Path) -> dict[str, Any]:
    expected = "a state dict, or a checkpoint of tensors and plain values that holds one"
    if path.suffix != ".safetensors":
        return load_tensors(path, expected)
    require_file(path, expected)
    require_extra("safetensors", "vision", "a .safetensors file")
    from safetensors.torch import load_file

    try:
        content: dict[str, Any] = load_file(path)
    except Exception as error:  # Its reader is written in Rust and raises exceptions of its own.
        raise FileFormatError(f"{path} is not {expected}: {error}") from error
    return content


def _of_timm(plan: Blueprint | None) -> dict[str, Tensor]:
    """Download pretrained weights of timm, which interpolates patches and position embeddings if it can."""
    if plan is None or plan.library != "timm":
        raise UsageError(
            "--weights timm needs a network of timm: choose one with --backbone, such as timm/resnet18, or pass a file"
        )
    timm = require_extra("timm", "vision", "--weights timm")
    name = plan.args[0]
    faults = []
    for kwargs in (plan.kwargs, {"num_classes": 0}):
        try:
            with torch.random.fork_rng(devices=[]):  # What is built next starts as it would without these weights.
                donor: nn.Module = timm.create_model(name, pretrained=True, **kwargs)
            return donor.state_dict()
        except Exception as error:  # Shapes that do not fit, no network, no such weights: many exceptions.
            faults.append(" ".join(str(error).split())[:300])
    raise UsageError(
        f"timm's weights of {name} cannot be loaded ({faults[-1]}): download their file on a machine with access, and "
        "pass it to --weights"
    )
