from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.utils.benchmarking.knn import knn_predict
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from idaa_lightly import knn_classify, knn_sweep
from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.features import features_of
from idaa_lightly.bench.run.setup import read_data
from idaa_lightly.cli import main
from idaa_lightly.errors import DataError, NonFiniteError, UsageError
from idaa_lightly.evaluation import knn
from idaa_lightly.evaluation import search as searching
from idaa_lightly.evaluation.search import prepared

GOLDEN = Path(__file__).parent / "golden" / "reference.npz"


def random_case(seed, bank=300, queries=40, dim=16, classes=5):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(bank, dim, generator=g),
        torch.randint(classes, (bank,), generator=g),
        torch.randn(queries, dim, generator=g),
    )


def exact_scores(bank, labels, queries, k, temperature, classes):
    """Compute the votes by their definition, in float64 and with all similarities at once."""
    similarities, at = (F.normalize(queries.double(), dim=1) @ F.normalize(bank.double(), dim=1).T).topk(k, 1)
    return torch.zeros(len(queries), classes, dtype=torch.double).scatter_add_(
        1, labels[at], (similarities / temperature).exp()
    )


def assert_ranked_by(scores, ranked):
    """Check that voted classes are ranked best first, up to near-ties, and followed by -1."""
    voted = (scores > 0).sum(1)
    for row, order, count in zip(scores, ranked, voted.tolist(), strict=True):
        assert order[count:].eq(-1).all()
        assert order[:count].unique().tolist() == row.nonzero().flatten().tolist()
        along = row[order[:count]]
        assert (along[1:] <= along[:-1] * (1 + 1e-4)).all()


@pytest.fixture(params=["torch", "faiss"])
def search(request, monkeypatch):
    """Force one of the two searches, and check that only this one was used."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    monkeypatch.setattr(searching, "FAISS_FROM", 0 if request.param == "faiss" else 10**12)
    used = spy(monkeypatch)
    yield request.param
    assert set(used) == {request.param}


@pytest.fixture
def warn_always():
    """Repeat torch's once-per-process warnings. Otherwise the outcome of a test depends on the tests before it."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def spy(monkeypatch):
    used = []
    for name in ("torch", "faiss"):
        real = getattr(searching, f"_{name}_search")
        monkeypatch.setattr(
            searching, f"_{name}_search", lambda *a, name=name, real=real: used.append(name) or real(*a)
        )
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
        a, b = a[a >= 0], b[: (a >= 0).sum()]  # Lightly ranks classes without a vote at random.
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
        monkeypatch.setattr(searching, "FAISS_FROM", least)
        found[name] = searching.nearest(bank, queries, k)
    (torch_similarities, torch_at), (faiss_similarities, faiss_at) = found.values()
    assert faiss_at.shape == (3000, k)
    torch.testing.assert_close(faiss_similarities, torch_similarities, rtol=0, atol=1e-5)
    assert (torch_at == faiss_at).double().mean() > 0.999  # Near-ties may swap.


@pytest.mark.parametrize(("queries", "expected"), [(3999, "torch"), (4000, "faiss")])
def test_faiss_serves_large_queries(monkeypatch, queries, expected):
    pytest.importorskip("faiss")
    used = spy(monkeypatch)
    searching.nearest(torch.randn(10, 32), torch.randn(queries, 32), 3)
    assert used == [expected]


@pytest.mark.parametrize(("k", "bank_block", "query_block"), [(50, 64, 7), (50, 37, 1000), (50, 1, 40), (1, 300, 1)])
def test_blocks_change_nothing(search, monkeypatch, k, bank_block, query_block):
    case = random_case(2)
    whole, (similarities, at) = knn_classify(*case, k), searching.nearest(case[0], case[2], k)
    monkeypatch.setattr(searching, "BLOCK", bank_block * case[0].shape[1])
    monkeypatch.setattr(searching, "QUERY_BLOCK", query_block)
    assert_equal(knn_classify(*case, k), whole)
    blocked_similarities, blocked_at = searching.nearest(case[0], case[2], k)
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
    assert [Path(warning.filename).name for warning in caught] == ["test_knn.py"]  # The warning names the caller.
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
        (
            {"bank": torch.ones(0, 16), "bank_labels": []},
            DataError,
            r"bank has shape \(0, 16\) .* D of 1 or more",
        ),
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
    monkeypatch.setattr(searching, "BLOCK", block * 16)
    monkeypatch.setattr(searching, "QUERY_BLOCK", block)
    arguments = dict(zip(("bank", "bank_labels", "queries"), random_case(6), strict=True), k=20)
    for name, value in change.items():
        if isinstance(value, str):  # a bad number in the last row
            arguments[name][-1, 3] = float(value)
        else:
            arguments[name] = value
    if error is NonFiniteError and block == 7:
        text = text.partition(" of ")[0]  # Bad rows are counted per block.
    with pytest.raises(error, match=text):
        knn_classify(**arguments)


@pytest.mark.parametrize("base", [(DataError, ValueError), (UsageError, ValueError), (NonFiniteError, ArithmeticError)])
def test_errors_are_built_in_types_too(base):
    assert issubclass(*base)


def test_without_faiss(monkeypatch):
    case = random_case(7, queries=200)
    monkeypatch.setattr(searching, "FAISS_FROM", 0)
    expected = knn_classify(*case, 30)
    monkeypatch.setitem(sys.modules, "faiss", None)  # This makes `import faiss` raise.
    used = spy(monkeypatch)
    assert not searching.faiss_available()
    assert_equal(knn_classify(*case, 30), expected)
    assert set(used) == {"torch"}
    assert (
        searching.backend(10**4, 100, 200)
        == 'torch, exact (for FAISS: pip install "idaa-lightly[cpu]", or [gpu] with an NVIDIA GPU)'
    )


def test_backend_names_faiss():
    faiss = pytest.importorskip("faiss")
    assert searching.backend(10**4, 100, 200) == f"faiss {faiss.__version__}, exact"


def test_two_faiss_distributions_warn(monkeypatch, tmp_path):
    for name in ("cpu", "gpu"):
        folder = tmp_path / f"faiss_{name}-1.13.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: faiss-{name}\nVersion: 1.13.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(
        UserWarning, match="faiss-cpu and faiss-gpu are both installed .* uninstall both, then install one"
    ):
        searching.faiss_available()


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("count", "dim", "k", "name"),
    [(999, 128, 5, "torch"), (1000, 128, 5, "faiss"), (2000, 128, 5000, "torch"), (17000, 4, 5, "torch")],
)
def test_the_backend_is_the_one_that_searches(
    count: int, dim: int, k: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries are searched in blocks, which are small if k is large or there are few dimensions."""
    pytest.importorskip("faiss")
    called = []

    def spied(kind: str) -> Callable[..., tuple[Tensor, Tensor]]:
        def search(block: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
            called.append(kind)
            return torch.zeros(len(queries), k), torch.zeros(len(queries), k, dtype=torch.long)

        return search

    for kind in ("torch", "faiss"):
        monkeypatch.setattr(searching, f"_{kind}_search", spied(kind))
    monkeypatch.setattr(searching, "BLOCK", 2**21)
    bank = torch.rand(k + 1, dim)
    knn_classify(bank, torch.zeros(len(bank), dtype=torch.long), torch.rand(count, dim), k, 0.1)
    assert called[0] == name
    assert searching.backend(count, dim, k).startswith(name)


# Sweeps, indexes and files


def sweep_case(seed=0, bank=300, queries=60):
    """Return a bank and queries that form clusters, so that accuracies depend on k and T."""
    g = torch.Generator().manual_seed(seed)
    labels, targets = torch.randint(9, (bank,), generator=g), torch.randint(9, (queries,), generator=g)
    centres = torch.randn(9, 16, generator=g)
    features = [centres[y] + 1.5 * torch.randn(len(y), 16, generator=g) for y in (labels, targets)]
    return features[0], labels, features[1], targets


def test_sweep_is_knn_classify_for_each_pair(search):
    bank, labels, queries, targets = sweep_case()
    found = knn_sweep(bank, labels, queries, targets, (200, 1, 20), (0.5, 0.07))
    assert [(item.k, item.temperature) for item in found] == [(k, t) for k in (1, 20, 200) for t in (0.07, 0.5)]
    for item in found:
        hits = knn_classify(bank, labels, queries, item.k, item.temperature) == targets[:, None]
        assert item.top1 == pytest.approx(hits[:, 0].double().mean().item())
        assert item.top5 == pytest.approx(hits[:, :5].any(1).double().mean().item())
        assert item.recall is item.change is None
    assert len({item.top1 for item in found}) > 2


@given(st.integers(0, 10**6), st.integers(1, 12), st.sampled_from([0.01, 0.1, 10.0]))
def test_places_are_those_of_knn_classify(seed, k, temperature):
    bank, labels, queries = random_case(seed, bank=12, queries=8, dim=2, classes=6)
    bank = bank.round()  # Rounding makes ties.
    targets = torch.randint(6, (8,), generator=torch.Generator().manual_seed(seed)) % (labels.max() + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The bank may lack a class.
        places = knn.knn_places(bank, labels, queries, targets, [k], [temperature], 6)[0, 0]
    ranked = knn_classify(bank, labels, queries, k, temperature, 6)
    for place, order, target in zip(places.tolist(), ranked.tolist(), targets.tolist(), strict=True):
        assert place == (order.index(target) if target in order else knn.NO_PLACE)


def test_one_search_serves_every_pair(monkeypatch):
    used = spy(monkeypatch)
    knn_sweep(*sweep_case(), [200], [0.1])
    once = len(used)
    knn_sweep(*sweep_case(), (1, 2, 5, 10, 20, 100, 200), (0.03, 0.07, 0.1, 0.5))
    assert once == 1
    assert len(used) == 2 * once


def test_sweep_warns_of_k_and_of_missing_classes():
    bank, labels, queries, targets = sweep_case()
    bank, labels = bank[labels < 7], labels[labels < 7]
    lost = int((targets >= 7).sum())
    with pytest.warns(UserWarning, match="the bank") as caught:
        found = knn_sweep(bank, labels, queries, targets, (len(bank), 500, 900), (0.1,))
    assert [str(warning.message) for warning in caught] == [
        f"k is 900, but the bank has {len(bank)} features: using {len(bank)}",
        f"2 of the queries' 9 classes are missing in the bank, such as {targets[targets >= 7][0]}: {lost} of 60 "
        "queries count as misses",
    ]
    (item,) = found
    assert item.top5 <= 1 - lost / 60


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"query_labels": torch.arange(59)}, DataError, r"query_labels has shape \(59,\) .* expected \(60,\)"),
        ({"query_labels": torch.arange(60) - 1}, DataError, "query_labels .* minimum -1, but .* classes from 0"),
        ({"query_labels": torch.rand(60)}, DataError, "labels are of type torch.float32, but expected integers"),
        ({"bank_labels": np.random.rand(300)}, DataError, "labels are of type torch.float64, but expected integers"),
        ({"k": ()}, UsageError, "k is  and temperature"),
        ({"k": (5, 0)}, UsageError, "k is 5, 0 and temperature 0.1, but k must be 1 or more"),
        ({"temperature": (0.1, 0.0)}, UsageError, "temperature 0.1, 0.0, but"),
        (
            {"index": "nonsense"},
            UsageError,
            "FAISS cannot build the index 'nonsense' for 300 features of 16 dimensions: could",
        ),
        ({"index": "PQ5"}, UsageError, "FAISS cannot build the index 'PQ5' .* multiple of the number of subquantizers"),
        ({"index": "IVF999,Flat"}, UsageError, r"Number of training points \(300\) should be at least as large as"),
        ({"index": "Flat;nprobe=4"}, UsageError, "'Flat;nprobe=4' .*could not set parameter nprobe"),
    ],
)
def test_sweep_errors(change, error, text):
    names = ("bank", "bank_labels", "queries", "query_labels")
    if "index" in change:
        pytest.importorskip("faiss")
    with pytest.raises(error, match=text):
        knn_sweep(**(dict(zip(names, sweep_case(), strict=True)) | {"k": (5,), "temperature": (0.1,)} | change))


def test_an_index_needs_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"the index 'Flat' needs FAISS: pip install \"idaa-lightly\[cpu\]\""):
        knn_sweep(*sweep_case(), index="Flat")


@pytest.mark.parametrize("storage", ["tensor", "half", "mmap"])
def test_an_exact_index_loses_nothing(storage, tmp_path):
    pytest.importorskip("faiss")
    bank, labels, queries, targets = sweep_case()
    exact = knn_sweep(bank, labels, queries, targets, (5, 50))
    if storage == "half":
        bank = bank.half()
        exact = knn_sweep(bank, labels, queries, targets, (5, 50))
    if storage == "mmap":
        np.save(tmp_path / "bank.npy", bank.numpy())
        bank = np.load(tmp_path / "bank.npy", mmap_mode="r")
    found = knn_sweep(bank, labels, queries, targets, (5, 50), index="Flat")
    assert found == [item._replace(recall=1.0, change=0.0) for item in exact]


def test_what_an_index_loses_is_said():
    pytest.importorskip("faiss")
    bank, labels, queries, targets = sweep_case(bank=3000, queries=400)
    exact = knn_sweep(bank, labels, queries, targets, (10, 100), (0.1,))
    recalls = []
    for index in ("IVF32,Flat", "IVF32,Flat;nprobe=4", "IVF32,Flat;nprobe=32", "PQ4x4fs,RFlat;k_factor_rf=8"):
        found = knn_sweep(bank, labels, queries, targets, (10, 100), (0.1,), index=index)
        for by_index, by_exact in zip(found, exact, strict=True):  # The compared sample is all 400 queries.
            assert by_index.change == pytest.approx(by_index.top1 - by_exact.top1)
        recalls.append([item.recall for item in found])
        if index == "IVF32,Flat;nprobe=4":
            _, at = searching.nearest(bank, queries, 100)
            _, close = searching.faiss_index(bank, index)(queries, 100)
            share = [len(set(a) & set(b)) / 100 for a, b in zip(at.tolist(), close.tolist(), strict=True)]
            assert found[1].recall == pytest.approx(np.mean(share))
    assert recalls[0][1] < recalls[1][1] < recalls[2][1] == 1.0
    assert recalls[0][1] < 0.5  # A list of about 94 features cannot hold 100 neighbours.
    assert 0.3 < recalls[3][1] < 1


def test_neighbours_that_an_index_does_not_find_have_no_vote():
    pytest.importorskip("faiss")
    bank = torch.tensor([[1.0, 0.01 * i] for i in range(50)] + [[-1.0, 0.01 * i] for i in range(50)])
    labels = torch.arange(100) // 50
    queries, targets = bank[:3], torch.tensor([0, 0, 1])
    found = knn_sweep(bank, labels, queries, targets, (80,), (1.0,), index="IVF2,Flat")[0]
    assert found.top5 == pytest.approx(2 / 3)  # Exact search would give the other class 30 votes.
    assert found.recall == pytest.approx(50 / 80)
    assert knn_sweep(bank, labels, queries, targets, (80,), (1.0,))[0].top5 == 1.0


def test_features_are_not_changed():
    bank, labels, queries, targets = sweep_case()
    before = bank.clone(), queries.clone()
    knn_sweep(bank, labels, queries, targets, index="Flat" if searching.faiss_available() else None)
    knn_classify(bank, labels, queries)
    assert_equal((bank, queries), before)


def test_autocast_does_not_reach_the_search(search):
    bank, _, queries = random_case(8)
    expected = searching.nearest(bank, queries, 20)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal(searching.nearest(bank, queries, 20), expected)


MEMORY = """
import re, resource, sys, numpy as np, torch
from idaa_lightly.evaluation.knn import knn_sweep
from idaa_lightly.evaluation.search import BUDGET
bank, labels = (np.load(f"{name}.npy", mmap_mode="r") for name in ("bank", "labels"))
queries, targets = np.array(bank[::997]).astype(np.float32), labels[::997]
knn_sweep(bank[:500], labels[:500], bank[:500], labels[:500], [2], [0.1])  # lets libraries and threads allocate
data = int(re.search(r"VmData:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (data + BUDGET, data + BUDGET))
assert 4 * bank.size > BUDGET
try:
    bank.astype(np.float32)
except MemoryError:
    print("no room for a copy")
print(knn_sweep(bank, labels, queries, targets, [1, 20], [0.1])[0].top1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the anonymous memory of a process")
def test_a_bank_larger_than_the_budget(tmp_path):
    rng = np.random.default_rng(0)
    rows = searching.BUDGET * 9 // 8 // 4 // 512
    bank = np.lib.format.open_memmap(tmp_path / "bank.npy", "w+", np.float16, (rows, 512))
    labels = rng.integers(1000, size=rows)
    np.save(tmp_path / "labels.npy", labels)
    noise = rng.standard_normal((8192, 512), np.float32)
    for start in range(0, rows, 8192):
        part = slice(start, min(start + 8192, rows))
        bank[part] = np.roll(noise, start // 8192, axis=1)[: part.stop - part.start]
    bank.flush()
    result = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["no room for a copy", "1.0"]  # Every query is in the bank.


# The command line


def bench(*arguments):
    result = CliRunner().invoke(main, ["knn", *map(str, arguments)], prog_name="idaa-bench", env={"COLUMNS": "150"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows(result):
    """Return the cells of the table as text."""
    assert result.exit_code == 0, result.output
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line[:1] == "│"]


def arrays(**changed):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    return dict(zip(names, (part.numpy() for part in sweep_case()), strict=True)) | changed


def percent(item):
    return [str(item.k), str(item.temperature), f"{100 * item.top1:.2f} %", f"{100 * item.top5:.2f} %"]


def test_table_and_heat_map():
    np.savez("x.npz", **arrays())
    result = bench("x.npz", "--k", "1,5,20,200", "--temperature", "0.07,0.1,0.5", "--heatmap", "map.png")
    assert rows(result) == [percent(item) for item in knn_sweep(*sweep_case())]
    assert "60 queries in a bank of 300; torch, exact" in " ".join(result.stdout.split())
    assert "Heat map: map.png" in result.stdout
    with Image.open("map.png") as image:
        assert min(image.size) > 100
        assert len(image.convert("RGB").getcolors(10**6)) > 50


def test_npy_files_in_a_folder():
    Path("features").mkdir()
    for name, values in arrays().items():
        np.save(f"features/{name}.npy", values.astype(np.float16) if "features" in name else values)
    bank, labels, queries, targets = sweep_case()
    expected = knn_sweep(bank.half(), labels, queries.half(), targets, (200,), (0.1,))
    assert rows(bench("features")) == [percent(item) for item in expected]
    Path("features/test_labels.npy").unlink()
    result = bench("features")
    assert result.exit_code == 1
    assert "features is not a file of features" in result.stderr
    assert "test_labels" in result.stderr


def test_index_reports_what_it_loses():
    pytest.importorskip("faiss")
    np.savez("x.npz", **arrays())
    result = bench("x.npz", "--k", "5,50", "--index", "IVF4,Flat;nprobe=4")
    assert [row[4:] for row in rows(result)] == [["100.00 %", "+0.00 points"]] * 2
    assert "index IVF4,Flat;nprobe=4, approximate" in " ".join(result.stdout.split())


def test_notes():
    labels = sweep_case()[1].numpy().clip(max=7)
    np.savez("x.npz", **arrays(train_labels=labels))
    result = bench("x.npz", "--k", "5,500")
    assert "Note: k is 500, but the bank has 300 features: using 300." in result.stdout
    assert "Note: 1 of the queries' 9 classes are missing in the bank, such as 8: " in result.stdout
    assert [row[0] for row in rows(result)] == ["5", "300"]
    assert not result.stderr


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet10t"])
def test_a_checkpoint_of_anybodys(name, folder):
    torch.manual_seed(0)
    network, _ = create_backbone(name, 16)
    torch.save({"state_dict": network.state_dict() | {"fc.weight": torch.ones(1)}}, "x.pth")
    options = ("--backbone", name, "--data", f"folder:{folder}")
    result = bench("x.pth", *options, "--k", "1,36")
    assert "of the backbone; unexpected, so left out: fc.weight." in " ".join(result.stdout.split())
    data = read_data(RunConfig(data=f"folder:{folder}"))
    features = features_of(network, data)
    assert rows(result) == [percent(item) for item in knn_sweep(*features, (1, 36), (0.1,))]
    for arguments, code, text in (
        (["x.pth"], 1, "no checkpoint written by `idaa-bench run`; for a state dict from torchvision or timm, name"),
        (["x.pth", *options[:2]], 2, f"--backbone is {name}, but nothing says which images to embed: add --data"),
        (["x.pth", "--backbone", "resnet34", *options[2:]], 1, "x.pth does not fit the backbone"),
    ):
        refused = bench(*arguments)
        assert refused.exit_code == code
        assert text in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--k", "1,x"], "'1,x'; expected whole numbers, separated by commas"),
        (["--k", "1,,2"], "'1,,2'; expected whole numbers"),
        (["--k", "1,0"], "k is 1, 0 and temperature 0.1, but k must be 1 or more"),
        (["--temperature", "0.1;0.2"], "'0.1;0.2'; expected numbers, separated by commas"),
        (["--heatmap", "x.gif"], "--heatmap is x.gif, but expected a file whose name ends in .png"),
        (["--data", "digits"], "x.npz holds features already: leave out --data"),
        (["--index", "nonsense"], "FAISS cannot build the index 'nonsense' for 300 features of 16 dimensions"),
    ],
)
def test_options_that_are_refused(arguments, text):
    np.savez("x.npz", **arrays())
    result = bench("x.npz", *arguments)
    assert result.exit_code == 2
    assert text in result.stderr
    assert [path.name for path in Path().iterdir()] == ["x.npz"]


@pytest.mark.parametrize("normalize", [True, False])
def test_features_that_need_no_copy_are_searched_where_they_are(normalize: bool) -> None:
    unit = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert prepared(unit, "bank", normalize=normalize).data_ptr() == unit.data_ptr()
    assert prepared(unit.numpy(), "bank", normalize=normalize).data_ptr() == unit.data_ptr()
    for other in (3 * unit if normalize else unit.double(), unit.half(), unit.T, unit.T.numpy()):
        before = other.clone() if isinstance(other, torch.Tensor) else other.copy()
        assert prepared(other, "bank", normalize=normalize).dtype == torch.float32
        assert (other == before).all()
    with pytest.raises(NonFiniteError, match="1 of 2 rows of the bank hold NaN or infinity"):
        prepared(torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), "bank", normalize=normalize)
