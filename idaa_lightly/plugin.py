"""The two things that a plugin can be: a method or an augmentation.

Their options are the keyword-only arguments of the constructor, typed, with the default there and nowhere else, and
described under `Args:` in the class's docstring. A constructor that takes `**options` has those of its base, too.
"""

from __future__ import annotations

import inspect
import math
import re
import time
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from idaa_lightly.errors import PluginError, UsageError, suggestion
from idaa_lightly.losses import AdversarialLoss
from idaa_lightly.views import ViewGenerator


class Method(nn.Module, ABC):
    """A self-supervised method: how views become embeddings, and embeddings a loss, with its recipe.

    Args:
        backbone: images (N, C, H, W) to features (N, num_features); kept as `self.backbone`.
        num_features: dimension of the features.
    """

    epochs: ClassVar[int] = 300
    """Of the recipe; what `idaa-bench run` takes where nothing is said."""
    batch_size: ClassVar[int] = 256
    """Of the recipe, likewise."""

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.backbone, self.num_features = backbone, num_features

    @abstractmethod
    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """The views of a PIL image; `normalize` holds `mean` and `std` per channel, as for Lightly's transforms."""

    @abstractmethod
    def embed(self, images: Tensor) -> Any:
        """Images (N, C, H, W) to what the loss compares: a tensor, or a tuple, list or dict of tensors."""

    @abstractmethod
    def loss(self, anchor: Any, positive: Any, *others: Any) -> Tensor:
        """Scalar loss of embeddings of views of the same samples."""

    @abstractmethod
    def optimizer(
        self, parameters: Iterable[nn.Parameter], epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimiser, and its schedule, which is stepped after every optimiser step."""

    def forward(self, images: Tensor) -> Any:
        """Same as `embed`."""
        return self.embed(images)


class PairMethod(Method):
    """A method of one network and a pair loss: the constructor makes `self.head` and `self.criterion`."""

    head: nn.Module
    """Features (N, num_features) to projections (N, D)."""
    criterion: nn.Module
    """Lightly's `forward(out0, out1)`."""

    def embed(self, images: Tensor) -> Tensor:
        """Projections (N, D)."""
        projection: Tensor = self.head(self.backbone(images).flatten(1))
        return projection

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """The criterion on the first two views."""
        loss: Tensor = self.criterion(anchor, positive)
        return loss


@dataclass(frozen=True)
class FitContext:
    """What an augmentation may use before the training starts.

    Attributes:
        views: called with a batch size, gives something that yields batches (N, C, H, W) of the method's augmented,
            normalised training views each time it is iterated.
        key: JSON values that say what `views` depends on.
        images: number of training images.
        image_size: of the views, in pixels.
        channels: of the views.
        epochs: of the training to come.
        seed: of the run.
        device: of the training.
        cache_dir: for what can be reused by other runs.
        progress: called with a title and a number of steps, gives a function to call after each step with a text.
    """

    views: Callable[[int], Iterable[Tensor]]
    key: dict[str, object]
    images: int
    image_size: int
    channels: int
    epochs: int
    seed: int
    device: torch.device
    cache_dir: Path
    progress: Callable[[str, int], Callable[[str], None]]


class Augmentation(ABC):
    """Turns a method and views into a loss."""

    relative_cost: float = 1.9
    """Time of a training step relative to the method's own, for the estimate at the start of a run."""
    dual_batchnorm: ClassVar[bool] = True
    """Whether the method is converted by `dual_batchnorm` first."""

    def fit(self, context: FitContext) -> None:  # noqa: B027 - most augmentations need no fitting
        """Prepares what the augmentation needs; called once, before `loss`."""

    def fit_seconds(self, context: FitContext) -> float:
        """About how long `fit` will take."""
        return 0.0

    @abstractmethod
    def loss(self, method: Method) -> nn.Module:
        """A module called as `loss(method, x0, x1, ...)`.

        It gives a NamedTuple with the scalar `total`, which is minimised; its other scalars are logged.
        """

    def panels(self, images: Tensor) -> dict[str, Tensor]:
        """Further rows of images (N, C, H, W) for the picture of views, by title."""
        return {}


class GeneratorAugmentation(Augmentation):
    """An augmentation by a view generator inside `AdversarialLoss`.

    Args:
        weight: of the adversarial term, 0 or more.
    """

    def __init__(self, *, weight: float = 1.0) -> None:
        require_at_least(0, weight=weight)
        self.weight = weight

    @abstractmethod
    def generator(self) -> ViewGenerator:
        """The generator; called after `fit`."""

    def loss(self, method: Method) -> nn.Module:
        """The method's loss on clean views, and on the generator's."""
        return AdversarialLoss(method.loss, self.generator(), self.weight)


def shortest(function: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of a few calls, for estimates."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def require_at_least(least: float, **options: float) -> None:
    """Raises UsageError for the first option that is not a finite number, `least` or more."""
    for name, value in options.items():
        if not (math.isfinite(value) and value >= least):
            raise UsageError(f"{name} is {value}, but must be a finite number, {least} or more")


@dataclass(frozen=True)
class Option:
    """An option of a plugin."""

    name: str
    annotation: Any
    default: Any
    help: str

    @property
    def type_name(self) -> str:
        """The type as people write it."""
        origin, parts = get_origin(self.annotation), get_args(self.annotation)
        if origin is Literal:
            return " or ".join(map(str, parts))
        if origin in (Union, types.UnionType):
            return " | ".join(Option("", part, None, "").type_name for part in parts)
        return getattr(self.annotation, "__name__", str(self.annotation)).replace("NoneType", "None")

    def parse(self, value: Any) -> Any:
        """The value as its type, from a string or a TOML value.

        Raises:
            UsageError: it is not of that type.
        """
        text = str(value).strip()
        kinds: tuple[Any, ...] = (self.annotation,)
        if get_origin(self.annotation) in (Union, types.UnionType):
            kinds = get_args(self.annotation)
            if types.NoneType in kinds and text.lower() in ("none", ""):
                return None
        for kind in kinds:
            if get_origin(kind) is Literal and text in map(str, get_args(kind)):
                return next(choice for choice in get_args(kind) if str(choice) == text)
            if kind is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if kind in (int, float, str):
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise UsageError(f"{self.name} is {text!r}, but expected {self.type_name}")


def options_of(plugin: type) -> dict[str, Option]:
    """The options of a plugin class by name, its own before its bases'."""
    options: dict[str, Option] = {}
    for cls in plugin.__mro__:
        if "__init__" not in vars(cls):
            continue
        constructor = vars(cls)["__init__"]
        signature, hints = inspect.signature(constructor), get_type_hints(constructor)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in options:
                if name not in hints or parameter.default is parameter.empty:
                    raise PluginError(f"option {name!r} of {cls.__qualname__} needs a type and a default")
                options[name] = Option(name, hints[name], parameter.default, _described(plugin, name))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return options


def parse_options(plugin: type, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a plugin with their values, given or default.

    Raises:
        UsageError: an option is unknown or has a wrong type.
    """
    options = options_of(plugin)
    for key in given:
        if key not in options:
            raise UsageError(
                f"{name!r} has no option {key!r}; it has: {', '.join(options) or 'none'}.{suggestion(key, options)}"
            )
    return {key: option.parse(given[key]) if key in given else option.default for key, option in options.items()}


def _described(plugin: type, name: str) -> str:
    """The option's text under `Args:` in the docstring of the class or of one of its bases."""
    for cls in plugin.__mro__:
        found = re.search(rf"^( +){name}: (.*(?:\n\1 +.*)*)", cls.__doc__ or "", re.MULTILINE)
        if found:
            return " ".join(found[2].split())
    return ""
