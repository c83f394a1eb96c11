from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from idaa_lightly import linear_probe
from idaa_lightly.errors import DataError, NonFiniteError
from idaa_lightly.evaluation import linear


def noisy_case(seed, count=300, dim=16, classes=5, noise=2.0):
    g = torch.Generator().manual_seed(seed)
    truth = torch.randn(dim, classes, generator=g)
    x = torch.randn(2 * count, dim, generator=g)
    y = (x @ truth + noise * torch.randn(2 * count, classes, generator=g)).argmax(1)
    return x[:count], y[:count], x[count:], y[count:]


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1e-3, 0), (1e4, 0), (1, 100)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_separable(dtype, scale, shift):
    labels = torch.arange(120) % 3
    noise = 0.05 * torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    features = (scale * (torch.eye(3, 4)[labels] + noise) + shift).to(dtype)  # the last dimension is noise
    assert linear_probe(features[:60], labels[:60], features[60:], labels[60:]).accuracy == 1.0


def test_random_labels_give_chance():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1600, 8, generator=g), torch.randint(4, (1600,), generator=g)
    assert abs(linear_probe(x[:800], y[:800], x[800:], y[800:]).accuracy - 0.25) < 0.06  # 4 standard deviations


@pytest.mark.parametrize("l2", linear.L2_GRID)
def test_equals_sklearn(monkeypatch, l2):
    """mean CE + l2 |W|² times N C, with C = 1 / (2 l2 N), is scikit-learn's C sum CE + |W|² / 2."""
    x, y, test_x, test_y = noisy_case(1)
    std, mean = torch.std_mean(x, 0)
    x_standard, test_standard = (x - mean) / std, (test_x - mean) / std
    model = LogisticRegression(C=1 / (2 * l2 * len(x)), tol=1e-8, max_iter=10_000).fit(x_standard, y)
    monkeypatch.setattr(linear, "L2_GRID", (l2,))
    assert linear_probe(x, y, test_x, test_y) == (pytest.approx(model.score(test_standard, test_y)), l2)
    weight = linear._fit(x_standard, y, torch.zeros(5, 17), l2)
    intercept = weight[:, -1] - weight[:, -1].mean()  # a constant may be added to all
    torch.testing.assert_close(weight[:, :-1].double(), torch.from_numpy(model.coef_).double(), rtol=0, atol=3e-3)
    torch.testing.assert_close(intercept.double(), torch.from_numpy(model.intercept_).double(), rtol=0, atol=3e-3)


@pytest.mark.parametrize("noise", [0.0, 2.0, 20.0])
def test_the_test_set_never_chooses(noise):
    x, y, test_x, test_y = noisy_case(2, noise=noise)
    result = linear_probe(x, y, test_x, test_y)
    order = torch.randperm(len(test_x), generator=torch.Generator().manual_seed(0))
    assert linear_probe(x, y, test_x[order], test_y[order]) == result
    for other_x, other_y in [(test_x[order], test_y), (100 * test_x + 7, test_y), (test_x[:1], (test_y[:1] + 1) % 5)]:
        assert linear_probe(x, y, other_x, other_y).l2 == result.l2


def test_the_strength_matters_and_is_chosen_on_train():
    chosen = {linear_probe(*noisy_case(3, noise=noise)).l2 for noise in (0.0, 20.0)}
    assert len(chosen) == 2
    assert chosen <= set(linear.L2_GRID)


def test_deterministic_and_leaves_no_trace():
    x, y, test_x, test_y = noisy_case(4)
    copies = [part.clone() for part in (x, y, test_x, test_y)]
    state = torch.get_rng_state()
    results = {linear_probe(x, y, test_x, test_y, seed=3) for _ in range(3)}
    assert len(results) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip((x, y, test_x, test_y), copies, strict=True))
    with torch.no_grad():
        assert {linear_probe(x, y, test_x, test_y, seed=3)} == results


def test_the_seed_draws_the_split():
    assert len({linear_probe(*noisy_case(5, noise=8.0), seed=seed).l2 for seed in range(8)}) > 1


def test_a_class_of_the_test_set_only_is_a_miss():
    x, y, test_x, test_y = noisy_case(6, noise=0.0)
    missing = torch.full_like(test_y, 7)
    assert linear_probe(x, y, test_x, missing).accuracy == 0.0


def test_constant_dimensions_do_no_harm():
    x, y, test_x, test_y = noisy_case(7)
    padded = [torch.cat([part, torch.full((len(part), 2), 3.0)], 1) for part in (x, test_x)]
    assert linear_probe(padded[0], y, padded[1], test_y) == linear_probe(x, y, test_x, test_y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_integer_labels_of_any_type(dtype):
    x, y, test_x, test_y = noisy_case(8)
    assert linear_probe(x, y.to(dtype), test_x, test_y.to(dtype)) == linear_probe(x, y, test_x, test_y)


def test_twenty_are_enough_nineteen_too_few():
    x, y, test_x, test_y = noisy_case(9)
    linear_probe(x[:20], y[:20], test_x, test_y)
    with pytest.raises(DataError, match=r"^got 19 training features, but a linear probe needs 20 or more$"):
        linear_probe(x[:19], y[:19], test_x, test_y)


@pytest.mark.parametrize("part", [0, 2])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_non_finite(part, bad):
    parts = list(noisy_case(10))
    parts[part][5, 2] = float(bad)
    with pytest.raises(NonFiniteError, match=r"^the features hold NaN or infinity: the training diverged$"):
        linear_probe(*parts)


@pytest.mark.parametrize(
    "change",
    [
        {"test_features": torch.ones(300, 1)},
        {"test_features": torch.ones(300, 4)},
        {"test_labels": torch.tensor([0])},
        {"test_labels": torch.zeros(0).long(), "test_features": torch.ones(0, 16)},
        {"train_labels": torch.zeros(299).long()},
        {"train_labels": torch.zeros(301).long()},
        {"train_labels": torch.arange(300) - 1},
    ],
    ids=["one column", "dimension", "one label", "empty", "fewer labels", "more labels", "negative"],
)
def test_what_does_not_fit_is_said(change):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    with pytest.raises(DataError, match="but expected"):
        linear_probe(**(dict(zip(names, noisy_case(11), strict=True)) | change))
