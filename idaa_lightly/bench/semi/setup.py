"""Construction of a semi-supervised run's parts: labelled images, method, augmentation and views."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, cast

import torch
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor

from idaa_lightly.bench.compare.groups import BASELINE
from idaa_lightly.bench.config import check
from idaa_lightly.bench.run.loggers import logger_names
from idaa_lightly.bench.run.plugins import make_augmentation
from idaa_lightly.bench.run.setup import Parts
from idaa_lightly.bench.run.trainer import resolved_precision, workers_of
from idaa_lightly.bench.semi.config import SemiConfig
from idaa_lightly.bench.semi.fixmatch import METHODS, FixMatch
from idaa_lightly.bench.semi.network import WideResNet
from idaa_lightly.data import DataSet, Images
from idaa_lightly.errors import UsageError
from idaa_lightly.loading import ViewDataset, view_loader
from idaa_lightly.options import parse_options
from idaa_lightly.plugin import GeneratorAugmentation
from idaa_lightly.registry import load
from idaa_lightly.seeding import seed_of
from idaa_lightly.splits import balanced, validation_split


def resolve(config: SemiConfig) -> SemiConfig:
    """Fill in the fields that do not depend on the data: options of the method and of the augmentation, and workers.

    Args:
        config: Configuration. Fields that are None are filled in.

    Raises:
        UsageError: An option is unknown or out of range, or the method and the augmentation do not go together.
        PluginError: There is no such augmentation.
    """
    check({item.name: getattr(config, item.name) for item in fields(config) if item.name in config.names()}, SemiConfig)
    method, augmentation = METHODS[config.method], load("augmentation", config.aug)
    logger_names(config.logger)
    WideResNet(config.backbone or "")
    options = dict(config.set.get("method", {})) | ({} if config.lr is None else {"lr": config.lr})
    if "backbone" in config.set:
        raise UsageError(f"backbone {config.backbone!r} has no options: leave --set backbone.KEY out")
    resolved = replace(
        config,
        batch_size=config.batch_size or method.batch_size,
        workers=workers_of(config),
        precision=resolved_precision(config),
        lr=None,
        set={
            "method": parse_options(method, config.method, options),
            "aug": parse_options(augmentation, config.aug, dict(config.set.get("aug", {}))),
        },
    )
    made = make_augmentation(resolved)
    if config.aug != BASELINE and not method.unlabelled:
        raise UsageError(f"{config.method!r} has no views to attack, but aug is {config.aug!r}: use --aug {BASELINE}")
    if config.aug != BASELINE and not isinstance(made, GeneratorAugmentation):
        raise UsageError(
            f"aug is {config.aug!r}, but a semi-supervised run needs {BASELINE} or one that searches for a view of one "
            "image, such as idaa, random or clae"
        )
    if isinstance(made, GeneratorAugmentation) and made.mode != "exact":
        raise UsageError(f"mode is {made.mode}, but a semi-supervised run needs --set aug.mode=exact")
    return resolved


@dataclass(frozen=True)
class SemiParts(Parts):
    """Parts of a semi-supervised run. A batch of `Parts` holds the images without labels.

    Attributes:
        chosen: Indices of the labelled images, in ascending order.
    """

    chosen: Tensor

    @property
    def images_per_step(self) -> int:
        """Images per optimiser step, labelled or not, over all devices."""
        return (self.config.batch_size or 1) + self.batch_size * cast(FixMatch, self.method).unlabelled

    def loaders(self, ranks: int = 1, rank: int = 0) -> CombinedLoader:
        """Return the data loaders of an epoch; see `SemiSupervised` for a batch.

        Labelled images are repeated until they suffice for an epoch. Each repetition has views of its own.

        Args:
            ranks: Number of processes (DDP).
            rank: Number of this process, from 0.
        """
        size, method = self.config.batch_size or 1, cast(FixMatch, self.method)
        rows = self.chosen.repeat(-(-self.steps * size // len(self.chosen)))
        _, weak = self.views.transform.transforms  # type: ignore[attr-defined]
        views = ViewDataset(self.data.train.take(rows), weak, seed_of("labelled", self.config.seed))
        workers = self.config.workers or 0
        loaders = {"labelled": view_loader(views, size // ranks, workers=workers, ranks=ranks, rank=rank)}
        if method.unlabelled:
            loaders["unlabelled"] = self.loader(self.batch_size // ranks, ranks=ranks, rank=rank)
        return CombinedLoader(loaders, "min_size")

    @cached_property
    def validation(self) -> Images:
        """Training images for the curve of a run: those of the validation split whose labels are not trained on.

        With `evaluate_on = "validation"`, they are not trained on, and are the test images at the same time.
        """
        if self.config.evaluate_on == "validation":
            return self.data.test
        held = validation_split(self.data.train.labels)[1]
        return self.data.train.take(held[~torch.isin(held, self.chosen)])

    def labelled_facts(self) -> dict[str, Any]:
        """Return facts about the labelled images for the record."""
        return {
            "count": len(self.chosen),
            "per_class": self.data.train.labels[self.chosen].bincount(minlength=len(self.data.classes)).tolist(),
            "sha256": hashlib.sha256(self.chosen.numpy().tobytes()).hexdigest()[:16],
        }


def make_semi_parts(config: SemiConfig, data: DataSet) -> SemiParts:
    """Choose the labelled images, and build the method and its views.

    Args:
        config: Resolved configuration.
        data: Data set with labels.

    Raises:
        UsageError: There are fewer labels than classes, or fewer images than labels or than a batch needs.
    """
    options, size = config.set["method"], config.batch_size or 1
    if not len(data.classes) <= config.labels <= len(data.train):
        raise UsageError(
            f"labels is {config.labels}, but {data.name} has {len(data.classes)} classes and {len(data.train)} "
            "training images: give a number between them"
        )
    batch = size * options["ratio"]
    if len(data.train) < batch:
        raise UsageError(
            f"{data.name} has {len(data.train)} training images, but a batch has {batch} without labels, "
            f"{options['ratio']} for each of {size} labelled ones: lower --batch-size, or --set method.ratio=..."
        )
    epochs = config.epochs or -(-METHODS[config.method].steps // (len(data.train) // batch))
    config = replace(config, image_size=data.image_size, epochs=epochs)
    torch.manual_seed(config.seed)
    network = WideResNet(config.backbone or "")
    method = METHODS[config.method](network, network.num_features, len(data.classes), **options)
    views = ViewDataset(data.train, method.transform(data.image_size, data.normalize), config.seed)
    chosen = _labelled(data.train.labels, config.labels, config.seed)
    made = make_augmentation(config)
    return SemiParts(config, epochs, batch, data, data, "", {}, method, made, views, None, "RandAugment", chosen)


def _labelled(labels: Tensor, count: int, seed: int) -> Tensor:
    """Return the indices of the labelled images, balanced over the classes. Validation images are taken last."""
    kept, held = validation_split(labels)
    drawn = ((kept, count), (held, max(0, count - len(kept))))
    return torch.cat([pool[balanced(labels[pool], number, seed)] for pool, number in drawn]).sort().values
