"""Base classes of methods and backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from idaa_lightly.options import check_at_construction
from idaa_lightly.outputs import embedding_of


class Backbone(nn.Module, ABC):
    """Network from images to features that `--backbone` selects by name.

    Args:
        image_size: Height and width of the images, in pixels.

    Attributes:
        num_features: Dimension of the features.

    Example:
        >>> from idaa_lightly.plugin import Backbone
        >>> class Tiny(Backbone):
        ...     num_features = 3
        ...
        ...     def forward(self, images):
        ...         return images.mean((2, 3))
        >>> Tiny(image_size=32)(torch.randn(4, 3, 32, 32)).shape
        torch.Size([4, 3])
    """

    num_features: int

    def __init_subclass__(cls) -> None:
        """Check the options of every backbone by their annotations when it is constructed."""
        super().__init_subclass__()
        check_at_construction(cls)

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size

    def fit(self, images: Tensor) -> None:
        """Set weights that depend on the data. Called once, before the training starts.

        Args:
            images: Normalised training images without augmentation, (N, C, H, W), at most 4096 of them.
        """

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Compute features (N, num_features) from images (N, C, H, W)."""


class Method(nn.Module, ABC):
    """Self-supervised method: turns views into embeddings and embeddings into a loss, and holds the training recipe.

    Args:
        backbone: Network that maps images (N, C, H, W) to features (N, num_features). Kept as `self.backbone`.
        num_features: Dimension of the features.

    Example:
        >>> from idaa_lightly.plugin import Method
        >>> from lightly.transforms import SimCLRTransform
        >>> class Alike(Method):
        ...     def transform(self, image_size, normalize):
        ...         return SimCLRTransform(image_size, normalize=normalize)
        ...
        ...     def embed(self, images):
        ...         return self.backbone(images)
        ...
        ...     def loss(self, anchor, positive, *others):
        ...         anchor = anchor.detach()
        ...         return -nn.functional.cosine_similarity(anchor, positive).mean()
        ...
        ...     def optimizer(self, parameters, epochs, steps_per_epoch):
        ...         optimizer = torch.optim.SGD(parameters, lr=0.1)
        ...         return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)
        >>> method = Alike(nn.Flatten(), num_features=192)
        >>> round(method.loss(torch.ones(4, 192), torch.ones(4, 192)).item(), 3)
        -1.0
    """

    epochs: ClassVar[int] = 300
    """Epochs of the published recipe. Overridden by `--epochs`."""
    batch_size: ClassVar[int] = 256
    """Batch size of the published recipe. Overridden by `--batch-size`."""
    scales_lr: ClassVar[bool] = False
    """Set to True if the recipe's learning rate, the option `lr`, is proportional to the batch size."""
    multi_crop: ClassVar[bool] = False
    """Set to True if `transform` returns more than two views. Those after the first two may be smaller."""
    start_gradient: ClassVar[bool] = True
    """Set to False if the gradient of the loss is zero where both views are equal."""

    def __init_subclass__(cls) -> None:
        """Check the options of every method by their annotations when it is constructed."""
        super().__init_subclass__()
        check_at_construction(cls)

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.backbone, self.num_features = backbone, num_features

    @abstractmethod
    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return the transform that makes the views of a PIL image.

        Args:
            image_size: Height and width of the views, in pixels.
            normalize: Keys `mean` and `std`, one value per channel, as in Lightly's transforms.
        """

    @abstractmethod
    def embed(self, images: Tensor) -> Any:
        """Compute the outputs that the loss compares: a tensor, or a tuple, list or dict of tensors.

        If there are several, the first is the embedding (N, D) of the trained network, such as BYOL's prediction. The
        outputs of a momentum network follow, detached from the graph.

        Args:
            images: Images, (N, C, H, W).
        """

    @staticmethod
    def embeddings(anchor: Any, positive: Any) -> tuple[Tensor, Tensor]:
        """Return the embeddings of two views that a contrastive loss in place of the method's compares, (N, D) each.

        The default is the first output of each. The augmentations `oucl` and `metaug` call it.

        Args:
            anchor: Output of `embed` for the first view.
            positive: Output of `embed` for the second view.
        """
        return embedding_of(anchor), embedding_of(positive)

    @abstractmethod
    def loss(self, anchor: Any, positive: Any, *others: Any) -> Tensor:
        """Return the scalar loss of the outputs of `embed`, one per view of the same samples.

        An attack perturbs the image behind `positive`, while `anchor` is held fixed.

        Args:
            anchor: Output for the first view.
            positive: Output for the second view, or for an adversarial view.
            others: Outputs for further views (multi-crop).
        """

    @abstractmethod
    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return the optimiser, and its schedule, which is stepped after every optimiser step.

        Args:
            parameters: Parameters or parameter groups to optimise.
            epochs: Number of epochs of the training.
            steps_per_epoch: Number of optimiser steps in an epoch.
        """

    def before_step(self, step: int, epochs: int, steps_per_epoch: int) -> None:
        """Prepare a training step, for example by updating a momentum network. Called before each step.

        A run whose method computes with `epochs` here cannot be lengthened.

        Args:
            step: Index of the training step, counted from 0.
            epochs: Number of epochs of the training.
            steps_per_epoch: Number of training steps in an epoch.
        """

    def forward(self, images: Tensor) -> Any:
        """Call `embed`."""
        return self.embed(images)


class PairMethod(Method):
    """Method with one network and a pair loss. The constructor must set `self.head` and `self.criterion`.

    Example:
        >>> from idaa_lightly.plugin import PairMethod
        >>> from lightly.transforms import SimCLRTransform
        >>> class Contrast(PairMethod):
        ...     def __init__(self, backbone, num_features, *, dim: int = 128):
        ...         super().__init__(backbone, num_features)
        ...         self.head, self.criterion = nn.Linear(num_features, dim), NTXentLoss()
        ...
        ...     def transform(self, image_size, normalize):
        ...         return SimCLRTransform(image_size, normalize=normalize)
        ...
        ...     def optimizer(self, parameters, epochs, steps_per_epoch):
        ...         optimizer = torch.optim.SGD(parameters, lr=0.1)
        ...         return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer)
        >>> Contrast(nn.Flatten(), num_features=192).embed(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 128])
    """

    head: nn.Module
    """Projection head that maps features (N, num_features) to projections (N, D)."""
    criterion: nn.Module
    """Pair loss with Lightly's signature, `forward(out0, out1)`."""

    def embed(self, images: Tensor) -> Tensor:
        """Return the projections, (N, D)."""
        projection: Tensor = self.head(self.backbone(images).flatten(1))
        return projection

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the criterion on the first two views."""
        loss: Tensor = self.criterion(anchor, positive)
        return loss
