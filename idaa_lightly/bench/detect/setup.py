"""Construction of the parts of a detector's training: backbone, detector, images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from idaa_lightly.backbones import build_backbone
from idaa_lightly.bench.config import check
from idaa_lightly.bench.detect.coco import CocoData, CocoImages, Target
from idaa_lightly.bench.detect.config import DetectConfig
from idaa_lightly.bench.detect.network import METHODS, Detector, freeze, stages
from idaa_lightly.bench.evaluate.export import run_backbone
from idaa_lightly.bench.record import config_of, read_record
from idaa_lightly.bench.run.loggers import logger_names
from idaa_lightly.bench.run.trainer import resolved_precision, workers_of
from idaa_lightly.data import IMAGENET
from idaa_lightly.errors import UsageError
from idaa_lightly.loading import SeededDataset
from idaa_lightly.options import parse_options
from idaa_lightly.seeding import seeded
from idaa_lightly.weights import load_pretrained, matched

SIDE = 224  # The usual image size. The stem of a ResNet depends on it, nothing else.
LONGEST = 1333 / 800
"""Longer side of an image at most, in shorter sides."""
SCALES = [share / 25 for share in range(20, 26)]
"""Sizes of a training image: 640 to 800 px for 800 px, as in Detectron2's recipes."""


def resolve(config: DetectConfig) -> DetectConfig:
    """Fill in the fields that do not depend on the data: backbone, options of the detector, precision and workers.

    Args:
        config: Configuration. Fields that are None are filled in.

    Raises:
        UsageError: An option is unknown or out of range, or options do not go together.
        FileFormatError: RUN is not a finished run.
    """
    check({name: getattr(config, name) for name in config.names()}, type(config))
    logger_names(config.logger)
    if other := config.set.keys() - {"method"}:
        raise UsageError(f"a detector has no options {min(other)}.KEY: leave --set {min(other)}.KEY out")
    if config.init == "run" and not config.run:
        raise UsageError("init is run, but there is no RUN: name a run directory, or use --init scratch or imagenet")
    if config.init == "scratch" and config.norm == "frozen":
        raise UsageError(
            "init is scratch, but norm is frozen, and BatchNorms that were never trained normalise nothing: use "
            "--norm sync or batch"
        )
    of_run = read_record(Path(config.run))["config"].get("backbone") if config.run else None
    backbone = config.backbone or of_run
    if backbone is None or (of_run and backbone != of_run):
        got = (
            f"backbone is {backbone}, but {config.run} has {of_run}" if backbone else "there is no RUN and no backbone"
        )
        raise UsageError(f"{got}: name a run directory, or a network by --backbone, not both")
    options = dict(config.set.get("method", {})) | ({} if config.lr is None else {"lr": config.lr})
    return replace(
        config,
        backbone=backbone,
        run=config.run if config.init == "run" else None,
        weights=config.weights if config.init == "imagenet" else None,
        workers=workers_of(config),
        precision=resolved_precision(config),
        lr=None,
        set={"method": parse_options(METHODS[config.method], config.method, options)},
    )


@dataclass(frozen=True)
class DetectParts:
    """Parts of a detector's training.

    Attributes:
        config: Resolved configuration.
        data: Training and test images.
        detector: Network to train.
        epochs: Equal parts of the training.
        steps: Optimiser steps of each.
        normalize: Mean and standard deviation that the backbone expects.
        init: Facts about the weights that the backbone starts from.
    """

    config: DetectConfig
    data: CocoData
    detector: Detector
    epochs: int
    steps: int
    normalize: dict[str, list[float]]
    init: dict[str, Any]

    @property
    def batch_size(self) -> int:
        """Images per batch, over all devices."""
        return self.config.batch_size or 1


def make_parts(config: DetectConfig, data: CocoData) -> DetectParts:
    """Build the detector on its backbone, and lay out the steps.

    Args:
        config: Resolved configuration.
        data: Images and annotations.

    Raises:
        UsageError: The backbone cannot be used, weights cannot be loaded, or there are fewer images than a batch has.
        FileFormatError: RUN or the file of weights is damaged.
    """
    whole = len(data.train) // (config.batch_size or 1)
    if not whole:
        raise UsageError(
            f"{data.train.path} has {len(data.train)} images with objects, fewer than a batch of {config.batch_size}: "
            "lower --batch-size"
        )
    epochs = -(-config.steps // whole)
    if config.epochs not in (None, epochs):
        raise UsageError(
            f"epochs is {config.epochs}, but {config.steps} steps are {epochs} epochs of these images: leave epochs out"
        )
    torch.manual_seed(config.seed)
    network, normalize, init = _backbone(config)
    channels = stages(network, config.backbone or "")
    if config.norm == "frozen":
        freeze(network)
    size = config.image_size or 800
    common = {
        "min_size": tuple(round(size * scale) for scale in SCALES) if config.aug == "multiscale" else size,
        "max_size": round(size * LONGEST),
        "image_mean": normalize["mean"],
        "image_std": normalize["std"],
    }
    norm, classes = None if config.norm == "frozen" else nn.BatchNorm2d, len(data.train.categories) + 1
    detector = METHODS[config.method](network, channels, classes, norm, common, **config.set["method"])
    config = replace(config, epochs=epochs)
    return DetectParts(config, data, detector, epochs, -(-config.steps // epochs), normalize, init)


def _backbone(config: DetectConfig) -> tuple[nn.Module, dict[str, list[float]], dict[str, Any]]:
    """Return the backbone, the normalisation that it expects, and facts about its weights."""
    name = config.backbone or ""
    if config.init == "run":
        folder = Path(config.run or "")
        network, record = run_backbone(folder)
        of_run = config_of(record)
        digest = hashlib.sha256((folder / "backbone.pt").read_bytes()).hexdigest()
        facts = {"method": of_run.method, "aug": of_run.aug, "key": of_run.key(), "seed": of_run.seed, "sha256": digest}
        return network, record["data"]["normalize"], facts
    built = build_backbone(name, SIDE)
    network = built.network
    statistics = getattr(network, "pretrained_cfg", IMAGENET)  # Those of timm's weights.
    normalize = {key: list(statistics[key]) for key in IMAGENET}
    if config.init == "scratch":
        return network, normalize, {}
    if config.weights:
        match, digest = load_pretrained(network, config.weights, built.plan)
        return network, normalize, {"sha256": digest, "missing": match.missing}
    try:
        weights = get_model_weights(name)["IMAGENET1K_V1"]
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"torchvision has no ImageNet weights of {name}: pass their file by --weights, or --weights timm"
        ) from error
    try:
        with torch.random.fork_rng(devices=[]):  # The detector starts as it would without these weights.
            donor = get_model(name, weights=weights, progress=False)  # It knows the old names in files of DenseNets.
    except (OSError, RuntimeError) as error:  # No network, no such file there, or a wrong hash.
        raise UsageError(
            f"torchvision's weights of {name} cannot be downloaded ({error}): download {weights.url} on a machine with "
            "access, and pass the file by --weights FILE"
        ) from error
    match = matched(network, donor.state_dict())
    network.load_state_dict(match.found, strict=False)
    return network, normalize, {"weights": str(weights), "missing": match.missing}


class ObjectViews(SeededDataset):
    """Data set of images and their objects, flipped at random, indexed by (epoch, index).

    Args:
        images: Images without crowds.
        seed: Seed of the run.
    """

    def __init__(self, images: CocoImages, seed: int) -> None:
        self.images, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Target]:
        epoch, index = key
        image, target = self.images[index]
        with seeded("views", self.seed, epoch, index):
            flipped = bool(torch.rand(()) < 0.5)
        return flip(image, target) if flipped else (image, target)


def flip(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Mirror an image (3, H, W) and its objects from left to right."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    width = image.shape[-1]
    boxes = torch.stack([width - x2, y1, width - x1, y2], 1)
    return image.flip(-1), target | {"boxes": boxes, "masks": target["masks"].flip(-1)}
