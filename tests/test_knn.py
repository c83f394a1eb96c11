from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.benchmarking.knn import knn_predict
from torch.nn import functional as F

from idaa_lightly import knn_classify
from idaa_lightly.errors import DataError, NonFiniteError, UsageError
from idaa_lightly.evaluation import knn

GOLDEN = Path(__file__).parent / "golden" / "reference.npz"


def random_case(seed, bank=300, queries=40, dim=16, classes=5):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(bank, dim, generator=g),
        torch.randint(classes, (bank,), generator=g),
        torch.randn(queries, dim, generator=g),
    )


def exact_scores(bank, labels, queries, k, temperature, classes):
    """Votes in float64, all the similarities at once: the definition."""
    similarities, at = (F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T).topk(k, 1)
    return torch.zeros(len(queries), classes, dtype=torch.double).scatter_add_(
        1, labels[at], (similarities / temperature).exp()
    )


def assert_ranked_by(scores, ranked):
    """Voted classes best first, up to near-ties; then -1."""
    voted = (scores > 0).sum(1)
    for row, order, count in zip(scores, ranked, voted.tolist(), strict=True):
        assert order[count:].eq(-1).all()
        assert order[:count].unique().tolist() == row.nonzero().flatten().tolist()
        along = row[order[:count]]
        assert (along[1:] <= along[:-1] * (1 + 1e-4)).all()


@pytest.fixture(params=["torch", "faiss"])
def search(request, monkeypatch):
    """Forces a search, and checks that it was used and the other one was not."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(knn, "FAISS_FROM", 0 if request.param == "faiss" else 10**12)
    used = spy(monkeypatch)
    yield request.param
    assert set(used) == {request.param}


@pytest.fixture
def warn_always():
    """Torch gives some warnings once a process only, so that a test's outcome depends on the tests before it."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def spy(monkeypatch):
    used = []
    for name in ("torch", "faiss"):
        real = getattr(knn, f"_{name}_search")
        monkeypatch.setattr(knn, f"_{name}_search", lambda *a, name=name, real=real: used.append(name) or real(*a))
    return used


@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5])
def test_golden(search, temperature):
    golden = np.load(GOLDEN)
    bank, labels, queries = (golden[f"knn_{name}"] for name in ("bank", "bank_labels", "queries"))
    ranked = knn_classify(bank, labels, queries, int(golden["knn_k"]), temperature)
    assert ranked[:, 0].tolist() == golden[f"knn_pred_t{temperature}"].tolist()


@pytest.mark.parametrize(
    ("k", "temperature", "classes", "dim"),
    [(k, t, c, d) for k, c in [(1, 3), (5, 2), (20, 10), (200, 100), (300, 7)] for t, d in [(0.07, 8), (0.1, 64),
     (0.5, 33), (1.0, 16)]],
)  # fmt: skip
def test_parity_with_lightly(k, temperature, classes, dim):
    bank, labels, queries = random_case(k * dim, dim=dim, classes=classes)
    ours = knn_classify(bank, labels, queries, k, temperature, classes)
    theirs = knn_predict(F.normalize(queries, dim=1), F.normalize(bank, dim=1).T, labels, classes, k, temperature)
    scores = exact_scores(bank, labels, queries, k, temperature, classes)
    assert_ranked_by(scores, ours)
    for row, a, b in zip(scores, ours, theirs, strict=True):
        a, b = a[a >= 0], b[: (a >= 0).sum()]  # Lightly ranks the classes without a vote at random
        torch.testing.assert_close(row[a], row[b], rtol=1e-4, atol=0)


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 30),
    temperature=st.sampled_from([0.02, 0.1, 1.0, 10.0]),
    extra=st.integers(0, 3),
    bank_scale=st.floats(-6, 6),
    query_scale=st.floats(-6, 6),
)
def test_is_its_definition_at_any_scale(seed, k, temperature, extra, bank_scale, query_scale):
    bank, labels, queries = random_case(seed, bank=30, queries=6, dim=5, classes=4)
    classes = 4 + extra
    ranked = knn_classify(bank * 10**bank_scale, labels, queries * 10**query_scale, k, temperature, classes)
    assert ranked.shape == (6, classes)
    assert ranked.dtype == torch.long
    assert_ranked_by(exact_scores(bank, labels, queries, k, temperature, classes), ranked)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30))
def test_order_of_the_bank_does_not_matter(seed, k):
    bank, labels, queries = random_case(seed, bank=30, queries=4)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    assert_equal(knn_classify(bank, labels, queries, k), knn_classify(bank[order], labels[order], queries, k))


@pytest.mark.parametrize("scale", [1e-25, 1e-8, 1e8, 1e25])
def test_extreme_scales(scale):
    bank, labels, queries = random_case(0)
    assert_equal(knn_classify(bank * scale, labels, queries * scale, 20), knn_classify(bank, labels, queries, 20))


@pytest.mark.parametrize(
    ("k", "temperature", "expected"),
    [
        (1, 0.5, [0, -1, -1]),
        (3, 0.5, [1, 0, -1]),  # e^1.6 + e^1.2 = 8.27 > e^2 = 7.39
        (3, 0.1, [0, 1, -1]),  # e^8 + e^6 = 3384 < e^10 = 22026
        (4, 0.5, [1, 0, 2]),  # class 2: e^0
        (5, 100.0, [1, 2, 0]),  # about 2, 1 + e^-0.01 and 1 votes
    ],
)
def test_by_hand(search, k, temperature, expected):
    bank = torch.tensor([[1.0, 0], [0.6, 0.8], [0.8, -0.6], [0, 2], [-3, 0]])  # cosines 1, .6, .8, 0, -1
    assert knn_classify(bank, [0, 1, 1, 2, 2], torch.tensor([[5.0, 0]]), k, temperature).tolist() == [expected]


@pytest.mark.parametrize("k", [1, 7, 200])
def test_searches_agree(monkeypatch, k):
    pytest.importorskip("faiss")
    bank, _, queries = random_case(1, bank=700, queries=3000, dim=24)
    found = {}
    for name, least in (("torch", 10**12), ("faiss", 0)):
        monkeypatch.setattr(knn, "FAISS_FROM", least)
        found[name] = knn.nearest(bank, queries, k)
    (torch_similarities, torch_at), (faiss_similarities, faiss_at) = found.values()
    assert faiss_at.shape == (3000, k)
    torch.testing.assert_close(faiss_similarities, torch_similarities, rtol=0, atol=1e-5)
    assert (torch_at == faiss_at).double().mean() > 0.999  # near-ties


@pytest.mark.parametrize(("queries", "expected"), [(3999, "torch"), (4000, "faiss")])
def test_faiss_serves_large_queries(monkeypatch, queries, expected):
    pytest.importorskip("faiss")
    used = spy(monkeypatch)
    knn.nearest(torch.randn(10, 32), torch.randn(queries, 32), 3)
    assert used == [expected]


@pytest.mark.parametrize(("k", "bank_block", "query_block"), [(50, 64, 7), (50, 37, 1000), (50, 1, 40), (1, 300, 1)])
def test_blocks_change_nothing(search, monkeypatch, k, bank_block, query_block):
    case = random_case(2)
    whole, (similarities, at) = knn_classify(*case, k), knn.nearest(case[0], case[2], k)
    monkeypatch.setattr(knn, "BANK_BLOCK", bank_block)
    monkeypatch.setattr(knn, "QUERY_BLOCK", query_block)
    assert_equal(knn_classify(*case, k), whole)
    blocked_similarities, blocked_at = knn.nearest(case[0], case[2], k)
    torch.testing.assert_close(blocked_similarities, similarities, rtol=0, atol=1e-6)
    assert_equal(blocked_at, at)


@pytest.mark.parametrize("kind", ["numpy", "float64", "read-only", "mmap r", "mmap c", "requires grad"])
def test_storages(search, warn_always, kind, tmp_path):
    case = random_case(3)
    expected = knn_classify(*case, 20)
    bank, labels, queries = (part.numpy() for part in case)
    for name, array in (("bank", bank), ("labels", labels), ("queries", queries)):
        np.save(tmp_path / f"{name}.npy", array)
    if kind.startswith("mmap"):
        bank, labels, queries = (
            np.load(tmp_path / f"{n}.npy", mmap_mode=kind[-1]) for n in ("bank", "labels", "queries")
        )
    elif kind == "read-only":
        for array in (bank, labels, queries):
            array.flags.writeable = False
    elif kind == "float64":
        bank, queries = bank.astype(float), np.asfortranarray(queries.astype(float))
    elif kind == "requires grad":
        bank, queries = case[0].clone().requires_grad_(), case[2].clone().requires_grad_()
    assert_equal(knn_classify(bank, labels, queries, 20), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.005, 0.07])
def test_half_precision_does_not_overflow(search, dtype, temperature):
    labels = torch.arange(200) % 4
    centres = torch.eye(4, 16)[labels]
    bank = (300 * (centres + 0.1 * torch.randn(200, 16, generator=torch.Generator().manual_seed(0)))).to(dtype)
    ranked = knn_classify(bank, labels, bank[:50], 100, temperature)
    assert_equal(ranked[:, 0], labels[:50])
    assert_equal(ranked, knn_classify(bank.float(), labels, bank[:50].float(), 100, temperature))


def test_k_above_the_bank_is_clamped(search):
    bank, labels, queries = random_case(4, bank=9)
    with pytest.warns(UserWarning, match=r"^k is 200, but the bank has 9 features: using 9$") as caught:
        ranked = knn_classify(bank, labels, queries)
    assert [Path(warning.filename).name for warning in caught] == ["test_knn.py"]  # points at the caller
    assert_equal(ranked, knn_classify(bank, labels, queries, k=9))


@pytest.mark.parametrize(("queries", "classes"), [(1, None), (1, 9), (0, None)])
def test_few_queries_and_columns(queries, classes):
    bank, labels, many = random_case(5)
    ranked = knn_classify(bank, labels, many[:queries], 10, num_classes=classes)
    assert ranked.shape == (queries, classes or 5)
    assert_equal(ranked[:, :5], knn_classify(bank, labels, many, 10)[:queries])
    assert ranked[:, 5:].eq(-1).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"bank": "nan"}, NonFiniteError, "1 of 300 rows of the bank hold NaN or infinity: the training diverged"),
        ({"queries": "inf"}, NonFiniteError, "1 of 40 rows of the queries hold NaN or infinity"),
        ({"bank": torch.ones(300, 3)}, DataError, r"bank has shape \(300, 3\) and queries \(40, 16\), but expected"),
        ({"bank": torch.ones(300)}, DataError, r"bank has shape \(300,\) .* but expected \(N, D\) and \(M, D\)"),
        ({"queries": torch.ones(16)}, DataError, r"queries \(16,\), but expected \(N, D\) and \(M, D\)"),
        ({"bank": torch.ones(0, 16), "bank_labels": []}, DataError, r"bank has shape \(0, 16\) .* N of 1 or more"),
        ({"bank_labels": [0, 1]}, DataError, r"bank_labels has shape \(2,\) .* but expected \(300,\) with classes"),
        ({"bank_labels": []}, DataError, r"bank_labels has shape \(0,\) and minimum None"),
        ({"bank_labels": torch.arange(300) - 2}, DataError, "minimum -2, but expected .* with classes from 0"),
        ({"num_classes": 4}, DataError, "a label is 4, but num_classes is 4"),
        ({"num_classes": 0}, DataError, "a label is 4, but num_classes is 0"),
        ({"k": 0}, UsageError, "k is 0 and temperature 0.1, but k must be 1 or more and temperature above 0"),
        ({"k": -1}, UsageError, "k is -1"),
        ({"temperature": 0.0}, UsageError, "temperature 0.0, but .* temperature above 0"),
        ({"temperature": -0.1}, UsageError, "temperature -0.1"),
        ({"temperature": float("nan")}, UsageError, "temperature nan"),
    ],
)
@pytest.mark.parametrize("block", [7, 65_536])
def test_errors(monkeypatch, change, error, text, block):
    monkeypatch.setattr(knn, "BANK_BLOCK", block)
    monkeypatch.setattr(knn, "QUERY_BLOCK", block)
    arguments = dict(zip(("bank", "bank_labels", "queries"), random_case(6), strict=True), k=20)
    for name, value in change.items():
        if isinstance(value, str):  # a bad number in the last row
            arguments[name][-1, 3] = float(value)
        else:
            arguments[name] = value
    if error is NonFiniteError and block == 7:
        text = text.partition(" of ")[0]  # rows are counted by block
    with pytest.raises(error, match=text):
        knn_classify(**arguments)


@pytest.mark.parametrize("base", [(DataError, ValueError), (UsageError, ValueError), (NonFiniteError, ArithmeticError)])
def test_errors_are_built_in_types_too(base):
    assert issubclass(*base)


def test_without_faiss(monkeypatch):
    case = random_case(7, queries=200)
    monkeypatch.setattr(knn, "FAISS_FROM", 0)
    expected = knn_classify(*case, 30)
    monkeypatch.setitem(sys.modules, "faiss", None)  # `import faiss` raises now
    used = spy(monkeypatch)
    assert not knn.faiss_available()
    assert_equal(knn_classify(*case, 30), expected)
    assert set(used) == {"torch"}
    assert (
        knn.backend(10**6) == 'torch, exact (for FAISS: pip install "idaa-lightly[cpu]", or [gpu] with an NVIDIA GPU)'
    )


def test_backend_names_faiss():
    faiss = pytest.importorskip("faiss")
    assert knn.backend(10**6) == f"faiss {faiss.__version__}, exact"


def test_two_faiss_distributions_warn(monkeypatch, tmp_path):
    for name in ("cpu", "gpu"):
        folder = tmp_path / f"faiss_{name}-1.13.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: faiss-{name}\nVersion: 1.13.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(
        UserWarning, match="faiss-cpu and faiss-gpu are both installed .* uninstall both, then install one"
    ):
        knn.faiss_available()


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_backend_is_the_one_that_searches() -> None:
    assert knn.backend(knn.FAISS_FROM - 1).startswith("torch, exact (faster than FAISS")
    assert knn.backend(knn.FAISS_FROM).startswith("faiss ")
