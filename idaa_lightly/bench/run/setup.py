"""Construction of a run's parts from its configuration: data, method, augmentation and views."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from idaa_lightly.bench.config import SCOPES, RunConfig, check
from idaa_lightly.bench.progress import progress
from idaa_lightly.bench.run.loggers import logger_names
from idaa_lightly.bench.run.plugins import make_method, untrained_backbone
from idaa_lightly.bench.run.trainer import compiler_missing, resolved_precision, workers_of
from idaa_lightly.data import IN_MEMORY, MEMORY, DataSet, load_data
from idaa_lightly.errors import UsageError
from idaa_lightly.libraries import features_of_a_batch
from idaa_lightly.loading import PixelDataset, ViewDataset, require_labelled, view_loader
from idaa_lightly.options import options_of, parse_options
from idaa_lightly.plugin import Augmentation, Method
from idaa_lightly.registry import entries, load
from idaa_lightly.transforms.device import DeviceViews
from idaa_lightly.weights import load_pretrained

log = logging.getLogger(__name__)
DIGITS: dict[str, Any] = {
    "backbone": "resnet9-w16",
    "epochs": 15,
    "batch_size": 128,
    "aug": {"width": 32, "bottleneck_dim": 128},
}
"""Settings for digits, with which the default run trains for about a minute on 2 cores. They are not from a paper."""


@dataclass(frozen=True)
class Parts:
    """Parts of a run.

    Attributes:
        config: Resolved configuration.
        epochs: Epochs to train.
        batch_size: Images per batch, over all devices.
        data: Data set to train on.
        labelled: Data set to evaluate on. None if there are no labels.
        trait: Property of the backbone that its name does not tell, such as "the CIFAR stem". May be empty.
        weights: Facts about the weights that the backbone starts from. Empty without `config.weights`.
        method: Network and loss.
        augmentation: Augmentation, which is not fitted yet.
        views: Data set of views, made one image at a time by the method's transform.
        device_views: Module that makes the views of whole batches on the device. None if the data loader makes them.
        views_reason: Reason for using `device_views` or not, for the log and the record.
    """

    config: RunConfig
    epochs: int
    batch_size: int
    data: DataSet
    labelled: DataSet | None
    trait: str
    weights: dict[str, Any]
    method: Method
    augmentation: Augmentation
    views: ViewDataset
    device_views: DeviceViews | None
    views_reason: str

    @property
    def view_size(self) -> int:
        """Height and width of a training view, in pixels."""
        return self.config.view_size or self.data.image_size

    @property
    def steps(self) -> int:
        """Optimiser steps per epoch. Batches that do not fill a step are left out."""
        return len(self.views) // self.batch_size // self.config.accumulate

    @property
    def images_per_step(self) -> int:
        """Images per optimiser step, over all devices."""
        return self.batch_size * self.config.accumulate

    def loader(self, batch_size: int, *, ranks: int = 1, rank: int = 0) -> DataLoader[Any]:
        """Return a shuffling data loader of (views, labels), or of (pixels, labels) if the device makes the views.

        Args:
            batch_size: Images per batch on one device.
            ranks: Number of processes (DDP).
            rank: Number of this process, from 0.
        """
        if self.device_views is not None:
            return view_loader(PixelDataset(self.data.train, self.config.seed), batch_size, ranks=ranks, rank=rank)
        return view_loader(self.views, batch_size, workers=self.config.workers or 0, ranks=ranks, rank=rank)


def resolve(config: RunConfig) -> RunConfig:
    """Fill in the fields that do not depend on the data: recipe, plugin options and workers.

    Args:
        config: Configuration. Fields that are None are filled in.

    Returns:
        A configuration in which `set` holds all plugin options, and `lr` and `vae` have moved into it.

    Raises:
        UsageError: An option is unknown or out of range, or the method, the augmentation and `compile` do not go
            together.
        PluginError: There is no such method or augmentation.
    """
    check({item.name: getattr(config, item.name) for item in fields(config)})
    method, augmentation = load("method", config.method), load("augmentation", config.aug)
    logger_names(config.logger)
    if reason := augmentation.refuses(method):
        raise UsageError(f"{config.aug!r} does not go with {config.method!r}: {reason}")
    if config.compile and not augmentation.compiles:
        raise UsageError(f"{config.aug!r} does not work with torch.compile: leave --compile out")
    if config.compile and compiler_missing():
        log.info("Note: there is no C++ compiler, so --compile is left out.")
        config = replace(config, compile=False)
    digits = DIGITS if config.data == "digits" else {"aug": {}}
    given = {kind: dict(config.set.get(kind, {})) for kind in SCOPES}
    name_of_backbone = config.backbone or digits.get("backbone", "resnet18")
    for kind, plugin, name in (("method", method, "lr"), ("aug", augmentation, "vae")):
        value = getattr(config, name)
        if value is not None:
            if name not in options_of(plugin):
                raise UsageError(f"{getattr(config, kind)!r} has no option {name!r}: leave --{name} out")
            given[kind][name] = value
    for name in options_of(augmentation).keys() & digits["aug"]:
        given["aug"].setdefault(name, digits["aug"][name])
    batch_size = config.batch_size or digits.get("batch_size", method.batch_size)
    if method.scales_lr and "lr" in options_of(method):
        share = batch_size * config.accumulate / method.batch_size
        given["method"].setdefault("lr", share * options_of(method)["lr"].default)
    return replace(
        config,
        backbone=name_of_backbone,
        epochs=config.epochs or digits.get("epochs", method.epochs),
        batch_size=batch_size,
        workers=workers_of(config),
        precision=resolved_precision(config),
        lr=None,
        vae=None,
        set={
            "method": parse_options(method, config.method, given["method"]),
            "aug": parse_options(augmentation, config.aug, given["aug"]),
        }
        | _backbone_options(name_of_backbone, given["backbone"]),
    )


def _backbone_options(name: str, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of a backbone plugin under "backbone"; nothing for other backbones, which have no options."""
    if entries("backbone", name):
        return {"backbone": parse_options(load("backbone", name), name, given)}
    if given:
        raise UsageError(f"backbone {name!r} has no options: leave --set backbone.{min(given)} out")
    return {}


def make_parts(config: RunConfig, augmentation: Augmentation, data: DataSet, labelled: DataSet | None = None) -> Parts:
    """Build the method and its views from a resolved configuration.

    Args:
        config: Resolved configuration.
        augmentation: Augmentation from `make_augmentation`.
        data: Data set from `read_data`.
        labelled: Data set from `read_labelled`, if anything is to be evaluated on it.
    """
    torch.manual_seed(config.seed)
    built, weights = untrained_backbone(config, data), {}
    if config.weights:
        match, digest = load_pretrained(built.network, config.weights, built.plan)
        log.info(f"Weights from {config.weights}: {match.in_words()}.")
        weights = {"weights": {"sha256": digest, "missing": match.missing, "unexpected": match.unexpected}}
    method = make_method(config, built.network, built.num_features)
    transform = augmentation.transform(method.transform(config.view_size or data.image_size, data.normalize))
    views = ViewDataset(data.train, transform, config.seed)
    if method.multi_crop or config.view_size:
        _require_all_sizes(config, built.network, [view.shape[-1] for view in views[0, 0][0]])
    by, because = choose_views(config, data, views.transform)
    sizes = config.epochs or 1, config.batch_size or 1
    return Parts(config, *sizes, data, labelled, built.trait, weights, method, augmentation, views, by, because)


def _require_all_sizes(config: RunConfig, backbone: nn.Module, sizes: list[int]) -> None:
    """Refuse a backbone that works with views of one size only, if the method makes smaller ones as well."""
    for size in sorted(set(sizes)):
        try:
            features_of_a_batch(backbone, size, config.backbone or "")
        except UsageError as error:
            raise UsageError(
                f"{config.method!r} makes views of {size} px, but {error}, leave --view-size out, or take "
                "--set method.local_views=0 if the method has it"
            ) from error


def choose_views(config: RunConfig, data: DataSet, transform: Any) -> tuple[DeviceViews | None, str]:
    """Decide between views on the device and views from the data loader.

    Args:
        config: Configuration. Its `views` is "auto", "loader" or "device".
        data: Data set. Views on the device need its images in memory.
        transform: Transform of the method, which `DeviceViews` converts.

    Returns:
        The module that makes the views on the device, or None for the data loader; and the reason in words.

    Raises:
        UsageError: The configuration asks for views on the device, but they cannot be made there.
    """
    if config.views == "loader":
        return None, "as asked for"
    if data.train.pixels is None:
        if config.views == "device":
            raise UsageError(
                f"--views device needs images in memory, but those of {data.name} stay on disk, because they have more "
                f"than {IN_MEMORY} px or would take more than {MEMORY / 1e9:g} GB: use --views loader"
            )
        return None, "the images stay on disk"
    try:
        made = DeviceViews(transform)
    except UsageError as error:
        if config.views == "device":
            raise UsageError(f"{error}, by --views loader") from error
        return None, str(error)
    return made, "as asked for" if config.views == "device" else "the default with images in memory"


def read_data(config: RunConfig, *, quiet: bool = False) -> DataSet:
    """Read the data set of a configuration, and log how its images were converted.

    Args:
        config: Configuration, resolved or not.
        quiet: Log nothing.
    """
    data = load_data(
        config.data,
        data_dir=config.data_dir,
        image_size=config.image_size,
        limit_train=config.limit_train,
        test_fraction=config.test_fraction,
        progress=progress,
    )
    for note in () if quiet else data.notes:
        log.info(f"Note: {note}.")
    held = config.evaluate_on == "validation" and config.eval_data is None and data.labelled
    return data.held_out() if held else data


def read_labelled(config: RunConfig, data: DataSet) -> DataSet | None:
    """Return the data set that a run is evaluated on.

    Args:
        config: Configuration, resolved or not.
        data: Data set from `read_data`, which gives the image size and the normalisation.

    Returns:
        The data set of `eval_data`, or else `data` if it has labels. None without labels.

    Raises:
        DataError: The data set has no labels or is too small.
    """
    if config.eval_data is None:
        found = data if data.labelled else None
    else:
        found = load_data(
            config.eval_data,
            data_dir=config.data_dir,
            image_size=data.image_size,
            test_fraction=config.test_fraction,
            normalize=data.normalize,
            progress=progress,
        )
        for note in found.notes:
            log.info(f"Note: {found.name}: {note}.")
        found = found.held_out() if config.evaluate_on == "validation" else found
    if found is not None:
        require_labelled(found)
    return found
