"""Base classes of augmentations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn

from idaa_lightly.errors import UsageError
from idaa_lightly.learned import Direction
from idaa_lightly.losses import AdversarialLoss
from idaa_lightly.options import NonNegative, check_at_construction
from idaa_lightly.plugin.controls import Control, third_view_controls, unperturbed_second_view
from idaa_lightly.plugin.fitting import FitContext
from idaa_lightly.plugin.methods import Method, PairMethod
from idaa_lightly.variants import LOSSES, REPLACING, Mode, Place
from idaa_lightly.views import ViewGenerator


class Augmentation(ABC):
    """Augmentation that turns a method into a loss over views.

    Example:
        >>> from idaa_lightly.plugin import Augmentation
        >>> class Attack(Augmentation):
        ...     def loss(self, method):
        ...         return AdversarialLoss(method.loss, CLAE(), weight=0.5)
        >>> Attack().dual_batchnorm
        True
    """

    dual_batchnorm: bool = True
    """True if the method is converted by `dual_batchnorm` before training."""
    compiles: ClassVar[bool] = True
    """True if the augmentation works with a compiled backbone."""
    lr: NonNegative | None = None
    """Learning rate of the loss's own parameters, if it has any. None takes the method's."""
    adds: ClassVar[str] = "all of the augmentation"
    """Part that the augmentation adds to the last of its `controls` that has `adds`."""

    def __init_subclass__(cls) -> None:
        """Check the options of every augmentation by their annotations when it is constructed."""
        super().__init_subclass__()
        check_at_construction(cls)

    @classmethod
    def refuses(cls, method: type[Method]) -> str:
        """Return the reason why the augmentation cannot be combined with a method, as a sentence.

        Args:
            method: Class of the method.

        Returns:
            The reason, or an empty string if they can be combined.
        """
        return ""

    def controls(self, method: type[Method]) -> list[Control]:
        """Return the runs that show which part of the augmentation helps, for `idaa-bench ablate`.

        The method alone is always included, at equal epochs and at equal operations. Do not list it here.

        Args:
            method: Class of the method.
        """
        return []

    def transform(self, transform: MultiViewTransform) -> MultiViewTransform:
        """Return the transform that makes the views of a training image. The default is the method's own.

        Args:
            transform: Transform of the method. Its `transforms` make one view each.
        """
        return transform

    def fit(self, context: FitContext) -> None:  # noqa: B027 - most augmentations need no fitting
        """Prepare what the augmentation needs, such as a VAE. Called once, before `loss`.

        Report each pass over `context.views` through `context.progress`. To estimate how long a run takes, `fit` is
        also called on a copy, with one batch. That call is interrupted at its first report, and `loss` is then called
        on the copy. Therefore assign everything that `loss` needs before the first pass ends.

        Args:
            context: Views and facts of the training.
        """

    def fitted(self) -> dict[str, Any]:
        """Return a description of the result of `fit`, as JSON values for the run's record.

        Values are dictionaries by name of the fitted part. Their entry `flops`, the floating-point operations of the
        fitting, counts towards the compute of the run.
        """
        return {}

    @abstractmethod
    def loss(self, method: Method) -> nn.Module:
        """Return the module that computes the loss, called as `loss(method, x0, x1, ...)`.

        The module returns a NamedTuple whose scalar `total` is minimised and whose other scalars are logged. Parameters
        of the module are trained by the same backward pass, in a group of the method's optimiser. To count operations,
        the module is deep-copied together with the method. It must therefore reach the method through its argument, a
        bound method or `functools.partial`, but not through a lambda.

        Args:
            method: Method whose loss is augmented.
        """

    def panels(self, images: Tensor) -> dict[str, Tensor]:
        """Return further rows of images, (N, C, H, W) each, for the picture of views. Keys are titles.

        Args:
            images: Images, (N, C, H, W).
        """
        return {}


NO_GRADIENT = "its search starts at the view itself, where the gradient of this method's loss is zero"


class GeneratorAugmentation(Augmentation):
    """Augmentation with a view generator inside `AdversarialLoss`.

    Args:
        weight: Weight of the adversarial term.
        random: Control: replace the search by a random direction of the largest length within the bound.
        mode: Variant of the loss, see `idaa_lightly.variants`. reused (search on the graph of the clean pass) and half
            (attack half of the batch) are cheaper approximations. shared is the ablation without an adversarial
            BatchNorm.
        place: add makes the view from the first one, for a second term of the loss. replace makes it from the second
            view, which it replaces, so that the loss has one term.

    Raises:
        UsageError: `place` is replace, and `mode` or `weight` does not go with it.

    Example:
        >>> from idaa_lightly.plugin import GeneratorAugmentation
        >>> class Attack(GeneratorAugmentation):
        ...     def generator(self):
        ...         return ViewGenerator(PixelSpace(), PGD(eps=0.03, steps=3))
        >>> Attack(weight=0.5).generator().control()
        ViewGenerator(PixelSpace(), RandomDirection(eps=0.03, norm='linf'))
    """

    adds = "search"
    starts_at_input: ClassVar[bool] = True
    """Set to False if the search starts at another point than the view, or does not search."""

    @classmethod
    def refuses(cls, method: type[Method]) -> str:
        """Refuse methods whose loss has no gradient at the start of the search."""
        return NO_GRADIENT if cls.starts_at_input and not method.start_gradient else ""

    def __init__(
        self, *, weight: NonNegative = 1.0, random: bool = False, mode: Mode = "exact", place: Place = "add"
    ) -> None:
        if place == "replace" and (mode not in REPLACING or weight != 1):
            raise UsageError(
                f"place is replace, with mode {mode} and weight {weight}: it needs mode exact or shared, and weight 1"
            )
        self.weight, self.random, self.mode, self.place = weight, random, mode, place
        self.dual_batchnorm = mode != "shared"

    def controls(self, method: type[Method]) -> list[Control]:
        """Return controls of the view's place, a random direction, and the search with one BatchNorm."""
        single = method.embed is PairMethod.embed
        found = (
            third_view_controls(self.weight, uniformity=single, shared=not self.dual_batchnorm)
            if self.place == "add"
            else [unperturbed_second_view()] * self.dual_batchnorm
        )
        if not self.random:
            found.append(Control("random direction", options={"aug": {"random": True}}, adds="random direction"))
        if self.dual_batchnorm:
            one = {"aug": {"mode": "shared"}}
            found.append(Control("search with one BatchNorm", options=one, judged=False, twin=True))
        return found

    @abstractmethod
    def generator(self) -> ViewGenerator:
        """Return the view generator. Called after `fit`."""

    def search(self) -> nn.Module:
        """Return the module that makes the views. The default is `generator()`."""
        return self.generator()

    def loss(self, method: Method) -> nn.Module:
        """Return the adversarial loss of the method, with this generator or its control.

        Raises:
            UsageError: The options make the search start where the gradient of this method's loss is zero.
        """
        search = self.generator().control() if self.random else self.search()
        starts = not self.starts_at_input and getattr(search, "starts_at_input", False)  # `refuses` knows the others.
        if starts and not (self.random or method.start_gradient):
            raise UsageError(f"with these options, {NO_GRADIENT}")
        if self.place == "replace":
            return REPLACING[self.mode](method.loss, search)
        return LOSSES[self.mode](method.loss, search, self.weight)


class LearnedAugmentation(Augmentation):
    """Augmentation with a generator network inside `AdversarialLoss`.

    Args:
        weight: Weight of the adversarial term.
        lr: Learning rate of the generator. None takes the method's.
        direction: ascend trains the generator to raise the loss, descend to lower it.

    Example:
        >>> from idaa_lightly.plugin import LearnedAugmentation
        >>> class Noise(LearnedAugmentation):
        ...     def generator(self, method):
        ...         return LearnedNoise(eps=0.2, direction=self.direction)
        >>> Noise(lr=1e-3).adds
        'training of the generator'
    """

    adds = "training of the generator"

    def __init__(
        self, *, weight: NonNegative = 1.0, lr: NonNegative | None = None, direction: Direction = "ascend"
    ) -> None:
        self.weight, self.lr, self.direction = weight, lr, direction

    def controls(self, method: type[Method]) -> list[Control]:
        """Return a third ordinary view, the unperturbed view, and the generator untrained or trained oppositely."""
        untrained = Control("untrained generator", options={"aug": {"lr": 0.0}}, adds="untrained generator")
        name, other = {
            "ascend": ("generator that lowers the loss", "descend"),
            "descend": ("generator that raises the loss", "ascend"),
        }[self.direction]
        turned = Control(name, options={"aug": {"direction": other}}, judged=False)
        return [*third_view_controls(self.weight, uniformity=method.embed is PairMethod.embed), untrained, turned]

    def fit(self, context: FitContext) -> None:
        """Store the normalisation of the views."""
        self.normalize = context.normalize

    @abstractmethod
    def generator(self, method: Method) -> nn.Module:
        """Return the generator network. Called after `fit`.

        Args:
            method: Method whose views are augmented.
        """

    def loss(self, method: Method) -> nn.Module:
        """Return the adversarial loss of the method, with this generator."""
        return AdversarialLoss(method.loss, self.generator(method), self.weight)
