"""Pair losses that Lightly lacks, with its interface: `forward(out0, out1)`, (N, D) each, returns a scalar.

With `gather_distributed`, each rank compares its own embeddings with those of all ranks. The mean of the ranks' losses,
and its gradient under DDP, then equal those of one process with the whole batch. N must be the same on all ranks.
"""

from __future__ import annotations

import math

import torch
from lightly.utils import dist
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.distributed import gathered
from idaa_lightly.options import BelowOne, NonNegative, Positive, checked


class InfoNCELoss(nn.Module):
    """One-way InfoNCE loss: each anchor must identify its positive among all positives of the batch.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, Eq. 4. It is the
    "Plain" method of Ho & Vasconcelos, NeurIPS 2020, and of Yang et al., ICML 2022.

    Args:
        temperature: Divisor of the cosine similarities.
        gather_distributed: Compare with the embeddings of all ranks, as in Lightly's losses.

    Example:
        >>> out0, out1 = torch.eye(4), torch.eye(4)
        >>> InfoNCELoss()(out0, out1)
        tensor(0.0001)
    """

    @checked
    def __init__(self, temperature: Positive = 0.1, gather_distributed: bool = False) -> None:
        super().__init__()
        self.temperature, self.gather_distributed = temperature, gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss.

        Args:
            out0: Embeddings of the anchors, (N, D).
            out1: Embeddings of the positives, (N, D).
        """
        _, positives, positive, _ = _compared((out1,), self.gather_distributed)
        logits = F.normalize(out0, dim=1) @ positives.T / self.temperature
        return F.cross_entropy(logits, positive.int().argmax(1))


class UELLoss(nn.Module):
    """Unsupervised embedding learning (UEL) loss: each of 2N views is matched to its positive, and no other view.

    −[Σ_i log P(i|x̂_i) + Σ_i Σ_{j≠i} log(1 − P(i|x_j))] / 2N. As in the authors' code, the second factor of every inner
    product is detached.

    Source: Ye et al., "Unsupervised Embedding Learning via Invariant and Spreading Instance Feature", CVPR 2019,
    Eqs. 4 to 6.

    Args:
        temperature: Divisor of the cosine similarities.
        gather_distributed: Compare with the embeddings of all ranks, as in Lightly's losses.

    Example:
        >>> out0, out1 = torch.eye(4), torch.eye(4)
        >>> UELLoss()(out0, out1)
        tensor(0.0005)
    """

    @checked
    def __init__(self, temperature: Positive = 0.1, gather_distributed: bool = False) -> None:
        super().__init__()
        self.temperature, self.gather_distributed = temperature, gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss.

        Args:
            out0: Embeddings of the first view, (N, D).
            out1: Embeddings of the second view, (N, D).
        """
        z, compared, itself, positive = _compared((out0, out1), self.gather_distributed)
        log_p = (z @ compared.detach().T / self.temperature).masked_fill(itself, -math.inf).log_softmax(1)
        p = log_p.exp().masked_fill(positive, 0).clamp(max=1 - torch.finfo(log_p.dtype).eps)  # log(1 - P) stays finite.
        others = torch.log1p(-p)  # A view has P = 0 with itself.
        return -(log_p[positive].sum() + others.sum()) / len(z)


class DebiasedLoss(nn.Module):
    """Debiased contrastive loss. With `beta` above 0, it also gives hard negatives more weight (HCL).

    Source: Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020, Eqs. 7 and 8; Robinson et al., "Contrastive
    Learning with Hard Negative Samples", ICLR 2021, Sec. 3.2.

    Args:
        temperature: Divisor of the cosine similarities.
        tau_plus: Probability that a negative belongs to the anchor's class.
        beta: Concentration on hard negatives. 0 weighs all negatives equally.
        gather_distributed: Compare with the embeddings of all ranks, as in Lightly's losses.

    Example:
        >>> out0, out1 = torch.eye(4), torch.eye(4)
        >>> DebiasedLoss()(out0, out1)
        tensor(0.2115)
    """

    @checked
    def __init__(
        self,
        temperature: Positive = 0.5,
        tau_plus: BelowOne = 0.1,
        beta: NonNegative = 0.0,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.gather_distributed = temperature, gather_distributed
        self.tau_plus, self.beta = tau_plus, beta

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss.

        Args:
            out0: Embeddings of the first view, (N, D). N must be 2 or more.
            out1: Embeddings of the second view, (N, D).
        """
        z, compared, itself, other_view = _compared((out0, out1), self.gather_distributed)
        similarities = z @ compared.T / self.temperature
        negatives = similarities[~(itself | other_view)].view(len(z), -1)
        positive = similarities[other_view].exp()
        count = negatives.shape[1]
        weights = (self.beta * negatives).softmax(1)  # They sum to 1 and are uniform if beta is 0.
        estimate = count * ((weights * negatives.exp()).sum(1) - self.tau_plus * positive) / (1 - self.tau_plus)
        estimate = estimate.clamp_min(count * math.exp(-1 / self.temperature))  # The theoretical minimum of the sum.
        return -(positive / (positive + estimate)).log().mean()


class OUCLLoss(nn.Module):
    """Optimisation-driven unified contrast (OUCL) loss, with one logarithm over all positive-negative pairs.

    (1/γ) log(1 + Σ_k⁻ Σ_k⁺ exp γ(Γ⁻(d⁻ − m) − Γ⁺(d⁺ − 1 + m))) for each embedding, with d = (cos + 1) / 2. The weights
    Γ⁻ = [d⁻ + m]₊ and Γ⁺ = [1 + m − d⁺]₊ are detached. Negatives are the other samples of the batch.

    Source: Li et al., "MetAug: Contrastive Learning via Meta Feature Augmentation", ICML 2022, Sec. 3.3.

    Args:
        gamma: Scale γ of the similarities.
        margin: Margin m.
        weighted: Use the weights Γ and the margin. False is the default of the authors' code: Γ = 1, no margin, and a
            loss multiplied by 16.
        gather_distributed: Compare with the embeddings of all ranks, as in Lightly's losses.

    Example:
        >>> out0, out1 = torch.eye(4), torch.eye(4)
        >>> OUCLLoss()(out0, out1)
        tensor(0.2384)
    """

    @checked
    def __init__(
        self,
        gamma: Positive = 16.0,
        margin: NonNegative = 0.25,
        *,
        weighted: bool = True,
        gather_distributed: bool = False,
    ) -> None:
        super().__init__()
        self.gamma, self.margin, self.weighted = gamma, margin, weighted
        self.gather_distributed = gather_distributed

    def forward(self, *outs: Tensor) -> Tensor:
        """Return the mean loss of all embeddings.

        Args:
            outs: Embeddings (N, D) of two or more views of the same N samples. N must be 2 or more.
        """
        z, compared, itself, other_view = _compared(outs, self.gather_distributed)
        similarities = (z @ compared.T + 1) / 2
        negatives = similarities[~(itself | other_view)].view(len(z), -1)
        return self.of_similarities(similarities[other_view].view(len(z), -1), negatives)

    def of_similarities(self, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean loss of M embeddings, given their similarities in [0, 1].

        Args:
            positives: Similarities to the positives, (M, P).
            negatives: Similarities to the negatives, (M, K).
        """
        scale = 16.0
        if self.weighted:
            scale, m = 1.0, self.margin
            negatives = (negatives + m).clamp_min(0).detach() * (negatives - m)
            positives = (1 + m - positives).clamp_min(0).detach() * (positives - 1 + m)
        pairs = (self.gamma * negatives).logsumexp(1) + (-self.gamma * positives).logsumexp(1)
        return scale / self.gamma * torch.logaddexp(pairs, torch.zeros_like(pairs)).mean()


def _compared(outs: tuple[Tensor, ...], gather: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what a loss compares.

    Args:
        outs: Embeddings (N, D) of V views of the same samples.
        gather: Compare with the embeddings of all ranks, instead of those in `outs` only.

    Returns:
        The normalised embeddings in `outs`, (V · N, D), those that they are compared with, (M, D), and two masks
        (V · N, M): pairs of an embedding with itself, and pairs of different views of a sample.
    """
    z = F.normalize(torch.stack(outs), dim=2)
    others = gathered(z) if gather else z
    views, samples, _ = others.shape
    columns = torch.arange(views * samples, device=z.device)
    rows = columns.view(views, -1, z.shape[1])[:, dist.rank() if gather else 0].reshape(-1, 1)
    itself = rows == columns
    return z.flatten(0, 1), others.flatten(0, 1), itself, (rows % samples == columns % samples) & ~itself
