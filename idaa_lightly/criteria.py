"""Pair losses that Lightly lacks, with its interface: `forward(out0, out1)`, (N, D) each, returns a scalar."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from idaa_lightly.options import BelowOne, NonNegative, Positive, checked


class InfoNCELoss(nn.Module):
    """One-way InfoNCE loss: each anchor must identify its positive among all positives of the batch.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, Eq. 4. It is the
    "Plain" method of Ho & Vasconcelos, NeurIPS 2020, and of Yang et al., ICML 2022.

    Args:
        temperature: Divisor of the cosine similarities.
    """

    @checked
    def __init__(self, temperature: Positive = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss.

        Args:
            out0: Embeddings of the anchors, (N, D).
            out1: Embeddings of the positives, (N, D).
        """
        logits = F.normalize(out0, dim=1) @ F.normalize(out1, dim=1).T / self.temperature
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


class UELLoss(nn.Module):
    """Unsupervised embedding learning (UEL) loss: each of 2N views is matched to its positive, and no other view.

    −[Σ_i log P(i|x̂_i) + Σ_i Σ_{j≠i} log(1 − P(i|x_j))] / 2N. As in the authors' code, the second factor of every inner
    product is detached.

    Source: Ye et al., "Unsupervised Embedding Learning via Invariant and Spreading Instance Feature", CVPR 2019,
    Eqs. 4 to 6.

    Args:
        temperature: Divisor of the cosine similarities.
    """

    @checked
    def __init__(self, temperature: Positive = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss.

        Args:
            out0: Embeddings of the first view, (N, D).
            out1: Embeddings of the second view, (N, D).
        """
        z = F.normalize(torch.cat([out0, out1]), dim=1)
        logits = (z @ z.detach().T / self.temperature).masked_fill(_itself(z), -math.inf)
        positives = torch.arange(len(z), device=z.device).roll(len(out0))
        log_p = logits.log_softmax(1)
        positive = F.one_hot(positives, len(z)).bool()
        others = torch.log1p(-log_p.exp().masked_fill(positive, 0))  # A view has P = 0 with itself.
        return -(log_p[positive].sum() + others.sum()) / len(z)


class DebiasedLoss(nn.Module):
    """Debiased contrastive loss. With `beta` above 0, it also gives hard negatives more weight (HCL).

    Source: Chuang et al., "Debiased Contrastive Learning", NeurIPS 2020, Eqs. 7 and 8; Robinson et al., "Contrastive
    Learning with Hard Negative Samples", ICLR 2021, Sec. 3.2.

    Args:
        temperature: Divisor of the cosine similarities.
        tau_plus: Probability that a negative belongs to the anchor's class.
        beta: Concentration on hard negatives. 0 weighs all negatives equally.
    """

    @checked
    def __init__(self, temperature: Positive = 0.5, tau_plus: BelowOne = 0.1, beta: NonNegative = 0.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.tau_plus, self.beta = tau_plus, beta

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the loss.

        Args:
            out0: Embeddings of the first view, (N, D). N must be 2 or more.
            out1: Embeddings of the second view, (N, D).
        """
        z = F.normalize(torch.cat([out0, out1]), dim=1)
        similarities = z @ z.T / self.temperature
        same = _itself(z) | _itself(z).roll(len(out0), 1)
        negatives = similarities[~same].view(len(z), -1)
        positive = similarities.diagonal(len(out0)).exp().repeat(2)
        count = negatives.shape[1]
        weights = (self.beta * negatives).softmax(1)  # They sum to 1 and are uniform if beta is 0.
        estimate = count * ((weights * negatives.exp()).sum(1) - self.tau_plus * positive) / (1 - self.tau_plus)
        estimate = estimate.clamp_min(count * math.exp(-1 / self.temperature))  # The theoretical minimum of the sum.
        return -(positive / (positive + estimate)).log().mean()


class OUCLLoss(nn.Module):
    """Optimisation-driven unified contrast (OUCL) loss, with one logarithm over all positive-negative pairs.

    (1/γ) log(1 + Σ_k⁻ Σ_k⁺ exp γ(Γ⁻(d⁻ − m) − Γ⁺(d⁺ − 1 + m))) for each embedding, with d = (cos + 1) / 2. The weights
    Γ⁻ = [d⁻ + m]₊ and Γ⁺ = [1 + m − d⁺]₊ are detached. Negatives are the other samples in the batch of one device.

    Source: Li et al., "MetAug: Contrastive Learning via Meta Feature Augmentation", ICML 2022, Sec. 3.3.

    Args:
        gamma: Scale γ of the similarities.
        margin: Margin m.
        weighted: Use the weights Γ and the margin. False is the default of the authors' code: Γ = 1, no margin, and a
            loss multiplied by 16.
    """

    @checked
    def __init__(self, gamma: Positive = 16.0, margin: NonNegative = 0.25, *, weighted: bool = True) -> None:
        super().__init__()
        self.gamma, self.margin, self.weighted = gamma, margin, weighted

    def forward(self, *outs: Tensor) -> Tensor:
        """Return the mean loss of all embeddings.

        Args:
            outs: Embeddings (N, D) of two or more views of the same N samples. N must be 2 or more.
        """
        z = F.normalize(torch.cat(outs), dim=1)
        similarities = (z @ z.T + 1) / 2
        sample = torch.arange(len(z), device=z.device) % len(outs[0])
        same = sample[:, None] == sample
        positives = similarities[same & ~_itself(z)].view(len(z), -1)
        return self.of_similarities(positives, similarities[~same].view(len(z), -1))

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


def _itself(z: Tensor) -> Tensor:
    return torch.eye(len(z), dtype=torch.bool, device=z.device)
