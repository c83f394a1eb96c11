"""FixMatch with an adversarial view: the method, its loss and its module."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, cast

import torch
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import ParamsT
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import transforms as T

from idaa_lightly.isolation import module_of
from idaa_lightly.losses import AdversarialLoss
from idaa_lightly.options import BelowOne, Count, Fraction, NonNegative
from idaa_lightly.outputs import detached
from idaa_lightly.plugin import Augmentation, Method
from idaa_lightly.training import SelfSupervised
from idaa_lightly.variants import ReplacingLoss


class FixMatch(Method):
    """FixMatch: a confident prediction for the weak view is the label of the strong view.

    Source: Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence", NeurIPS 2020,
    Sec. 2 and 4. The number of steps is that of Yang et al., ICML 2022, Table 6: 200 000.

    Differs from the paper: the strong view is torchvision's RandAugment with two operations of magnitude 10, and the
    cut-out square lies inside the image. RandAugment's magnitude is not drawn anew for each image. Running statistics
    of BatchNorms are averaged like the weights.

    Args:
        backbone: Network that maps images to features. A linear classifier is added to it.
        num_features: Dimension of the features.
        classes: Number of classes.
        ratio: Images without labels for each labelled one in a batch, μ in the paper.
        threshold: Least confidence of a pseudo-label, τ in the paper.
        weight: Weight of the loss without labels, λ in the paper.
        ema: Decay of the averaged weights, which are evaluated.
        lr: Learning rate of SGD with Nesterov momentum 0.9.
        weight_decay: L2 penalty of weights other than biases and those of BatchNorms.
    """

    batch_size = 64
    steps: ClassVar[int] = 200_000
    unlabelled: ClassVar[bool] = True
    """True if the method trains on images without labels."""

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        classes: int,
        *,
        ratio: Count = 7,
        threshold: Fraction = 0.95,
        weight: NonNegative = 1.0,
        ema: BelowOne = 0.999,
        lr: NonNegative = 0.03,
        weight_decay: NonNegative = 5e-4,
    ) -> None:
        super().__init__(nn.Sequential(backbone, nn.Linear(num_features, classes)), num_features)
        self.averaged = AveragedModel(self.backbone, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)
        self.averaged.requires_grad_(False)
        self.ratio, self.threshold, self.weight = ratio, threshold, weight
        self.lr, self.weight_decay = lr, weight_decay

    def transform(self, image_size: int, normalize: dict[str, list[float]]) -> MultiViewTransform:
        """Return a transform that makes the strong and the weak view of an image, in this order."""
        fit = [T.Resize(image_size), T.CenterCrop(image_size)]  # Without effect on images in memory.
        shift = T.RandomCrop(image_size, padding=image_size // 8, padding_mode="reflect")
        weak = [*fit, T.RandomHorizontalFlip(), shift]
        tensor = [T.ToTensor(), T.Normalize(**normalize)]
        cutout = T.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))  # half the side, filled with the mean
        strong = T.Compose([*weak, T.RandAugment(2, 10), *tensor, cutout])
        return MultiViewTransform([strong, T.Compose([*weak, *tensor])])

    def embed(self, images: Tensor) -> Tensor:
        """Return the logits, (N, classes)."""
        logits: Tensor = self.backbone(images)
        return logits

    def confident(self, logits: Tensor) -> Tensor:
        """Return which pseudo-labels are confident, (N,)."""
        return logits.detach().float().softmax(1).amax(1) >= self.threshold

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        """Return the cross-entropy with the confident pseudo-labels; other images count as zero.

        Args:
            anchor: Logits of the weak views, (N, classes), which give the pseudo-labels.
            positive: Logits of the strong or the adversarial views, (N, classes).
            others: Unused.
        """
        losses = F.cross_entropy(positive.float(), anchor.detach().argmax(1), reduction="none")
        return (losses * self.confident(anchor)).mean()

    def optimizer(
        self, parameters: ParamsT, epochs: int, steps_per_epoch: int
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return SGD, and a schedule that falls to cos(7π/16) of the learning rate."""
        groups: list[dict[str, Any]] = []
        for group in cast(Iterable[dict[str, Any]], parameters):
            kernels, rest = ([p for p in group["params"] if (p.ndim > 1) is large] for large in (True, False))
            groups += [group | {"params": kernels, "weight_decay": self.weight_decay}, group | {"params": rest}]
        optimizer = torch.optim.SGD(groups, self.lr, momentum=0.9, nesterov=True)
        total = epochs * steps_per_epoch
        return optimizer, LambdaLR(optimizer, lambda step: math.cos(7 * math.pi * step / (16 * total)))


class Supervised(FixMatch):
    """Baseline: the labelled images alone, in weak views, for as many steps."""

    unlabelled = False


METHODS: dict[str, type[FixMatch]] = {"fixmatch": FixMatch, "supervised": Supervised}


class FixMatchOutput(NamedTuple):
    """Output of `FixMatchLoss`. Only `total` carries gradients. Terms that a run does not have are None.

    Attributes:
        total: Scalar to minimise.
        supervised: Cross-entropy of the labelled images, a scalar.
        consistency: Loss of the strong views, a scalar.
        adversarial: Loss of the adversarial views, a scalar.
        confident: Share of the images without labels that have a confident pseudo-label, a scalar.
        views: Adversarial views, (N, C, H, W).
    """

    total: Tensor
    supervised: Tensor
    consistency: Tensor | None = None
    adversarial: Tensor | None = None
    confident: Tensor | None = None
    views: Tensor | None = None


class FixMatchLoss(AdversarialLoss):
    """Loss of the labelled images, consistency, and consistency under attack.

    The adversarial view is made from the strong one. It raises the consistency loss, with the pseudo-label of the weak
    view fixed, through the adversarial branches of the BatchNorms.

    Source: Yang et al., "Identity-Disentangled Adversarial Augmentation for Self-Supervised Learning", ICML 2022,
    Table 6.

    Differs from the paper: the paper does not say how FixMatch is attacked. Here an adversarial term is added with the
    augmentation's `weight`, as in self-supervised training. The augmentation's `place=replace` takes the adversarial
    view instead of the strong one. Images without a confident pseudo-label count as zero in both terms. Searches still
    move them if another image of the batch is confident, because the BatchNorms share their statistics.

    Args:
        method: Method that gives the consistency loss.
        attack: Loss that the augmentation made for the method. One without a generator makes no adversarial views.
    """

    def __init__(self, method: FixMatch, attack: nn.Module) -> None:
        search = attack.generator if isinstance(attack, AdversarialLoss) else nn.Identity()
        super().__init__(method.loss, search, attack.weight if isinstance(attack, AdversarialLoss) else 0.0)
        self.attacks, self.replaces = isinstance(attack, AdversarialLoss), isinstance(attack, ReplacingLoss)

    def forward(  # type: ignore[override]
        self, model: FixMatch, labelled: Tensor, targets: Tensor, *unlabelled: Tensor
    ) -> FixMatchOutput:
        """Compute all terms.

        Args:
            model: Method to train.
            labelled: Weak views of labelled images, (B, C, H, W).
            targets: Their labels, (B,).
            unlabelled: Strong and weak views of images without labels, (N, C, H, W) each; or nothing.
        """
        strong, weak = unlabelled or (labelled[:0], labelled[:0])
        clean = [labelled, weak] if self.replaces else [labelled, weak, strong]
        # One pass, so that the BatchNorms see labelled images and both views together, as in the authors' code.
        logits, anchor, *rest = model(torch.cat(clean)).split([len(part) for part in clean])
        total = supervised = F.cross_entropy(logits.float(), targets)
        if not unlabelled:
            return FixMatchOutput(total, supervised.detach())
        anchor, consistency, adversarial, views = anchor.detach(), None, None, None
        if not self.replaces:
            consistency = self._loss(anchor, *rest)
            total = total + model.weight * consistency
        if self.attacks:
            self._require(module_of(model))
            views = self._attack(model, strong, [], anchor)
            with self._adversarial(model):
                adversarial = self._loss(anchor, model(views))
            total = total + model.weight * self.weight * adversarial
        confident = model.confident(anchor).float().mean()
        return FixMatchOutput(total, *detached((supervised, consistency, adversarial, confident, views)))


class SemiSupervised(SelfSupervised):
    """LightningModule that trains FixMatch with an augmentation.

    A batch is a dictionary: `labelled` holds weak views and labels, and `unlabelled`, if there is one, [strong views,
    weak views] and labels, which are not used.

    Args:
        method: Method to train.
        augmentation: Augmentation whose `fit` has been called.
        options: Further arguments of `SelfSupervised`.
    """

    method: FixMatch

    def __init__(self, method: FixMatch, augmentation: Augmentation, **options: Any) -> None:
        super().__init__(method, augmentation, **options)
        self.objective = FixMatchLoss(method, self.objective)

    def training_step(self, batch: Any, index: int) -> Tensor:
        """Compute the objective on a batch, and log its terms."""
        arguments = self.arguments(batch)
        return super().training_step((arguments, arguments[1]), index)

    @staticmethod
    def arguments(batch: Any) -> list[Tensor]:
        """Return the arguments of `losses` in a batch: weak views and labels, and strong and weak views without."""
        return [*batch["labelled"], *(batch["unlabelled"][0] if "unlabelled" in batch else ())]

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        """Average the weights, and stop the run if something is NaN or infinite."""
        self.method.averaged.update_parameters(self.method.backbone)
        super().on_train_batch_end(outputs, batch, index)
