"""Measures of how hard a view is and whether it keeps the identity of its sample.

Source: Yang et al., ICML 2022, Sec. 4 and Fig. 1. For each sample, they compare the distance to its own view with the
distance to the nearest view of another sample. If its own view is farther away, the identity is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly.criteria import InfoNCELoss
from idaa_lightly.errors import DataError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Identity:
    """Distances between normalised embeddings of samples and views, from 0 to 2.

    Attributes:
        positive: Distance from each sample to its own view, (N,).
        negative: Distance from each sample to the nearest view of another sample, (N,).
    """

    positive: Tensor
    negative: Tensor

    @property
    def lost(self) -> float:
        """Fraction of samples that are nearer to another sample's view than to their own."""
        return (self.positive > self.negative).double().mean().item()

    @property
    def hardness(self) -> list[float]:
        """Quantiles of `ratio` at 5, 25, 50, 75 and 95 %."""
        quantiles: list[float] = self.ratio.quantile(torch.tensor(QUANTILES, dtype=torch.double)).tolist()
        return quantiles

    @property
    def ratio(self) -> Tensor:
        """Ratio `positive` / `negative` of the distances, (N,).

        0 is an easy view. Above 1, the identity is lost. The ratio is finite even if two samples coincide.
        """
        return self.positive.double() / self.negative.double().clamp_min(1e-12)


def batch_figures(anchors: Tensor, views: Tensor, temperature: float = 0.1) -> dict[str, Tensor]:
    """Compute identity metrics of one batch for logging, without synchronising with the host.

    Args:
        anchors: Embeddings (N, D) of the samples, in the space of the loss. Need not be normalised.
        views: Embeddings (N, D) of one view of each sample.
        temperature: Temperature of InfoNCE, which divides the cosines.

    Returns:
        Scalars by name. `lost` is the fraction of samples that are nearer to another sample's view than to their own.
        `information` is a lower bound of the mutual information of sample and view in nats, log N − L_NCE: Yang et
        al., Eq. 4.
    """
    with torch.autocast(anchors.device.type, enabled=False):  # Half precision cannot tell cosines near 1.
        anchors, views = F.normalize(anchors.float(), dim=1), F.normalize(views.float(), dim=1)
        cosines = anchors @ views.T
        information = math.log(len(cosines)) - InfoNCELoss(temperature)(anchors, views)
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    lost = cosines.masked_fill(itself, -torch.inf).amax(1) > cosines.diagonal()
    return {"lost": lost.float().mean(), "information": information}


def identity(anchors: Tensor, views: Tensor) -> Identity:
    """Compute the distances from each sample to its own view and to the nearest view of another sample.

    Args:
        anchors: Embeddings (N, D) of the samples, in the space of the loss. Need not be normalised.
        views: Embeddings (N, D) of one view of each sample.

    Returns:
        Distances of each sample. The metrics are properties of the result.

    Raises:
        DataError: Shapes do not match, there are fewer than two samples, or an embedding holds NaN or infinity.

    Example:
        >>> from idaa_lightly.evaluation.identity import identity
        >>> anchors = torch.eye(4)
        >>> identity(anchors, anchors).lost, identity(anchors, anchors.flip(0)).lost
        (0.0, 1.0)
    """
    if anchors.ndim != 2 or anchors.shape != views.shape or len(anchors) < 2:
        raise DataError(
            f"anchors have shape {tuple(anchors.shape)} and views {tuple(views.shape)}, but expected (N, D) twice, N "
            "of 2 or more"
        )
    if not (anchors.isfinite().all() and views.isfinite().all()):
        raise DataError("embeddings hold NaN or infinity: the training diverged")
    distances = torch.cdist(F.normalize(anchors.double(), dim=1), F.normalize(views.double(), dim=1))
    own = distances.diagonal().clone()
    return Identity(own, distances.fill_diagonal_(torch.inf).amin(1))


@dataclass(frozen=True)
class Perturbation:
    """Mean size of a perturbation, for pixels in [0, 1].

    Attributes:
        l2: Euclidean norm over all pixels and channels, averaged over images.
        linf: Largest absolute change of a pixel, averaged over images.
    """

    l2: float
    linf: float


def perturbation(x: Tensor, views: Tensor, std: list[float]) -> Perturbation:
    """Measure the difference between views and their images.

    Args:
        x: Normalised images (N, C, H, W).
        views: Normalised views (N, C, H, W) of the same samples.
        std: Standard deviation per channel of the normalisation.

    Example:
        >>> from idaa_lightly.evaluation.identity import perturbation
        >>> x = torch.zeros(2, 3, 8, 8)
        >>> round(perturbation(x, x + 0.4, std=[0.25, 0.25, 0.25]).linf, 3)
        0.1
    """
    change = ((views - x) * torch.tensor(std, device=x.device).view(1, -1, 1, 1)).flatten(1)
    return Perturbation(change.norm(dim=1).mean().item(), change.abs().amax(1).mean().item())
