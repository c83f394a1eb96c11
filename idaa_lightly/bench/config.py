"""What a run is asked to do. Imports neither torch nor lightly: the command line is made from these fields."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tomli_w

from idaa_lightly.errors import FileFormatError, UsageError, suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _option(default: Any, help: str, **click: Any) -> Any:
    made: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"help": help, "click": click})


@dataclass(frozen=True)
class RunConfig:
    """A run. What is None is filled in from the data, the method's recipe or the machine."""

    method: str = _option("simclr", "Self-supervised method; see `idaa-bench plugins`.")
    aug: str = _option("idaa", "Augmentation; see `idaa-bench plugins`.")
    data: str = _option("digits", "digits, cifar10, cifar100, stl10, fashionmnist or folder:PATH.")
    data_dir: str = _option("data", "Where torchvision's data sets are, or are downloaded to.")
    image_size: int | None = _option(None, "Pixels of a view. Default: the images' own, or 32 to 224 as they are.")
    limit_train: int | None = _option(None, "Use this many training images only, spread over the classes.")
    test_fraction: float = _option(0.2, "Share of test images where a folder has no split of its own.")
    backbone: str | None = _option(
        None,
        "ResNet of torchvision or timm, or a narrow one such as resnet18-w16. Default: resnet18; resnet9-w16 for "
        "digits. At 64 px and below it gets the CIFAR stem.",
    )
    epochs: int | None = _option(None, "Default: the method's recipe; 15 for digits.")
    batch_size: int | None = _option(None, "Default: the method's recipe; 128 for digits.")
    lr: float | None = _option(None, "Learning rate; short for --set method.lr=...")
    vae: str | None = _option(None, "File of a VAE made by `idaa-bench vae`; short for --set aug.vae=...")
    seed: int = _option(0, "Seed; give it several times for several runs and their mean ± std.", multiple=True)
    set: Mapping[str, Mapping[str, Any]] = _option(
        dict,
        "Option of the method or augmentation, such as aug.eps=0.1; see `idaa-bench plugins show NAME`.",
        multiple=True,
        metavar="KEY=VALUE",
    )
    accelerator: str = _option("auto", "As for Lightning's Trainer: auto, cpu, gpu, mps.")
    devices: str = _option("1", "Number of devices, or a list such as 0,1; as for Lightning's Trainer.")
    strategy: str = _option("auto", "As for Lightning's Trainer: auto, ddp, ...")
    precision: str = _option("32-true", "As for Lightning's Trainer: 32-true, bf16-mixed, ...")
    compile: bool = _option(False, "Compile the backbone with torch.compile.")
    views: str = _option(
        "auto",
        "What makes the views: loader, image by image with Lightly's transform; or device, whole batches there, in the "
        "same distribution. auto: device on a GPU where it can, else loader; the run says which.",
    )
    workers: int | None = _option(
        None, "Processes that make views with the loader. Default: 0 on the CPU, else one per core, up to 12."
    )

    def to_toml(self) -> str:
        """As TOML; what is None is left out."""
        return tomli_w.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """As plain values; what is None is left out."""
        return _without_none({item.name: getattr(self, item.name) for item in fields(self)})

    def flat(self) -> dict[str, Any]:
        """As plain values by name, the options of plugins as method.KEY and aug.KEY; what is None is left out."""
        values = self.to_dict()
        options = values.pop("set")
        return values | {f"{kind}.{key}": value for kind, items in options.items() for key, value in items.items()}

    def canonical(self) -> RunConfig:
        """Without what changes no result: where the data are, and how many processes make views of them."""
        return replace(self, data_dir="data", workers=None)

    def key(self) -> str:
        """Six characters that tell configurations apart, whatever the seed."""
        text = json.dumps(replace(self.canonical(), seed=0).to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]


def load_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        FileFormatError: the file is missing or no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as TOML: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """The fields that a TOML file sets.

    Raises:
        FileFormatError: the file is missing or no TOML.
        UsageError: it sets something unknown.
    """
    values = load_toml(path)
    known = [item.name for item in fields(RunConfig)]
    for name in values:
        if name not in known:
            raise UsageError(f"{path} sets {name!r}, but a run has: {', '.join(known)}.{suggestion(name, known)}")
    hints = get_type_hints(RunConfig)
    for name, value in values.items():
        if name == "set":
            good = isinstance(value, dict) and all(isinstance(items, dict) for items in value.values())
            if not good or set(value) - {"method", "aug"}:
                raise UsageError(f"{path} has set = {value!r}, but expected tables [set.method] and [set.aug]")
            continue
        kinds = get_args(hints[name]) or (hints[name],)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            expected = " or ".join(kind.__name__ for kind in kinds if kind is not type(None))
            raise UsageError(f"{path} has {name} = {value!r}, but expected {expected}")
    return values


def parse_set(items: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """("aug.eps=0.1",) to {"aug": {"eps": "0.1"}}.

    Raises:
        UsageError: not of the form method.KEY=VALUE or aug.KEY=VALUE.
    """
    result: dict[str, dict[str, Any]] = {}
    for item in items:
        key, equals, value = item.partition("=")
        kind, dot, name = key.strip().partition(".")
        if not (equals and dot and name) or kind not in ("method", "aug"):
            raise UsageError(f"--set got {item!r}, but expected method.KEY=VALUE or aug.KEY=VALUE")
        result.setdefault(kind, {})[name] = value
    return result


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
