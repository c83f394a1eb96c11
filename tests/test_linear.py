from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from click.testing import CliRunner
from lightly.utils.benchmarking import LinearClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from idaa_lightly import linear_probe
from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.evaluate.targets import load_backbone
from idaa_lightly.bench.features import Features, features_of
from idaa_lightly.cli import main
from idaa_lightly.errors import DataError, NonFiniteError, UsageError
from idaa_lightly.evaluation import linear
from idaa_lightly.evaluation.linear import paper_probe, sgd_probe
from idaa_lightly.files import lock_of

PROBES = [linear_probe, partial(paper_probe, epochs=2), partial(sgd_probe, epochs=2)]
TRAINED = [paper_probe, sgd_probe]


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
    features = (scale * (torch.eye(3, 4)[labels] + noise) + shift).to(dtype)  # The last dimension is pure noise.
    assert linear_probe(features[:60], labels[:60], features[60:], labels[60:]).accuracy == 1.0


def test_random_labels_give_chance():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1600, 8, generator=g), torch.randint(4, (1600,), generator=g)
    assert abs(linear_probe(x[:800], y[:800], x[800:], y[800:]).accuracy - 0.25) < 0.06  # Four standard deviations.


@pytest.mark.parametrize("l2", linear.L2_GRID)
def test_equals_sklearn(monkeypatch, l2):
    """N C times our objective, mean CE + l2 |W|², is scikit-learn's C sum CE + |W|² / 2 if C = 1 / (2 l2 N)."""
    x, y, test_x, test_y = noisy_case(1)
    std, mean = torch.std_mean(x, 0)
    x_standard, test_standard = (x - mean) / std, (test_x - mean) / std
    model = LogisticRegression(C=1 / (2 * l2 * len(x)), tol=1e-8, max_iter=10_000).fit(x_standard, y)
    monkeypatch.setattr(linear, "L2_GRID", (l2,))
    recall = recall_score(test_y, model.predict(test_standard), average="macro")
    score = model.score(test_standard, test_y)
    assert linear_probe(x, y, test_x, test_y) == (pytest.approx(score), l2, pytest.approx(recall))
    weight = linear._fit(x_standard, y, torch.zeros(5, 17), l2)
    intercept = weight[:, -1] - weight[:, -1].mean()  # Intercepts are defined up to a common constant.
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


@pytest.mark.parametrize("probe", PROBES, ids=["lbfgs", "paper", "sgd"])
def test_arrays_and_inference_mode(probe):
    case = noisy_case(8)
    expected = probe(*case)
    assert probe(*(part.numpy() for part in case)) == expected
    with torch.inference_mode():
        inside = [part.clone() for part in case]
        assert probe(*inside) == expected
    assert probe(*inside) == expected


@pytest.mark.parametrize("probe", PROBES, ids=["lbfgs", "paper", "sgd"])
def test_labels_that_are_no_class_indices(probe):
    x, y, test_x, test_y = noisy_case(8)
    with pytest.raises(DataError, match=r"^labels are of type torch\.float32, but expected integers: classes from 0$"):
        probe(x, y + 0.5, test_x, test_y)


@pytest.mark.parametrize("probe", PROBES, ids=["lbfgs", "paper", "sgd"])
def test_twenty_are_enough_nineteen_too_few(probe):
    x, y, test_x, test_y = noisy_case(9)
    probe(x[:20], y[:20], test_x, test_y)
    with pytest.raises(DataError, match=r"^got 19 training features, but a linear probe needs 20 or more$"):
        probe(x[:19], y[:19], test_x, test_y)


@pytest.mark.parametrize("probe", PROBES, ids=["lbfgs", "paper", "sgd"])
@pytest.mark.parametrize("part", [0, 2])
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_non_finite(probe, part, bad):
    parts = list(noisy_case(10))
    parts[part][5, 2] = float(bad)
    with pytest.raises(NonFiniteError, match=r"^the features hold NaN or infinity: the training diverged$"):
        probe(*parts)


@pytest.mark.parametrize("probe", PROBES, ids=["lbfgs", "paper", "sgd"])
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
def test_what_does_not_fit_is_said(probe, change):
    names = ("train_features", "train_labels", "test_features", "test_labels")
    with pytest.raises(DataError, match="but expected"):
        probe(**(dict(zip(names, noisy_case(11), strict=True)) | change))


def start(classes, dim, seed):
    """Return the initial weights and biases of both trained protocols, and the random generator after the draw."""
    draws = torch.Generator().manual_seed(seed)
    bound = 1 / dim**0.5
    return torch.empty(classes, dim + 1).uniform_(-bound, bound, generator=draws), draws


def test_the_papers_protocol_by_hand():
    """The reference is Adam in float64 with an explicit gradient. Each epoch leaves out 5 of the 25 images."""
    x, y, test_x, test_y = (part[:25] for part in noisy_case(12))
    weight, draws = start(5, 16, seed=3)
    weight, padded = weight.double(), F.pad(x, (0, 1), value=1.0).double()
    first, second, step = torch.zeros_like(weight), torch.zeros_like(weight), 0
    for _ in range(4):
        order = torch.randperm(25, generator=draws)
        for rows in (order[:10], order[10:20]):
            share = (padded[rows] @ weight.T).softmax(1) - F.one_hot(y[rows], 5)
            gradient = share.T @ padded[rows] / 10
            step += 1
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            weight -= 3e-4 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    parts = linear._checked(x, y, test_x, test_y)
    found, scores = linear._train(parts, linear._paper, 4, 10, 3, None)
    torch.testing.assert_close(found.double(), weight, rtol=0, atol=1e-5)
    assert (found - start(5, 16, seed=3)[0]).abs().max() > 1e-3
    right = (F.pad(test_x, (0, 1), value=1.0) @ found.T).argmax(1) == test_y
    assert scores[-1] == pytest.approx(right.double().mean().item())


@pytest.mark.filterwarnings("ignore:.*(does not have many workers|validation_step|LeafSpec)")
def test_sgd_is_lightlys_benchmark():
    """Both trainings are identical with one batch per epoch, because the order of images in it does not matter."""
    x, y, test_x, test_y = (part[:40] for part in noisy_case(13))
    weight, _ = start(5, 16, seed=1)
    classifier = LinearClassifier(torch.nn.Identity(), 40, feature_dim=16, num_classes=5, topk=(1,))
    classifier.classification_head.load_state_dict({"weight": weight[:, :-1], "bias": weight[:, -1]})
    trainer = pl.Trainer(
        max_epochs=9, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier, DataLoader(TensorDataset(x, y), 40))
    found, _ = linear._train(linear._checked(x, y, test_x, test_y), linear._sgd, 9, 256, 1, None)
    head = classifier.classification_head
    expected = torch.cat([head.weight, head.bias[:, None]], 1).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found - weight).abs().max() > 1e-2


@pytest.mark.parametrize("probe", TRAINED)
def test_last_and_best_epoch(probe):
    x, y, test_x, test_y = noisy_case(14, noise=20.0)
    texts = []
    result = probe(30 * x, y, 30 * test_x, test_y, epochs=30, on_epoch=texts.append)
    assert len(texts) == 30
    assert texts[-1] == f"{100 * result.accuracy:.2f} %"
    shares = [float(text.removesuffix(" %")) for text in texts]
    assert max(shares) == pytest.approx(100 * result.best, abs=0.005)
    assert shares.index(max(shares)) + 1 == result.best_epoch
    assert result.best > result.accuracy  # Otherwise the test could not tell the two apart.


@pytest.mark.parametrize("probe", TRAINED)
def test_training_learns_what_is_there_and_nothing_else(probe):
    labels = torch.arange(120) % 3
    features = torch.eye(3, 8)[labels] + 0.05 * torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    assert probe(features[:60], labels[:60], features[60:], labels[60:]).accuracy == 1.0
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(1600, 8, generator=g), torch.randint(4, (1600,), generator=g)
    assert abs(probe(x[:800], y[:800], x[800:], y[800:], epochs=50).accuracy - 0.25) < 0.06


@pytest.mark.parametrize("probe", TRAINED)
def test_training_depends_on_the_seed_only(probe):
    case = noisy_case(15)
    copies = [part.clone() for part in case]
    state = torch.get_rng_state()
    results = {probe(*case, epochs=5, seed=seed) for seed in (0, 0, 1, 2, 3)}
    with torch.no_grad():
        results.add(probe(*case, epochs=5, seed=0))
    assert 1 < len(results) <= 4
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(case, copies, strict=True))


@pytest.mark.parametrize("probe", TRAINED)
@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_nothing_to_train(probe, name):
    with pytest.raises(UsageError, match=rf"^{name} is 0, but expected int, 1 or more$"):
        probe(*noisy_case(16), **{name: 0})


def test_features_that_are_too_large():
    x, y, test_x, test_y = noisy_case(17)
    with pytest.raises(NonFiniteError, match=r"e\+3\d in size, are too large for this protocol; take lbfgs"):
        sgd_probe(1e37 * x, y, test_x, test_y, epochs=3)


def bench(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rows(result):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]


def stored(folder):
    return json.loads(Path(folder, "linear.json").read_text())["results"]


@pytest.fixture
def runs(trained):
    """Directory with two runs that differ in their seed, and no other runs."""
    for seed in (0, 1):
        shutil.copytree(trained / f"seed-{seed}", f"r/{seed}")
    return Path("r")


def test_runs_by_all_protocols(runs):
    result = bench("linear", "r", "--protocol", "lbfgs,sgd,paper", "--epochs", "3")
    table = rows(result)
    for protocol in ("lbfgs", "sgd", "paper"):
        found = [stored(runs / str(seed))[protocol] for seed in (0, 1)]
        for seed, entry in enumerate(found):
            best = f"{100 * entry['best']['accuracy']:.2f}" if "best" in entry else ""
            assert [f"r/{seed}", protocol, f"{100 * entry['accuracy']:.2f}", best] in table
            assert f"r/{seed}: {protocol} {100 * entry['accuracy']:.2f} %" in result.stdout
        values = [100 * entry["accuracy"] for entry in found]
        spread = next(row for row in table if row[0].startswith("simclr × none") and row[1] == protocol)
        assert spread[:3] == [
            "simclr × none, mean ± std of 2", protocol, f"{mean(values):.2f} ± {stdev(values):.2f}",
        ]  # fmt: skip
        assert bool(spread[3]) == (protocol != "lbfgs")
    again = bench("linear", runs.absolute(), "r", "r/0", "--protocol", "lbfgs,sgd,paper", "--epochs", "3")
    assert rows(again) == table  # Each run is listed once.
    assert "after the last epoch; * chosen on the test images, so optimistic" in " ".join(result.stdout.split())
    for seed in (0, 1):
        entries = stored(runs / str(seed))
        record = json.loads((runs / str(seed) / "record.json").read_text())
        assert entries["lbfgs"]["accuracy"] == record["last"]["linear"]
        assert entries["lbfgs"]["options"] == {"seed": 0, "epochs": None}
        assert entries["paper"]["options"] == {"seed": 0, "epochs": 3}
        assert entries["paper"]["best"]["selected_on"] == "the test images: optimistic"
        assert {"protocol", "source", "seconds", "versions", "device", "git_commit"} <= entries["sgd"].keys()


def test_features_are_kept_and_nothing_is_done_twice(runs):
    features = features_of(*load_backbone(runs / "0"))
    bench("linear", runs / "0", "--protocol", "lbfgs,sgd", "--epochs", "2")
    with np.load("r/0/features.npz", allow_pickle=False) as kept:
        assert all(np.array_equal(kept[name], part.numpy()) for name, part in features._asdict().items())
        assert kept["train_features"].dtype == np.float32
    files = [Path("r/0", name) for name in ("features.npz", "linear.json")]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in files]
    lock = lock_of(runs / "0")
    lock.touch()  # of a process that was killed when it had kept its results
    bench("linear", runs / "0", "--protocol", "sgd,lbfgs", "--epochs", "2")
    assert not lock.exists()
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in files] == before
    old = stored(runs / "0")
    bench("linear", runs / "0", "--protocol", "lbfgs,sgd", "--epochs", "4")
    new = stored(runs / "0")
    assert new["lbfgs"] == old["lbfgs"]
    assert new["sgd"]["options"]["epochs"] == 4
    assert files[0].stat().st_mtime_ns == before[0][0]
    assert rows(bench("linear", "r/0/features.npz"))[-1][2] == f"{100 * new['lbfgs']['accuracy']:.2f}"


def test_what_is_kept_is_never_stale(trained, own_folder):
    """Other weights, other images and a damaged file lead to new features. The first two also drop old results."""
    shutil.copytree(trained / "seed-0", "run")
    config = Path("run/config.toml")
    data = next(line for line in config.read_text().splitlines() if line.startswith("data ="))
    config.write_text(config.read_text().replace(data, f'data = "folder:{own_folder}"'))
    bench("linear", "run", "--protocol", "lbfgs,sgd", "--epochs", "1")
    assert "computed again" not in bench("linear", "run").stdout
    weights = torch.load("run/backbone.pt", weights_only=True)
    weights["conv1.weight"] = weights["conv1.weight"].roll(1, 0)
    torch.save(weights, "run/backbone.pt")
    sources = [stored("run")["lbfgs"]["source"]]
    for change in (lambda: None, lambda: next(own_folder.glob("train/*/*.png")).unlink()):
        change()
        result = bench("linear", "run")
        assert "Note: run/features.npz belongs to other weights or images" in result.stdout
        assert stored("run").keys() == {"lbfgs"}
        sources.append(stored("run")["lbfgs"]["source"])
    assert len(set(sources)) == 3
    Path("run/features.npz").write_bytes(b"PK damaged")
    assert "Note: run/features.npz cannot be read, so the features are computed again." in bench("linear", "run").stdout
    network, images = load_backbone(Path("run"))
    with np.load("run/features.npz") as kept:
        assert np.array_equal(kept["train_features"], features_of(network, images).train_features.numpy())


def test_targets_of_anybodys(runs, folder):
    parts = dict(zip(Features._fields, noisy_case(18), strict=True))
    np.savez("x.npz", **{name: values.numpy() for name, values in parts.items()})
    Path("f").mkdir()
    for name, values in parts.items():
        np.save(f"f/{name}.npy", values.numpy())
    expected = [
        f"{100 * linear_probe(*parts.values()).accuracy:.2f}",
        f"{100 * sgd_probe(*parts.values()).accuracy:.2f}",
    ]
    table = rows(bench("linear", "x.npz", "f", "--protocol", "lbfgs,sgd"))
    assert [row[2] for row in table] == 2 * expected
    network, _ = create_backbone("resnet9-w2", 16)
    torch.save(network.state_dict(), "x.pth")
    options = ("--data", f"folder:{folder}")
    bench("linear", "x.pth", "--backbone", "resnet9-w2", *options)
    bench("linear", "r/0", *options)
    assert not list(Path().rglob("linear.json"))
    assert not list(Path().rglob("features.npz"))


def test_features_of_another_byte_order():
    parts = {name: values.numpy() for name, values in zip(Features._fields, noisy_case(18), strict=True)}
    np.savez("x.npz", **parts)
    for name in ("train_features", "test_features", "train_labels"):
        parts[name] = parts[name].astype(parts[name].dtype.newbyteorder(">"))
    np.savez("y.npz", **parts)
    for command in ("linear", "knn"):
        assert len({row[2] for row in rows(bench(command, "x.npz", "y.npz"))}) == 1, command


def test_what_linear_refuses(runs):
    for arguments, code, text in (
        (["r", "--protocol", "lbfgs,sdg"], 2, "no protocol 'sdg'; known: paper, lbfgs, sgd. Did you mean 'sgd'?"),
        (["r", "--epochs", "0"], 2, "0 is not in the range x>=1"),
        (["nowhere"], 1, "nowhere does not exist; expected a run directory, a checkpoint or an .npz file"),
        (["r", "--backbone", "resnet18"], 2, "nothing says which images to embed: add --data"),
    ):
        assert text in " ".join(bench("linear", *arguments, code=code).stderr.split())
    assert not list(Path().rglob("linear.json"))
    shutil.copytree("r/0", "again")
    refused = bench("linear", "r", "again", code=2).stderr
    assert "are the same run: leave one of them out" in refused
    Path("r/0/linear.json").write_text('{"schema": 7}')
    refused = bench("linear", "r/0", code=1).stderr
    assert "r/0/linear.json has schema 7, but expected 1 or less: move it away" in refused
    Path("r/0/record.json").unlink()
    Path("r/0/backbone.pt").unlink()
    assert "Left out: 1 unfinished, without a record: r/0." in bench("linear", "r").stdout
    assert "r/0 holds no backbone.pt, so it is not a finished run" in bench("linear", "r/0", code=1).stderr
