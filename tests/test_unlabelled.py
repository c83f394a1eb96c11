from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly.errors import DataError, NonFiniteError
from idaa_lightly.evaluation import unlabelled
from idaa_lightly.evaluation.unlabelled import alignment, rankme, spread, uniformity


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rankme_by_hand() -> None:
    orthogonal = torch.eye(4).repeat(3, 1)  # four equal singular values
    assert rankme(orthogonal) == rankme(orthogonal.numpy()) == pytest.approx(4, rel=1e-4)
    assert rankme(torch.ones(7, 5)) == pytest.approx(1, rel=1e-4)
    # singular values 3 and 1: shares 3/4 and 1/4
    two = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert rankme(two) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), rel=1e-5)


@given(st.integers(0, 100), st.integers(2, 30), st.integers(2, 12))
def test_rankme_is_the_papers_by_singular_values(seed: int, n: int, d: int) -> None:
    embeddings = draw(seed, n, d)
    values = torch.linalg.svdvals(embeddings.double())
    shares = values / values.sum() + 1e-7
    assert rankme(embeddings) == pytest.approx(math.exp(-(shares * shares.log()).sum().item()), rel=1e-4)
    assert 1 <= rankme(embeddings) <= min(n, d) + 1e-3
    assert rankme(5 * embeddings) == pytest.approx(rankme(embeddings), rel=1e-6)


def test_alignment_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(x, x.flip(1)) == pytest.approx(2)  # at right angles


@given(st.integers(0, 100), st.integers(2, 40))
def test_alignment_and_uniformity_are_the_authors(seed: int, n: int) -> None:
    """Alignment and uniformity equal the functions that the paper prints, which use pdist."""
    x, y = (F.normalize(draw(seed + part, n, 6).double(), dim=1) for part in (0, 1000))
    assert alignment(x, y) == pytest.approx((x - y).norm(p=2, dim=1).pow(2).mean().item())
    assert uniformity(x) == pytest.approx(torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log().item(), abs=1e-9)
    assert -8 <= uniformity(x) <= 0


@pytest.mark.parametrize("zeros", [1, 7, 20])
def test_a_collapse_to_zeros_is_not_spread(zeros: int) -> None:
    """Embeddings of zeros are at distance 0 of each other, and at distance 1 of all others."""
    x = F.normalize(draw(0, 20, 6).double(), dim=1)
    x[:zeros] = 0
    assert uniformity(x) == pytest.approx(torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log().item(), abs=1e-9)


def test_uniformity_in_blocks_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = draw(0, 50, 5)
    whole = uniformity(embeddings)
    monkeypatch.setattr(unlabelled, "PAIRS", 7)
    assert uniformity(embeddings) == pytest.approx(whole, rel=1e-12)


def test_spread_of_a_gaussian_and_of_a_point() -> None:
    assert spread(draw(0, 5000, 32)) == pytest.approx(1, abs=0.01)
    assert spread(torch.ones(10, 3)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("function", [rankme, uniformity, spread, lambda x: alignment(x, x)])
def test_bad_embeddings(function: object) -> None:
    assert callable(function)
    for shape in ((0, 3), (3, 0), (3,), (2, 3, 4)):
        with pytest.raises(DataError, match=r"^embeddings have shape .*, but expected \(N, D\)"):
            function(torch.zeros(shape))
    with pytest.raises(NonFiniteError, match="the training diverged"):
        function(torch.full((3, 3), math.nan))


def test_too_few_or_nothing() -> None:
    for function in (uniformity, spread):
        with pytest.raises(DataError, match="got 1 embedding"):
            function(torch.ones(1, 3))
    with pytest.raises(DataError, match="all embeddings are zero"):
        rankme(torch.zeros(3, 3))
    with pytest.raises(DataError, match=r"anchors have shape \(2, 3\) and positives \(3, 3\)"):
        alignment(torch.ones(2, 3), torch.ones(3, 3))
