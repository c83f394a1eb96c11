"""The pair losses, compared with the authors' numbers and with computations by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from idaa_lightly.criteria import DebiasedLoss, InfoNCELoss, OUCLLoss, UELLoss
from idaa_lightly.errors import UsageError


@pytest.mark.parametrize(("name", "criterion"), [("plain", InfoNCELoss), ("uel", UELLoss)])
def test_golden(name: str, criterion: type[nn.Module]) -> None:
    """Our losses normalise their inputs and the authors' do not, so gradients are compared on the sphere's tangent."""
    with np.load(Path(__file__).parent / "golden" / "reference.npz") as arrays:
        golden = {key: torch.from_numpy(arrays[key]) for key in arrays}
    a, b = (golden[f"ntxent_{key}"].clone().requires_grad_() for key in "ab")
    loss = criterion(float(golden[f"{name}_temperature"]))(a, b)
    torch.testing.assert_close(loss, golden[f"{name}_loss"], rtol=0, atol=1e-12)
    loss.backward()
    for tensor, key in ((a, "a"), (b, "b")):
        theirs = golden[f"{name}_grad_{key}"]
        tangent = theirs - (theirs * tensor).sum(1, keepdim=True) * tensor
        torch.testing.assert_close(tensor.grad, tangent.detach(), rtol=0, atol=1e-12)


A = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
B = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)


def by_hand(temperature: float, tau_plus: float, beta: float) -> float:
    """Compute Eqs. 7 and 8 of Chuang et al. sample by sample, with the weights of Robinson et al., Sec. 3.2."""
    views = [*A.tolist(), *B.tolist()]
    total = 0.0
    for i, anchor in enumerate(views):
        similarity = [sum(p * q for p, q in zip(anchor, other, strict=True)) / temperature for other in views]
        positive = math.exp(similarity[(i + 2) % 4])
        negatives = [math.exp(similarity[j]) for j in range(4) if j not in (i, (i + 2) % 4)]
        weights = [negative**beta for negative in negatives]
        mean = sum(w * n for w, n in zip(weights, negatives, strict=True)) / sum(weights)
        estimate = max((mean - tau_plus * positive) / (1 - tau_plus), math.exp(-1 / temperature))
        total -= math.log(positive / (positive + len(negatives) * estimate))
    return total / len(views)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
@pytest.mark.parametrize(("tau_plus", "beta"), [(0.0, 0.0), (0.1, 0.0), (0.1, 1.0), (0.05, 2.0), (0.9, 0.5)])
def test_debiased_and_hard_negatives(temperature: float, tau_plus: float, beta: float) -> None:
    loss = DebiasedLoss(temperature, tau_plus, beta)(A, B)
    assert loss.item() == pytest.approx(by_hand(temperature, tau_plus, beta), rel=1e-12)


def test_without_correction_it_is_ntxent() -> None:
    from lightly.loss import NTXentLoss

    torch.testing.assert_close(DebiasedLoss(0.5, 0.0)(A, B), NTXentLoss(0.5)(A, B))


@pytest.mark.parametrize("criterion", [InfoNCELoss(0.1), UELLoss(0.1), DebiasedLoss(0.5), DebiasedLoss(0.5, beta=1.0)])
def test_the_attacks_start_gradient_is_not_zero(criterion: nn.Module) -> None:
    """The negatives give the attack a finite direction, even between an embedding and its detached copy."""
    z = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(criterion(z.detach(), z), z)
    assert gradient.isfinite().all()
    assert gradient.norm(dim=1).min() > 1e-6


def test_uel_of_a_duplicate_is_finite() -> None:
    """The probability of a negative that equals the anchor rounds to 1."""
    g = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 256, 128, generator=g)
    first[1] = first[0]
    out0 = first.requires_grad_()
    loss = UELLoss(0.01)(out0, second)
    loss.backward()
    assert loss.isfinite()
    assert out0.grad is not None
    assert out0.grad.isfinite().all()


def test_bad_arguments() -> None:
    for criterion in (InfoNCELoss, UELLoss, DebiasedLoss):
        for temperature in (0.0, -1.0, math.nan):
            with pytest.raises(UsageError, match=r"temperature is .*, but expected (a finite number: )?float, above 0"):
                criterion(temperature)
    with pytest.raises(UsageError, match=r"tau_plus is 1.0, but expected float, 0 to below 1"):
        DebiasedLoss(tau_plus=1.0)


def oucl_by_hand(views: list[list[list[float]]], gamma: float, margin: float, weighted: bool) -> float:
    """Compute OUCL (Li et al., Sec. 3.3) anchor by anchor and pair by pair."""
    anchors = [(sample, z) for view in views for sample, z in enumerate(view)]
    total = 0.0
    for i, (sample, z) in enumerate(anchors):
        positives, negatives = [], []
        for j, (other, w) in enumerate(anchors):
            cosine = sum(p * q for p, q in zip(z, w, strict=True)) / (math.hypot(*z) * math.hypot(*w))
            if i != j:
                (positives if sample == other else negatives).append((cosine + 1) / 2)
        assert len(positives) == len(views) - 1
        assert len(negatives) == len(views)  # all views of the other sample
        inside = 1.0
        for n in negatives:
            for p in positives:
                if weighted:
                    near, far = max(n + margin, 0) * (n - margin), max(1 + margin - p, 0) * (p - (1 - margin))
                    inside += math.exp(gamma * (near - far))
                else:
                    inside += math.exp(gamma * (n - p))
        total += math.log(inside) / gamma * (1 if weighted else 16)
    return total / len(anchors)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("gamma", "margin"), [(8.0, 0.25), (2.0, 0.0), (0.5, 0.4)])
def test_oucl(count: int, weighted: bool, gamma: float, margin: float) -> None:
    """Every view of both samples is an anchor. The lengths of the embeddings do not matter."""
    views = [
        A,
        3 * B,
        torch.tensor([[1.0, 0.5], [0.3, -2.0]]).double(),
        torch.tensor([[-1.0, 2.0], [0.5, 0.5]]).double(),
    ]
    loss = OUCLLoss(gamma, margin, weighted=weighted)(*views[:count])
    expected = oucl_by_hand([view.tolist() for view in views[:count]], gamma, margin, weighted)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_oucl_of_two_orthogonal_samples_seen_twice_alike() -> None:
    """Each anchor has one d⁺ = 1 and two d⁻ = 1/2: log(1 + 2 exp γ(0.75 · 0.25 − 0.25 · 0.25)) / γ."""
    assert OUCLLoss(16.0, 0.25)(A, A).item() == pytest.approx(math.log(1 + 2 * math.exp(2)) / 16, rel=1e-12)
    assert OUCLLoss(2.0, weighted=False)(A, A).item() == pytest.approx(8 * math.log(1 + 2 * math.exp(-1)), rel=1e-12)


def test_oucl_holds_its_weights_constant() -> None:
    """With d⁺ = 0.5 and d⁻ = 0.6, the gradients are ∓σ(γ(0.85 · 0.35 + 0.75 · 0.25)) times 0.75 and 0.85."""
    pair = [torch.tensor([[value]], dtype=torch.float64, requires_grad=True) for value in (0.5, 0.6)]
    OUCLLoss(16.0, 0.25).of_similarities(*pair).backward()
    share = 1 / (1 + math.exp(-16 * (0.85 * 0.35 + 0.75 * 0.25)))
    assert pair[0].grad.item() == pytest.approx(-0.75 * share, rel=1e-12)
    assert pair[1].grad.item() == pytest.approx(0.85 * share, rel=1e-12)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gamma": 0}, "gamma is 0, but expected float, above 0"),
        ({"gamma": -1.5}, "gamma is -1.5, but expected float, above 0"),
        ({"gamma": math.inf}, "gamma is inf, but expected a finite number: float, above 0"),
        ({"margin": -0.25}, "margin is -0.25, but expected float, 0 or more"),
        ({"margin": math.nan}, "margin is nan, but expected float, 0 or more"),
    ],
)
def test_bad_arguments_of_oucl(options: dict[str, float], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        OUCLLoss(**options)
    assert str(caught.value) == text


RANKS = 3


@pytest.mark.parametrize(
    ("criterion", "views"),
    [
        (InfoNCELoss(gather_distributed=True), 2),
        (UELLoss(gather_distributed=True), 2),
        (DebiasedLoss(beta=1.0, gather_distributed=True), 2),
        (OUCLLoss(gather_distributed=True), 2),
        (OUCLLoss(gather_distributed=True), 4),
    ],
)
def test_the_mean_over_the_ranks_is_the_loss_of_the_whole_batch(
    criterion: nn.Module, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank in turn, in one process: only the collective is replaced, by the embeddings of all ranks."""
    outs = torch.randn(views, 4 * RANKS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outs.requires_grad_()
    expected = criterion(*outs)
    monkeypatch.setattr("idaa_lightly.criteria.gathered", lambda own: F.normalize(outs[-len(own) :], dim=2))
    losses = []
    for rank, share in enumerate(outs.split(4, dim=1)):
        monkeypatch.setattr("lightly.utils.dist.rank", lambda rank=rank: rank)
        losses.append(criterion(*share))
    found = torch.stack(losses).mean()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, outs) for loss in (found, expected)), rtol=1e-9, atol=1e-12)
    criterion.gather_distributed = False
    assert not torch.isclose(criterion(*share), losses[-1])
