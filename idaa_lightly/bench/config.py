"""Configuration of a run. Imports neither torch nor lightly, since the command line is made from its fields."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import tomli_w

from idaa_lightly.errors import FileFormatError, UsageError, suggestion
from idaa_lightly.options import Count, ImageSize, NonNegativeInt, Option, Share

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _option(default: Any, help: str, **click: Any) -> Any:
    made: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"help": help, "click": click})


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a run. Fields that are None are filled in from the data, the method's recipe or the machine."""

    method: str = _option("simclr", "Self-supervised method; see `idaa-bench plugins`.")
    aug: str = _option("idaa", "Augmentation; see `idaa-bench plugins`.")
    data: str = _option("digits", "digits, cifar10, cifar100, stl10, fashionmnist or folder:PATH.")
    data_dir: str = _option("data", "Where torchvision's data sets are, or are downloaded to.")
    image_size: ImageSize | None = _option(
        None, "Pixels of a view. Default: the images' own, or 32 to 224 as they are."
    )
    limit_train: Count | None = _option(None, "Use this many training images only, spread over the classes.")
    test_fraction: Share = _option(0.2, "Share of test images where a folder has no split of its own.")
    backbone: str | None = _option(
        None,
        "ResNet of torchvision or timm, or a narrow one such as resnet18-w16. Default: resnet18; resnet9-w16 for "
        "digits. At 64 px and below it gets the CIFAR stem.",
    )
    epochs: Count | None = _option(None, "Default: the method's recipe; 15 for digits.")
    batch_size: Count | None = _option(None, "Default: the method's recipe; 128 for digits.")
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
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = _option("32-true", "As for Lightning's Trainer.")
    compile: bool = _option(False, "Compile the backbone with torch.compile.")
    views: Literal["auto", "loader", "device"] = _option(
        "auto",
        "What makes the views: loader, image by image with Lightly's transform; or device, whole batches there, in the "
        "same distribution. auto: device on a GPU where it can, else loader; the run says which.",
    )
    workers: NonNegativeInt | None = _option(
        None, "Processes that make views with the loader. Default: 0 on the CPU, else one per core, up to 12."
    )

    def to_toml(self) -> str:
        """Return the configuration as TOML, without fields that are None."""
        return tomli_w.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by field, without fields that are None."""
        return _without_none({item.name: getattr(self, item.name) for item in fields(self)})

    def flat(self) -> dict[str, Any]:
        """Return plain values by name, with plugin options as method.KEY and aug.KEY, without fields that are None."""
        values = self.to_dict()
        options = values.pop("set")
        return values | {f"{kind}.{key}": value for kind, items in options.items() for key, value in items.items()}

    def canonical(self) -> RunConfig:
        """Return the configuration without what changes no result: the place of the data, and the number of workers."""
        return replace(self, data_dir="data", workers=None)

    def key(self) -> str:
        """Return six characters that tell configurations apart, whatever the seed."""
        text = json.dumps(replace(self.canonical(), seed=0).to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]


def load_toml(path: str | Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        FileFormatError: The file is missing or no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as TOML: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """Return the fields of a configuration that a TOML file sets.

    Raises:
        FileFormatError: The file is missing or no TOML.
        UsageError: It sets an unknown field, or a field to a value that is not of its type or range.
    """
    values = load_toml(path)
    try:
        check(values)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return values


def read_recipe(path: str | Path, name: str) -> dict[str, Any]:
    """Return the fields that a recipe sets, with those of its bases.

    Args:
        path: TOML file with tables [recipes] and [bases] of entries. An entry may name another as its `base`, whose
            fields it overrides.
        name: Name of a recipe.

    Raises:
        FileFormatError: The file cannot be read, or bases are missing or go round in a circle.
        UsageError: There is no such recipe, or it sets a field to a value that cannot be used.
    """
    content = load_toml(path)
    recipes, bases = (content.get(key, {}) for key in ("recipes", "bases"))
    if name not in recipes:
        raise UsageError(f"no recipe {name!r} in {path}; known: {', '.join(recipes)}.{suggestion(name, recipes)}")
    every, chain, values = bases | recipes, [name], dict(recipes[name])
    while (base := values.pop("base", None)) is not None:
        if base not in every or base in chain:
            reason = "has itself as a base" if base in chain else f"has the base {base!r}, which is not there"
            raise FileFormatError(f"{path}: the recipe {name!r} {reason}")
        chain.append(base)
        values = _merged(every[base], values)
    try:
        check(values)
    except UsageError as error:
        raise UsageError(f"{path}: {name}: {error}") from error
    return values


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields that override those of a base, table by table. `base` itself is the base's own."""
    result = {key: value for key, value in base.items()} | {key: value for key, value in own.items() if key != "base"}
    for key in base.keys() & own.keys():
        if isinstance(base[key], Mapping) and isinstance(own[key], Mapping):
            result[key] = _merged(base[key], own[key])
    return result


def check(values: Mapping[str, Any]) -> None:
    """Check the names of fields, and their values against types and ranges.

    Raises:
        UsageError: A field is unknown, or its value is not of its type or out of its range.
    """
    hints = get_type_hints(RunConfig, include_extras=True)
    for name, value in values.items():
        if name not in hints:
            raise UsageError(f"{name!r} is no field of a run, which has: {', '.join(hints)}.{suggestion(name, hints)}")
        if name != "set":
            Option(name, hints[name]).check(value)
        elif not isinstance(value, Mapping) or not all(
            kind in ("method", "aug") and isinstance(items, Mapping) for kind, items in value.items()
        ):
            raise UsageError(f"set is {value!r}, but expected tables [set.method] and [set.aug]")


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
