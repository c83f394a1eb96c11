"""From a configuration to the parts of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.data import IN_MEMORY, DataSet, load_data
from idaa_lightly.errors import UsageError
from idaa_lightly.loading import PixelDataset, ViewDataset, describe, view_loader
from idaa_lightly.options import options_of, parse_options
from idaa_lightly.plugin import Augmentation, FitContext, Method
from idaa_lightly.registry import load
from idaa_lightly.transforms.device import DeviceViews

HALF = "bf16-mixed"
DIGITS: dict[str, Any] = {
    "backbone": "resnet9-w16",
    "epochs": 15,
    "batch_size": 128,
    "aug": {"width": 32, "bottleneck_dim": 128},
}
"""What lets the embedded default end within 3 minutes on 2 cores; no recipe of any paper."""


@dataclass(frozen=True)
class Parts:
    """What a resolved configuration stands for.

    Attributes:
        views: one image at a time, by the method's transform.
        device_views: the same of whole batches, where they train the network in place of `views`.
        views_reason: why they do, or do not.
    """

    config: RunConfig
    epochs: int
    batch_size: int
    data: DataSet
    method: Method
    augmentation: Augmentation
    views: ViewDataset
    device_views: DeviceViews | None
    views_reason: str

    def loader(self, batch_size: int, *, ranks: int = 1, rank: int = 0) -> DataLoader[Any]:
        """Shuffled batches of views and labels; or of pixels and labels, for the device to make views of."""
        if self.device_views is not None:
            return view_loader(PixelDataset(self.data.train, self.config.seed), batch_size, ranks=ranks, rank=rank)
        return view_loader(self.views, batch_size, workers=self.config.workers or 0, ranks=ranks, rank=rank)


def resolve(config: RunConfig) -> RunConfig:
    """Fills in what does not need the data: the recipe, the options with their defaults, the workers.

    Raises:
        UsageError: an option is unknown or out of range.
        PluginError: there is no such method or augmentation.
    """
    method, augmentation = load("method", config.method), load("augmentation", config.aug)
    if reason := augmentation.refuses(method):
        raise UsageError(f"{config.aug!r} does not go with {config.method!r}: {reason}")
    if config.compile and not augmentation.compiles:
        raise UsageError(f"{config.aug!r} does not work with torch.compile: leave --compile out")
    digits = DIGITS if config.data == "digits" else {"aug": {}}
    given = {kind: dict(config.set.get(kind, {})) for kind in ("method", "aug")}
    for kind, plugin, name in (("method", method, "lr"), ("aug", augmentation, "vae")):
        value = getattr(config, name)
        if value is not None:
            if name not in options_of(plugin):
                raise UsageError(f"{getattr(config, kind)!r} has no option {name!r}: leave --{name} out")
            given[kind][name] = value
    for name in options_of(augmentation).keys() & digits["aug"]:
        given["aug"].setdefault(name, digits["aug"][name])
    for name in ("epochs", "batch_size", "image_size", "limit_train"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, but must be 1 or more")
    if config.workers is not None and config.workers < 0:
        raise UsageError(f"workers is {config.workers}, but must be 0 or more")
    if config.precision.endswith("-true") and config.precision != "32-true":
        raise UsageError(f"precision is {config.precision}, but expected 32-true, bf16-mixed or 16-mixed")
    if config.views not in ("loader", "device", "auto"):
        raise UsageError(f"views is {config.views!r}, but expected loader, device or auto")
    return replace(
        config,
        backbone=config.backbone or digits.get("backbone", "resnet18"),
        epochs=config.epochs or digits.get("epochs", method.epochs),
        batch_size=config.batch_size or digits.get("batch_size", method.batch_size),
        workers=(0 if _on_cpu(config) else min(12, os.cpu_count() or 1)) if config.workers is None else config.workers,
        lr=None,
        vae=None,
        set={
            "method": parse_options(method, config.method, given["method"]),
            "aug": parse_options(augmentation, config.aug, given["aug"]),
        },
    )


def make_augmentation(config: RunConfig) -> Augmentation:
    """The augmentation of a resolved configuration."""
    augmentation: Augmentation = load("augmentation", config.aug)(**config.set["aug"])
    return augmentation


def make_parts(config: RunConfig, augmentation: Augmentation, data: DataSet) -> Parts:
    """Builds the network of a resolved configuration, and its views."""
    torch.manual_seed(config.seed)
    backbone, num_features = create_backbone(config.backbone or "", data.image_size)
    method: Method = load("method", config.method)(backbone, num_features, **config.set["method"])
    views = ViewDataset(data.train, method.transform(data.image_size, data.normalize), config.seed)
    made = choose_views(config, data, views.transform, on_cpu=_on_cpu(config))
    return Parts(config, config.epochs or 1, config.batch_size or 1, data, method, augmentation, views, *made)


def _on_cpu(config: RunConfig) -> bool:
    return config.accelerator == "cpu" or not torch.cuda.is_available()


def choose_views(config: RunConfig, data: DataSet, transform: Any, *, on_cpu: bool) -> tuple[DeviceViews | None, str]:
    """What makes the views on the device, or None where the loader does; and why.

    Raises:
        UsageError: the configuration wants the device to make them, and it cannot.
    """
    if config.views == "loader":
        return None, "as asked for"
    if data.train.pixels is None:
        if config.views == "device":
            raise UsageError(
                f"--views device needs images in memory, but those of {data.name} have more than {IN_MEMORY} px and "
                "stay on disk: use --views loader"
            )
        return None, "the images stay on disk"
    if config.views == "device":
        return DeviceViews(transform), "as asked for"
    if on_cpu:
        return None, "the default on the CPU; --views device is faster"
    try:
        return DeviceViews(transform), "the default on a GPU with images in memory"
    except UsageError as error:
        return None, str(error)


def make_trainer(config: RunConfig, **options: Any) -> pl.Trainer:
    """Lightning's Trainer on the devices of a configuration.

    Raises:
        UsageError: they are not there, or do not go together.
    """
    try:
        return pl.Trainer(
            accelerator=config.accelerator,
            devices=int(config.devices) if config.devices.isdigit() else config.devices,
            strategy=config.strategy,
            precision=config.precision,  # type: ignore[arg-type]
            enable_model_summary=False,
            **options,
        )
    except (ValueError, TypeError, ImportError, RuntimeError, MisconfigurationException) as error:
        raise UsageError(
            f"accelerator {config.accelerator}, devices {config.devices}, strategy {config.strategy} and precision "
            f"{config.precision} do not work here: {error}"
        ) from error


def read_data(config: RunConfig, console: Console) -> DataSet:
    """Reads the data of a configuration, and says what was done to it."""
    data = load_data(
        config.data,
        data_dir=config.data_dir,
        image_size=config.image_size,
        limit_train=config.limit_train,
        test_fraction=config.test_fraction,
        progress=progress,
    )
    for note in data.notes:
        console.print(f"Note: {note}.")
    return data


def fit(augmentation: Augmentation, parts: Parts, device: torch.device) -> None:
    """Fits an augmentation, in bfloat16 where the run has it."""
    half = parts.config.precision == HALF  # without a cache, which would keep the weights of the first step
    with torch.autocast(device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        augmentation.fit(fit_context(parts, device))


def fit_context(parts: Parts, device: torch.device) -> FitContext:
    """What the augmentation may use before the training starts."""
    return FitContext(
        views=lambda batch_size: FirstViews(parts, batch_size, device),
        key={
            "data": parts.data.train.fingerprint(),
            "transform": describe(parts.views.transform),
            "image_size": parts.data.image_size,
        }
        | ({"views": "device"} if parts.device_views else {})
        | ({"precision": HALF} if parts.config.precision == HALF else {}),
        images=len(parts.views),
        image_size=parts.data.image_size,
        channels=3,
        normalize=parts.data.normalize,
        epochs=parts.epochs,
        seed=parts.config.seed,
        device=device,
        cache_dir=cache_dir(),
        progress=progress,
    )


def cache_dir() -> Path:
    """$IDAA_LIGHTLY_CACHE, else idaa-lightly in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("IDAA_LIGHTLY_CACHE") or base / "idaa-lightly")


def progress(title: str, total: int) -> Callable[[str], None]:
    """A progress bar, on a terminal only; call the result after each step."""
    bar = tqdm(total=total, desc=title, leave=False, disable=None)

    def step(text: str) -> None:
        bar.set_postfix_str(text, refresh=False)
        bar.update()
        if bar.n >= total:
            bar.close()

    return step


class FirstViews:
    """Batches (N, C, H, W) of the first view of each image; other views each time it is iterated."""

    def __init__(self, parts: Parts, batch_size: int, device: torch.device) -> None:
        self.single = parts.views.transform.transforms[0]  # type: ignore[attr-defined]
        first = replace(parts, views=ViewDataset(parts.data.train, self._view, parts.config.seed))
        self.loader, self.epoch = first.loader(min(batch_size, len(parts.views))), 0
        self.make = parts.device_views and parts.device_views.first()
        self.seed, self.device = parts.config.seed, device

    def __iter__(self) -> Iterator[Tensor]:
        self.loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        epoch, self.epoch = self.epoch, self.epoch + 1
        for step, (views, _) in enumerate(self.loader):
            make = self.make
            yield views[0] if make is None else make(views.to(self.device), self.seed, "first", epoch, step)[0]

    def _view(self, image: Any) -> list[Tensor]:
        return [self.single(image)]
