"""The two things that a plugin can be: a method or an augmentation.

Their options are the keyword-only arguments of the constructor; see `idaa_lightly.options`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.losses import AdversarialLoss
from idaa_lightly.options import NonNegative, check_at_construction
from idaa_lightly.variants import LOSSES, Mode
from idaa_lightly.views import ViewGenerator


class Method(nn.Module, ABC):
    """A self-supervised method: how views become embeddings, and embeddings a loss, with its recipe.

    Args:
        backbone: images (N, C, H, W) to features (N, num_features); kept as `self.backbone`.
        num_features: dimension of the features.
    """

    epochs: ClassVar[int] = 300
    """Epochs of the published recipe. Overridden by `--epochs`."""
    batch_size: ClassVar[int] = 256
    """Batch size of the published recipe. Overridden by `--batch-size`."""
    multi_crop: ClassVar[bool] = False
    """True if `transform` gives smaller views after the first two."""

    def __init_subclass__(cls) -> None:
        """Check the options of every method by their annotations when it is constructed."""
        super().__init_subclass__()
        check_at_construction(cls)

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.backbone, self.num_features = backbone, num_features

    @abstractmethod
    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """The views of a PIL image; `normalize` holds `mean` and `std` per channel, as for Lightly's transforms."""

    @abstractmethod
    def embed(self, images: Tensor) -> Any:
        """Images (N, C, H, W) to what the loss compares: a tensor, or a tuple, list or dict of tensors.

        Of several, the first is the embedding (N, D) by the network that is trained, such as BYOL's prediction; those
        of a momentum network come after it, outside the graph.
        """

    @abstractmethod
    def loss(self, anchor: Any, positive: Any, *others: Any) -> Tensor:
        """Scalar loss of embeddings of views of the same samples.

        Attacks perturb the image behind `positive`, against an `anchor` that is held fixed.
        """

    @abstractmethod
    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimiser of parameters, or of groups of them, and its schedule, stepped after every optimiser step."""

    def before_step(self, step: int, epochs: int, steps_per_epoch: int) -> None:
        """Called before each training step, counted from 0: the place to update a momentum network."""

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
        normalize: `mean` and `std` per channel of the views, as given to `Method.transform`.
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
    normalize: dict[str, list[float]]
    epochs: int
    seed: int
    device: torch.device
    cache_dir: Path
    progress: Callable[[str, int], Callable[[str], None]]


class Augmentation(ABC):
    """Turns a method and views into a loss."""

    dual_batchnorm: bool = True
    """Whether the method is converted by `dual_batchnorm` first."""
    compiles: ClassVar[bool] = True
    """Whether it works with a compiled backbone."""
    lr: NonNegative | None = None
    """Learning rate of the loss's own parameters, if it has any; the method's where it is None."""

    def __init_subclass__(cls) -> None:
        """Check the options of every augmentation by their annotations when it is constructed."""
        super().__init_subclass__()
        check_at_construction(cls)

    @classmethod
    def refuses(cls, method: type[Method]) -> str:
        """Why it cannot go with this method, as a sentence; empty where it can."""
        return ""

    def fit(self, context: FitContext) -> None:  # noqa: B027 - most augmentations need no fitting
        """Prepare what the augmentation needs. Called once, before `loss`.

        Report each pass over `context.views` by `context.progress`. To estimate how long a run takes, `fit` is also
        called on a copy, with one batch. The copy is interrupted at its first report and then asked for its `loss`, so
        assign what `loss` needs before the first pass ends.
        """

    def fitted(self) -> dict[str, Any]:
        """What `fit` made, as JSON values for the run's record."""
        return {}

    @abstractmethod
    def loss(self, method: Method) -> nn.Module:
        """A module called as `loss(method, x0, x1, ...)`.

        It gives a NamedTuple with the scalar `total`, which is minimised; its other scalars are logged. Parameters of
        its own are trained by the same backward pass, in a group of the method's optimiser. It is deep-copied with the
        method to count operations: let it reach the method by its argument, a bound method or functools.partial, not
        by a lambda.
        """

    def panels(self, images: Tensor) -> dict[str, Tensor]:
        """Further rows of images (N, C, H, W) for the picture of views, by title."""
        return {}


class GeneratorAugmentation(Augmentation):
    """An augmentation by a view generator inside `AdversarialLoss`.

    Args:
        weight: of the adversarial term.
        random: the control: a random direction of the same length instead of the search.
        mode: exact; or cheaper and approximate: reused (search on the graph of the clean pass), half (attack half of
            the batch); or shared, the ablation without an adversarial BatchNorm. See `idaa_lightly.variants`.
    """

    def __init__(self, *, weight: NonNegative = 1.0, random: bool = False, mode: Mode = "exact") -> None:
        self.weight, self.random, self.mode = weight, random, mode
        self.dual_batchnorm = mode != "shared"

    @abstractmethod
    def generator(self) -> ViewGenerator:
        """The generator; called after `fit`."""

    def loss(self, method: Method) -> nn.Module:
        """The method's loss on clean views, and on the generator's."""
        generator = self.generator()
        return LOSSES[self.mode](method.loss, generator.control() if self.random else generator, self.weight)


class LearnedAugmentation(Augmentation):
    """An augmentation by a network inside `AdversarialLoss`, which is trained to raise the loss.

    Args:
        weight: of the adversarial term.
        lr: learning rate of the generator; the method's where it is None.
    """

    def __init__(self, *, weight: NonNegative = 1.0, lr: NonNegative | None = None) -> None:
        self.weight, self.lr = weight, lr

    def fit(self, context: FitContext) -> None:
        """Takes over how the views are normalised."""
        self.normalize = context.normalize

    @abstractmethod
    def generator(self, method: Method) -> nn.Module:
        """The generator; called after `fit`."""

    def loss(self, method: Method) -> nn.Module:
        """The method's loss on clean views, and on the generator's."""
        return AdversarialLoss(method.loss, self.generator(method), self.weight)
