"""HVP: the hardest pair among several ordinary views."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from lightly.transforms.multi_view_transform import MultiViewTransform
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly.ascent import Noise
from idaa_lightly.errors import UsageError
from idaa_lightly.isolation import module_of, preserved_buffers
from idaa_lightly.libraries import FAULTS
from idaa_lightly.outputs import embedding_of
from idaa_lightly.plugin import Augmentation, Control, FitContext, Method
from idaa_lightly_plugins.augmentations.none import CleanLoss, CleanOutput

SelectAt = Literal["full", "half"]


class HardPairLoss(CleanLoss):
    """Loss of the method on two of several views of each sample: those whose embeddings are the least similar.

    The embeddings are computed without gradient and leave no trace in buffers or the random state.

    Args:
        views: Number of views to choose from. Further views, such as local crops, are passed on.
        select_at: Compare the views at `full` or `half` their height and width.
        random: Choose pairs at random instead, without computing embeddings.
    """

    def __init__(self, views: int, select_at: SelectAt, *, random: bool) -> None:
        super().__init__()
        self.views, self.select_at, self.random = views, select_at, random
        self.noise = Noise(0)

    def forward(self, model: Method, *views: Tensor) -> CleanOutput:
        """Compute the loss of the method on the chosen views and all further ones.

        Args:
            model: Method to train.
            views: Views of the same samples, (N, C, H, W) each. Further views may be smaller.
        """
        choice, further = torch.stack(views[: self.views]), views[self.views :]
        pairs = torch.combinations(torch.arange(self.views, device=choice.device))
        chosen = pairs[self._similarities(model, choice, pairs).argmin(0)]
        samples = torch.arange(choice.shape[1], device=choice.device)
        return super().forward(model, choice[chosen[:, 0], samples], choice[chosen[:, 1], samples], *further)

    @torch.no_grad()
    def _similarities(self, model: Method, views: Tensor, pairs: Tensor) -> Tensor:
        """Return the cosines of the pairs (P, 2) of views (V, N, C, H, W), or noise in their place, (P, N)."""
        if self.random:
            return self.noise.like(views.new_empty(len(pairs), views.shape[1]))
        images = views.flatten(0, 1)
        if self.select_at == "half":
            images = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
        devices = [images.device] if images.is_cuda else []
        with preserved_buffers(module_of(model), norms=True), torch.random.fork_rng(devices):
            embeddings = F.normalize(embedding_of(model(images)), dim=1).view(*views.shape[:2], -1)
        torch.clear_autocast_cache()  # Torch 2.7 would reuse these casts of the weights, which have no graph.
        return (embeddings[pairs[:, 0]] * embeddings[pairs[:, 1]]).sum(2)


class HVP(Augmentation):
    """Hard view pretraining (HVP): of four ordinary views of each image, the hardest pair is trained on.

    All views are embedded in one pass without gradient. It is in training mode, so BatchNorms use the statistics of all
    views, as in the authors' code. The pair with the smallest cosine is the hardest. A step costs 10 / 6 of that of the
    method alone, and about 7 / 6 if the views are compared at half resolution, plus the time to make twice as many
    views.

    Source: Ferreira et al., "Beyond Random Augmentations: Pretraining with Hard Views", ICLR 2025.

    Differs from the paper: the cosine of the embeddings decides, not the loss of the method on each pair. For
    NT-Xent and other contrastive losses, this leaves out the negatives. For SimSiam and BYOL, predictions are compared
    with each other, not with targets. For MoCo, two queries are compared, for CMC two projections of lightness. For
    DINO and SwAV, it is the cosine of the head's outputs, not a cross-entropy, and local crops are not selected. The
    passes that select change no running statistics, while those of the authors' code do. If the two transforms of a
    method differ, as in DINO, any two of the views may form a pair. The authors' code pairs one of each.

    Args:
        views: Number of views that a pair is chosen from. The paper has 4.
        select_at: Compare the views at full or at half their height and width, which costs a quarter.
        random: Train on a random pair instead, as a control. Nothing is embedded for the choice.
    """

    dual_batchnorm = False
    adds = "hardest pair"

    def __init__(self, *, views: Annotated[int, Ge(2)] = 4, select_at: SelectAt = "full", random: bool = False) -> None:
        self.options: dict[str, Any] = {"views": views, "select_at": select_at, "random": random}

    def controls(self, method: type[Method]) -> list[Control]:
        """Return a random pair, and the choice at the other resolution."""
        if self.options["random"]:
            return []
        name, other = {
            "full": ("hardest pair at half resolution", "half"), "half": ("hardest pair at full resolution", "full"),
        }[self.options["select_at"]]  # fmt: skip
        return [
            Control("random pair", options={"aug": {"random": True}}, adds="more views to choose from"),
            Control(name, options={"aug": {"select_at": other}}, judged=False),
        ]

    def transform(self, transform: MultiViewTransform) -> MultiViewTransform:
        """Return the method's transform with its first two views drawn in turns, as often as needed."""
        first, second, *further = transform.transforms
        drawn = [(first, second)[view % 2] for view in range(self.options["views"])]
        return MultiViewTransform([*drawn, *further])

    def fit(self, context: FitContext) -> None:
        """Store the shape of the views."""
        self.channels, self.image_size = context.channels, context.image_size

    def loss(self, method: Method) -> HardPairLoss:
        """Return the loss of the method on the hardest pair.

        Raises:
            UsageError: Views are compared at half resolution, and the backbone does not work with it.
        """
        if self.options["select_at"] == "half" and not self.options["random"]:
            size = self.image_size // 2
            try:
                with torch.no_grad():
                    method.eval()(torch.zeros(2, self.channels, size, size))
            except FAULTS as error:
                raise UsageError(
                    f"select_at is half, but the backbone does not work with images of {size} px "
                    f"({' '.join(str(error).split())}): take select_at=full or another backbone"
                ) from error
            method.train()
        return HardPairLoss(**self.options)
