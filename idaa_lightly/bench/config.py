"""Configuration of a run, from which the command line takes its options.

This module imports neither torch nor lightly, so that `idaa-bench --help` is fast.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import tomli_w
from annotated_types import Ge

from idaa_lightly.errors import FileFormatError, UsageError, suggestion
from idaa_lightly.files import require_file
from idaa_lightly.options import Count, ImageSize, NonNegativeInt, Option, Positive, Seed, Share

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from typing_extensions import Self

SCOPES = ("method", "aug", "backbone")
"""Plugins of a run that have options, as in `--set aug.eps=0.1`."""
NAMED = 12
"""Recipes that an error names, at most."""


def _option(default: Any, help: str, **click: Any) -> Any:
    made: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return field(**made, metadata={"help": help, "click": click})


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a run. Fields that are None are filled in from the data, the method's recipe or the machine."""

    method: str = _option("simclr", "Self-supervised method. `idaa-bench plugins show NAME` explains it.")
    aug: str = _option(
        "idaa", "Augmentation, or none for the method alone. `idaa-bench plugins show NAME` explains it."
    )
    data: str = _option(
        "digits",
        "Data set: digits (scikit-learn's), one of torchvision's cifar10, cifar100, stl10, fashionmnist, svhn, dtd, "
        "flowers102, aircraft, pets, food101 and cars, folder:PATH, images:PATH or wds:SHARDS. The folder holds one "
        "folder per class, or train/ and test/ (or val/) with one folder per class in each. images:PATH takes images "
        "without labels: all below a folder, or those that a .txt file lists, one path per line. wds:SHARDS takes "
        "local WebDataset shards, such as 'wds:shards-{000..099}.tar', with labels if they hold .cls files. Image "
        "files of more than 50 million pixels or with sides in a ratio above 50 are refused. The environment variables "
        "IDAA_LIGHTLY_MAX_PIXELS and IDAA_LIGHTLY_MAX_ASPECT raise these bounds.",
    )
    eval_data: str | None = _option(
        None,
        "Data set with labels for kNN and linear evaluation, as for --data. Default: that of --data. If it has no "
        "labels, accuracy is not measured.",
    )
    data_dir: str = _option("data", "Directory of torchvision's data sets. Missing ones are downloaded into it.")
    image_size: ImageSize | None = _option(
        None,
        "Height and width of a view, in pixels. Default: the size of the images if all are squares of the same size up "
        "to 96 px, else the largest of 32, 64, 96 and 224 not above the median of the images' shorter sides, but at "
        "least 32.",
    )
    view_size: ImageSize | None = _option(
        None,
        "Height and width of a training view, in pixels, if smaller than an image. Evaluations keep --image-size. "
        "Smaller views train faster. Default: --image-size.",
    )
    limit_train: Count | None = _option(None, "Use only this many training images, balanced over the classes.")
    test_fraction: Share = _option(
        0.2, "Share of images to test on if a folder has no train/ and test/, or of shards with labels."
    )
    evaluate_on: Literal["test", "validation"] = _option(
        "test",
        "Images of the final accuracies. test: the test images. validation: a tenth of the training images, balanced "
        "over the classes, which is left out of the training; use it to choose settings. Accuracies during training "
        "are always measured on that tenth, so no choice depends on the test images.",
    )
    backbone: str | None = _option(
        None,
        "Network of torchvision or timm, such as resnet18, vit_b_16 or convnext_atto, or a narrow ResNet such as "
        "resnet18-w16 (16 channels in the first stage), or a plugin such as whitened. For images of up to 64 px, "
        "ResNets get the CIFAR stem, and ViT, Swin and ConvNeXt smaller patches. Default: resnet18; resnet9-w16 for "
        "digits.",
    )
    weights: str | None = _option(
        None,
        "Weights of the backbone to continue from: a file, a run directory, or timm for timm's pretrained weights, "
        "which are downloaded. A file is a state dict, or a checkpoint of Lightly, Lightning or a run.",
    )
    epochs: Count | None = _option(None, "Epochs to train. Default: the method's recipe; 15 for digits.")
    save_every: Count | None = _option(
        None,
        "Number of epochs between checkpoints to keep, such as checkpoints/epoch-00010.ckpt, besides the last two. "
        "`knn`, `linear`, `embed` and `export` accept them. Each has the size of last.ckpt.",
    )
    batch_size: Annotated[int, Ge(2)] | None = _option(
        None, "Images per batch, summed over all devices; 2 or more. Default: the method's recipe; 128 for digits."
    )
    lr: float | None = _option(
        None,
        "Learning rate of the method. Default: the recipe's, which many methods scale with the batch size. Short for "
        "--set method.lr=...",
    )
    vae: str | None = _option(None, "VAE file written by `idaa-bench vae`. Short for --set aug.vae=...")
    seed: Seed = _option(
        0, "Random seed. Repeat the option to train several runs and get their mean ± std.", multiple=True
    )
    set: Mapping[str, Mapping[str, Any]] = _option(
        dict,
        "Option of the method, the augmentation or the backbone: method.KEY, aug.KEY or backbone.KEY, such as "
        "aug.eps=0.1. Can be repeated. `idaa-bench plugins show NAME` lists the options of a plugin.",
        multiple=True,
        metavar="KEY=VALUE",
    )
    logger: str = _option(
        "csv",
        "Loggers besides metrics.csv: tensorboard, wandb and mlflow, separated by commas. Can be repeated.",
        multiple=True,
    )
    accelerator: str = _option("auto", "Accelerator of Lightning's Trainer: auto, cpu, gpu or mps.")
    devices: str = _option("1", "Devices of Lightning's Trainer: their number, or a list such as 0,1.")
    num_nodes: Count = _option(1, "Machines that train together; see docs/clusters.md.")
    strategy: str = _option("auto", "Strategy of Lightning's Trainer: auto, ddp, ...")
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "auto"] = _option(
        "32-true",
        "Precision of Lightning's Trainer: 32-true, bf16-mixed or 16-mixed. auto: bf16-mixed on GPUs that compute in "
        "bfloat16, else 32-true.",
    )
    compile: bool = _option(
        False, "Compile the backbone with torch.compile. Left out with a note if there is no C++ compiler."
    )
    accumulate: Count = _option(
        1, "Batches per optimiser step. Their gradients are averaged; each batch is contrasted on its own."
    )
    clip: Positive | None = _option(
        None, "Largest norm of the gradient. Larger ones are scaled down. Default: no limit."
    )
    views: Literal["auto", "loader", "device"] = _option(
        "auto",
        "Where views are made. loader: one image at a time, by Lightly's transform. device: whole batches on the "
        "training device, from the same distribution. auto: device if the images are in memory and the transform is "
        "known, else loader. The run reports the choice.",
    )
    workers: NonNegativeInt | None = _option(
        None, "Worker processes of the data loader. Default: 0 on the CPU, else one per core, up to 12."
    )

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the fields that can be set."""
        return [item.name for item in fields(cls)]

    def to_toml(self) -> str:
        """Return the configuration as TOML, without fields that are None."""
        return tomli_w.dumps(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, without fields that are None."""
        return _without_none({name: getattr(self, name) for name in self.names()})

    def flat(self) -> dict[str, Any]:
        """Return the fields in one flat dictionary, without fields that are None.

        Options of plugins get keys such as "method.lr" and "aug.eps".
        """
        values = self.to_dict()
        options = values.pop("set")
        return values | {f"{kind}.{key}": value for kind, items in options.items() for key, value in items.items()}

    def canonical(self) -> Self:
        """Return the configuration with defaults for fields that change no result, such as `data_dir`."""
        return replace(self, data_dir="data", logger="csv", workers=None, save_every=None)

    def key(self) -> str:
        """Return a hash of six hexadecimal digits. Runs that differ only in their seed share it."""
        text = json.dumps(replace(self.canonical(), seed=0).to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]


def load_toml(path: str | Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Args:
        path: The file.

    Raises:
        FileFormatError: The file is missing or is not valid TOML.
    """
    require_file(path, "a TOML file")
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileFormatError(f"{path} cannot be read as TOML: {error}") from error


def read_toml(path: str | Path, kind: type[RunConfig] = RunConfig) -> dict[str, Any]:
    """Return the fields of a configuration that a TOML file sets.

    Args:
        path: The file, such as the config.toml of a run directory.
        kind: Class of the configuration.

    Raises:
        FileFormatError: The file is missing or is not valid TOML.
        UsageError: A field is unknown, or its value has the wrong type or is out of range.
    """
    values = load_toml(path)
    try:
        check(values, kind)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return values


def read_recipe(path: str | Path, name: str, kind: type[RunConfig] = RunConfig) -> dict[str, Any]:
    """Return the fields that a recipe sets, with those of its bases.

    Args:
        path: TOML file with tables [recipes] and [bases] of entries. An entry may name another as its `base`, whose
            fields it overrides.
        name: Name of a recipe.
        kind: Class of the configuration.

    Raises:
        FileFormatError: The file cannot be read, or bases are missing or go round in a circle.
        UsageError: There is no such recipe, or it sets a field to a value that cannot be used.
    """
    return recipe_in(load_toml(path), path, name, kind)


def recipe_in(
    content: dict[str, Any], path: str | Path, name: str, kind: type[RunConfig] = RunConfig
) -> dict[str, Any]:
    """Return what `read_recipe` returns, from the content of the file."""
    recipes, bases = (content.get(key, {}) for key in ("recipes", "bases"))
    if name not in recipes:
        more = f" and {len(recipes) - NAMED} more" * (len(recipes) > NAMED)
        known = ", ".join(list(recipes)[:NAMED]) + more
        raise UsageError(f"no recipe {name!r} in {path}; known: {known}.{suggestion(name, recipes)}")
    every, chain, values = bases | recipes, [name], dict(recipes[name])
    while (base := values.pop("base", None)) is not None:
        if base not in every or base in chain:
            reason = "has itself as a base" if base in chain else f"has the base {base!r}, which is not there"
            raise FileFormatError(f"{path}: the recipe {name!r} {reason}")
        chain.append(base)
        values = _merged(every[base], values)
    try:
        check(values, kind)
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


def check(values: Mapping[str, Any], kind: type[RunConfig] = RunConfig) -> None:
    """Check values by field against the names, types and ranges of a configuration.

    Args:
        values: Values by field. Fields may be missing.
        kind: Class of the configuration.

    Raises:
        UsageError: A field is unknown, or its value has the wrong type or is out of range.
    """
    found = get_type_hints(kind, include_extras=True)
    hints = {name: found[name] for name in kind.names()}
    for name, value in values.items():
        if name not in hints:
            known = ", ".join(hints)
            raise UsageError(f"{name!r} is not a field of a run; the fields are: {known}.{suggestion(name, hints)}")
        if name != "set":
            Option(name, hints[name]).check(value)
        elif not isinstance(value, Mapping) or not all(
            kind in SCOPES and isinstance(items, Mapping) for kind, items in value.items()
        ):
            raise UsageError(
                f"set is {value!r}, but expected the tables {', '.join(f'[set.{kind}]' for kind in SCOPES)}"
            )


def parse_set(items: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Parse values of `--set`: ("aug.eps=0.1",) becomes {"aug": {"eps": "0.1"}}.

    Args:
        items: Strings of the form SCOPE.KEY=VALUE, with a scope from `SCOPES`.

    Raises:
        UsageError: A string has another form.
    """
    result: dict[str, dict[str, Any]] = {}
    for item in items:
        key, equals, value = item.partition("=")
        kind, dot, name = key.strip().partition(".")
        if not (equals and dot and name) or kind not in SCOPES:
            raise UsageError(f"--set got {item!r}, but expected {' or '.join(f'{kind}.KEY=VALUE' for kind in SCOPES)}")
        result.setdefault(kind, {})[name] = value
    return result


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }
