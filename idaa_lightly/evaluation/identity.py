"""Is a view hard, and does it keep its sample's identity? The case study of the papers.

Source: Yang et al., ICML 2022, Sec. 4 and Fig. 1: for each sample, the distance of its embedding to that of its own
view, against the distance to the nearest view of another sample. Where the first is the larger, the identity is lost.
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
    """Distances between embeddings of length 1, 0 to 2, one entry a sample.

    Attributes:
        positive: to the sample's own view, (N,).
        negative: to the nearest view of another sample, (N,).
    """

    positive: Tensor
    negative: Tensor

    @property
    def lost(self) -> float:
        """Share of samples that are nearer to another sample's view than to their own."""
        return (self.positive > self.negative).double().mean().item()

    @property
    def hardness(self) -> list[float]:
        """Quantiles (5, 25, 50, 75 and 95 %) of positive / negative: 0 is an easy view, 1 the boundary."""
        quantiles: list[float] = self.ratio.quantile(torch.tensor(QUANTILES, dtype=torch.double)).tolist()
        return quantiles

    @property
    def ratio(self) -> Tensor:
        """Positive / negative, (N,): 0 is an easy view, 1 the boundary. Finite, where two samples coincide, too."""
        return self.positive.double() / self.negative.double().clamp_min(1e-12)


def batch_figures(anchors: Tensor, views: Tensor, temperature: float = 0.1) -> dict[str, Tensor]:
    """Figures to log during training, of one batch, without a look at the host.

    Args:
        anchors: embeddings (N, D) of samples, in the space of the loss; normalised here.
        views: embeddings (N, D) of a view of each.
        temperature: scales the cosines in InfoNCE.

    Returns:
        `lost`, the share of samples that are nearer to another sample's view than to their own; and `information`, a
        lower bound in nats of the mutual information of sample and view, log N − L_NCE: Yang et al., Eq. 4.
    """
    cosines = F.normalize(anchors.float(), dim=1) @ F.normalize(views.float(), dim=1).T
    itself = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    lost = cosines.masked_fill(itself, -torch.inf).amax(1) > cosines.diagonal()
    information = math.log(len(cosines)) - InfoNCELoss(temperature)(anchors.float(), views.float())
    return {"lost": lost.float().mean(), "information": information}


def identity(anchors: Tensor, views: Tensor) -> Identity:
    """Distances from each anchor to the view of its own sample, and to the nearest of another.

    Args:
        anchors: embeddings (N, D) of samples, in the space of the loss; normalised here.
        views: embeddings (N, D) of a view of each.

    Raises:
        DataError: shapes that do not match, fewer than two samples, or NaN.
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
    """Sizes of x' − x in pixels of [0, 1], means over images.

    Attributes:
        l2: Euclidean length over all pixels and channels.
        linf: largest change of a pixel.
    """

    l2: float
    linf: float


def perturbation(x: Tensor, views: Tensor, std: list[float]) -> Perturbation:
    """How far views are from their images.

    Args:
        x: normalised images (N, C, H, W).
        views: of the same samples, likewise.
        std: per channel, of the normalisation.
    """
    change = ((views - x) * torch.tensor(std, device=x.device).view(1, -1, 1, 1)).flatten(1)
    return Perturbation(change.norm(dim=1).mean().item(), change.abs().amax(1).mean().item())
