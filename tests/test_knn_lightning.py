"""kNN inside Lightning: parity with Lightly's classifier, use during training, and several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightly.utils.benchmarking import KNNClassifier, MetricCallback
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from idaa_lightly import FaissKNNClassifier, KNNCallback, UnlabelledCallback, knn_classify
from idaa_lightly.errors import DataError, ModelError, NonFiniteError, UsageError
from idaa_lightly.evaluation import lightning
from idaa_lightly.evaluation.unlabelled import figures

CLASSES = 7
NAMES = [f"val_knn_top{k}/dataloader_idx_1" for k in (1, 5)]
SETTING: dict[str, Any] = {
    "num_classes": CLASSES,
    "knn_k": 20,
    "knn_t": 0.1,
    "train_dataloader_idx": 0,
    "val_dataloader_idx": 1,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # from Lightning
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images (count, 3, 2, 2) scattered around class centres, and labels. kNN is right in about half of them."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=g)
    centres = torch.randn(CLASSES, 3, 2, 2, generator=torch.Generator().manual_seed(99))
    return centres[labels] + 1.2 * torch.randn(count, 3, 2, 2, generator=g), labels


def loaders(bank: int = 121, queries: int = 61, batch: int = 12, names: bool = False, **changed: Any) -> list[Any]:
    """Return loaders of bank and queries whose last batch has one image. `names` adds file names, as Lightly does."""
    made = []
    for name, count, seed in (("bank", bank, 1), ("queries", queries, 2)):
        images, labels = samples(count, seed)
        images = changed.get("images", lambda part, x: x)(name, images)
        labels = changed.get("labels", lambda part, y: y)(name, labels)
        parts = [(x, y, f"{i}.png") if names else (x, y) for i, (x, y) in enumerate(zip(images, labels, strict=True))]
        made.append(DataLoader(parts, batch))  # type: ignore[arg-type]
    return made


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16))


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), **({"enable_checkpointing": False} | quiet | options)
    )


def validate(kind: type[KNNClassifier], data: Iterable[Any], model: nn.Module | None = None, **changed: Any) -> Any:
    return trainer().validate(kind(model or network(), **(SETTING | changed)), data, verbose=False)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"knn_k": 1, "topk": (1,)},
        {"knn_k": 121, "knn_t": 0.5},
        {"normalize": False, "knn_t": 1.0},
        {"topk": (1, 2, 3)},
        {"num_classes": 30},
    ],
    ids=str,
)
@pytest.mark.parametrize("names", [False, True])
def test_parity_with_lightly(changed: dict[str, Any], names: bool) -> None:
    ours, theirs = (validate(kind, loaders(names=names), **changed) for kind in (FaissKNNClassifier, KNNClassifier))
    assert [list(metrics) for metrics in ours] == [list(metrics) for metrics in theirs]
    assert ours[1] == pytest.approx(theirs[1])
    assert 0.2 < ours[1]["val_knn_top1/dataloader_idx_1"] < 0.95  # Parity at 0 or 1 would say little.


def test_classes_without_a_vote_are_misses() -> None:
    top1, top5 = validate(FaissKNNClassifier, loaders(), knn_k=1)[1].values()  # One neighbour votes for one class.
    assert top1 == top5


def test_constructor_is_lightlys() -> None:
    arguments = (network(), CLASSES, 20, 0.1, 0, 1, (1, 5), torch.float16, False)
    ours, theirs = FaissKNNClassifier(*arguments), KNNClassifier(*arguments)
    assert isinstance(ours, KNNClassifier)
    assert ours.hparams == theirs.hparams


def test_lightlys_metric_callback_sees_it() -> None:
    seen = MetricCallback()
    run = trainer(seen)
    run.validate(FaissKNNClassifier(network(), **SETTING), loaders(), verbose=False)
    assert {name: [value.item()] for name, value in run.callback_metrics.items()} == seen.val_metrics
    assert list(seen.val_metrics) == NAMES


def test_validated_twice_it_starts_anew() -> None:
    module = FaissKNNClassifier(network(), **SETTING)
    first, second = (trainer().validate(module, loaders(), verbose=False) for _ in range(2))
    assert first == second


def test_the_bank_may_come_last() -> None:
    turned = validate(FaissKNNClassifier, loaders()[::-1], train_dataloader_idx=1, val_dataloader_idx=0)
    expected = validate(FaissKNNClassifier, loaders())[1]
    assert turned[0] == {name.replace("idx_1", "idx_0"): value for name, value in expected.items()}


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Data set without a length."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.parts)


def test_loaders_without_a_length() -> None:
    streams = [DataLoader(Stream(loader.dataset), 12) for loader in loaders()]
    assert validate(FaissKNNClassifier, streams)[1] == validate(FaissKNNClassifier, loaders())[1]


@pytest.mark.parametrize("names", [False, True])
def test_batches_of_features(names: bool) -> None:
    flat = loaders(names=names, images=lambda part, x: x.flatten(1))
    module = FaissKNNClassifier(None, **SETTING)
    found = trainer().validate(module, flat, verbose=False)
    assert found == validate(FaissKNNClassifier, loaders(), nn.Flatten())


def test_features_need_not_be_normalised() -> None:
    scaled = loaders(images=lambda part, x: x * torch.logspace(-15, 15, len(x)).view(-1, 1, 1, 1))
    assert validate(FaissKNNClassifier, scaled, nn.Flatten()) == validate(FaissKNNClassifier, loaders(), nn.Flatten())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_and_does_not_overflow(dtype: torch.dtype) -> None:
    module = FaissKNNClassifier(network(), **(SETTING | {"knn_t": 0.01}), feature_dtype=dtype)  # exp(1 / T) = 3e43
    assert module(samples(3)[0]).dtype == dtype
    found = trainer().validate(module, loaders(), verbose=False)
    exact = validate(FaissKNNClassifier, loaders(), knn_t=0.01)
    assert found[1] == pytest.approx(exact[1], abs=0.05)
    assert found[1][NAMES[0]] > 0.2


def test_k_above_the_bank() -> None:
    small = loaders(bank=9, labels=lambda part, y: torch.arange(len(y)) % CLASSES)
    with pytest.warns(UserWarning, match="k is 20, but the bank has 9 features: using 9"):
        clamped = validate(FaissKNNClassifier, small)
    assert clamped == validate(FaissKNNClassifier, small, knn_k=9)


def test_a_class_that_the_bank_lacks() -> None:
    lacking = loaders(labels=lambda part, y: y.clamp(max=4) if part == "bank" else y)
    with pytest.warns(UserWarning, match="2 of the queries' 7 classes are missing in the bank, such as [56]: "):
        found = validate(FaissKNNClassifier, lacking, topk=(CLASSES,), knn_k=121)[1]
    misses = (samples(61, 2)[1] > 4).double().mean().item()
    assert found == pytest.approx({"val_knn_top7/dataloader_idx_1": 1 - misses})


def spoil(part: str, value: float) -> Any:
    def change(name: str, images: Tensor) -> Tensor:
        return torch.where(torch.arange(len(images)).view(-1, 1, 1, 1) == 5, value, images) if name == part else images

    return change


@pytest.mark.parametrize(
    ("data", "changed", "error", "text"),
    [
        ({"images": spoil("bank", float("nan"))}, {}, NonFiniteError, "1 of 12 rows of the features hold NaN"),
        ({"images": spoil("queries", float("inf"))}, {}, NonFiniteError, "1 of 12 rows of the features hold NaN"),
        (
            {"images": spoil("bank", 1e9)},
            {"normalize": False, "feature_dtype": torch.float16},
            NonFiniteError,
            "of the bank hold NaN or infinity: .* half precision overflowed",
        ),
        ({"labels": lambda part, y: y + 1}, {}, DataError, "a label is 7, but num_classes is 7"),
        (
            {"labels": lambda part, y: y + int(part == "queries")},
            {},
            DataError,
            "a query's label is 7, but num_classes",
        ),
        ({"labels": lambda part, y: y - int(part == "queries")}, {}, DataError, "query_labels .* minimum -1"),
        ({"labels": lambda part, y: y.double()}, {}, DataError, "labels are of type torch.float64, but expected int"),
        ({}, {"knn_k": 0}, UsageError, "k is 0 and temperature 0.1, but k must be 1 or more"),
        ({}, {"knn_t": 0.0}, UsageError, "temperature 0.0, but .* temperature above 0"),
        ({}, {"val_dataloader_idx": 2}, DataError, "no batch came from data loader 2 for the queries: give"),
        ({}, {"train_dataloader_idx": 3}, DataError, "no batch came from data loader 3 for the bank: give"),
        ({}, {"train_dataloader_idx": 3, "val_dataloader_idx": 4}, DataError, "data loader 3 for the bank"),
    ],
)
def test_refused(data: dict[str, Any], changed: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        validate(FaissKNNClassifier, loaders(**data), nn.Flatten(), **changed)


def test_other_batches_are_refused() -> None:
    named = DataLoader([{"image": x, "label": y} for x, y in zip(*samples(12), strict=True)], 12)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a batch is dict, but expected images and labels, two tensors"):
        validate(FaissKNNClassifier, [named, named])
    views = DataLoader([([x, x], y) for x, y in zip(*samples(12), strict=True)], 12)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"a batch is \['list', 'Tensor'\], but expected images and labels"):
        validate(FaissKNNClassifier, [views, views])
    with pytest.raises(DataError, match="no batch came from data loader 1 for the queries"):
        validate(FaissKNNClassifier, loaders()[0])


# Evaluation during training


class Anybodys(pl.LightningModule):
    """Module with state that evaluation during training could disturb: batch norm and dropout."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.backbone = network()
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, CLASSES))
        self.lr = lr
        self.seen: list[dict[str, float]] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0].to(self.dtype))).float(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Watch(pl.Callback):
    """Store the metrics logged after each epoch, and the accuracy computed independently at that time."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.expected: list[float] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.logged.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        pl_module.backbone.eval()
        with torch.no_grad():
            (bank, labels), (queries, targets) = (
                (pl_module.backbone(x), y) for x, y in (samples(121, 1), samples(61, 2))
            )
        pl_module.backbone.train()
        self.expected.append((knn_classify(bank, labels, queries, 20)[:, 0] == targets).double().mean().item())


def fit(*callbacks: pl.Callback, epochs: int = 4, **options: Any) -> Anybodys:
    torch.manual_seed(3)
    module = Anybodys()
    training = DataLoader(TensorDataset(*samples(60, 4)), 20, shuffle=True)
    trainer(*callbacks, max_epochs=epochs, log_every_n_steps=1, **options).fit(module, training)
    return module


@pytest.mark.parametrize("names", [False, True])
def test_online(names: bool) -> None:
    watch = Watch()
    fit(KNNCallback(*loaders(names=names), k=20), watch)
    assert [logged["val_knn_top1"] for logged in watch.logged] == pytest.approx(watch.expected)
    assert len(set(watch.expected)) > 1
    assert all(logged["val_knn_top5"] >= logged["val_knn_top1"] for logged in watch.logged)


def test_online_every_other_epoch_and_chosen_by_it(tmp_path: Path) -> None:
    watch = Watch()
    best = ModelCheckpoint(tmp_path, monitor="val_knn_top1", mode="max", every_n_epochs=2)
    fit(KNNCallback(*loaders(), k=20, every=2, topk=(1,)), watch, best, enable_checkpointing=True)
    assert watch.logged[0] == {}
    assert [logged["val_knn_top1"] for logged in watch.logged[1::2]] == pytest.approx(watch.expected[1::2])
    assert best.best_model_score == pytest.approx(max(watch.expected[1::2]))


def test_online_changes_nothing_of_the_training() -> None:
    bank, queries = loaders()
    shuffled = DataLoader(bank.dataset, 12, shuffle=True)
    torch.testing.assert_close(
        fit(KNNCallback(shuffled, queries, k=20)).state_dict(), fit().state_dict(), rtol=0, atol=0
    )


def test_online_in_half_precision() -> None:
    run = trainer(KNNCallback(*loaders(), k=20), precision="bf16-true", max_epochs=1, log_every_n_steps=1)
    run.fit(Anybodys(), DataLoader(TensorDataset(*samples(60, 4)), 20))
    assert 0.2 < run.callback_metrics["val_knn_top1"] < 0.95


def test_online_of_the_module_itself() -> None:
    class Whole(Anybodys):
        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images)  # type: ignore[no-any-return]

    found = []
    for module, backbone in ((Whole(), ""), (Whole(), "backbone"), (Whole(), "backbone.1")):
        flat = [[(x.flatten(1) if backbone == "backbone.1" else x, y) for x, y in loader] for loader in loaders()]
        torch.manual_seed(3)
        run = trainer(KNNCallback(*flat, k=20, backbone=backbone), max_epochs=1, log_every_n_steps=1)
        run.fit(module, DataLoader(TensorDataset(*samples(60, 4)), 20))
        found.append(run.callback_metrics["val_knn_top1"].item())
    assert found[0] == found[1]
    assert found[2] > 0.2


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"k": 0}, UsageError, "k is 0 and temperature 0.1, but k must be 1 or more"),
        ({"temperature": -1.0}, UsageError, "temperature -1.0, but"),
        ({"every": 0}, UsageError, "every is 0, but expected 1 epoch or more between evaluations"),
        (
            {"backbone": "encoder"},
            ModelError,
            "Anybodys has no part 'encoder', but has backbone, head: name what gives",
        ),
        ({"queries": []}, DataError, "there is no batch of images to embed: the data loader is empty"),
        ({"bank": loaders(images=spoil("bank", float("nan")))[0]}, NonFiniteError, "of the bank hold NaN or infinity"),
    ],
)
def test_online_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fit(KNNCallback(**(dict(zip(("bank", "queries"), loaders(), strict=True)) | {"k": 20} | options)), epochs=1)


# Several processes


class Share(Sampler[int]):
    """Sampler of every second image. Rank 0 also gets the last five, so that the shares differ in size."""

    def __init__(self, count: int, rank: int) -> None:
        self.mine = [*range(rank, count - 5, 2), *(range(count - 5, count) if rank == 0 else [])]

    def __iter__(self) -> Iterator[int]:
        return iter(self.mine)

    def __len__(self) -> int:
        return len(self.mine)


def work(rank: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    gathered = []
    real = lightning.gather_all_tensors
    lightning.gather_all_tensors = lambda part: gathered.append(len(part)) or real(part)
    parts = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    shared = [DataLoader(loader.dataset, 12, sampler=Share(len(loader.dataset), rank)) for loader in loaders()]
    for dtype in (torch.float32, torch.float16):
        gathered.clear()
        module = FaissKNNClassifier(network(), **SETTING, feature_dtype=dtype)
        found = trainer(**parts).validate(module, shared, verbose=False)
        assert gathered == [len(shared[0].sampler)] * 2  # One gather for features, one for labels.
        alone = FaissKNNClassifier(network(), **SETTING, feature_dtype=dtype).eval()
        with torch.no_grad():
            (bank, labels), (queries, targets) = ((alone(x), y) for x, y in (samples(121, 1), samples(61, 2)))
        ranked = knn_classify(bank, labels, queries, 20)
        for name, k in zip(NAMES, (1, 5), strict=True):
            assert found[1][name] == pytest.approx((ranked[:, :k] == targets[:, None]).any(1).double().mean().item())

    watch = Watch()
    torch.manual_seed(0)
    training = DataLoader(TensorDataset(*samples(60, 4)), 10)
    trainer(KNNCallback(*loaders(), k=20), watch, max_epochs=2, **(parts | {"use_distributed_sampler": True})).fit(
        Anybodys(), training
    )
    if rank == 0:  # Other ranks get its accuracy, but have running statistics of their own.
        assert [logged["val_knn_top1"] for logged in watch.logged] == pytest.approx(watch.expected)
    Path(f"{rank}.json").write_text(json.dumps(watch.logged))


@pytest.mark.slow
def test_two_processes_gather_the_bank_once(tmp_path: Path) -> None:
    port = str(20_000 + os.getpid() % 20_000)
    setting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "OMP_NUM_THREADS": "1", **setting},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()


if __name__ == "__main__":
    from forks import failed

    sys.exit(failed(work, 2))


# Without labels


@pytest.mark.parametrize(
    "batch_of",
    [lambda x: x, lambda x: (x,), lambda x: ([x, x + 1], torch.zeros(len(x)), ["a.png"] * len(x))],
    ids=["images", "tuples", "views"],
)
def test_figures_without_labels(batch_of: Callable[[Tensor], Any]) -> None:
    images = samples(121, 1)[0]
    batches = [batch_of(part) for part in images.split(40)]
    found: list[dict[str, float]] = []

    class Seen(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
            pl_module.backbone.eval()
            with torch.no_grad():
                features = pl_module.backbone(images)
            pl_module.backbone.train()
            assert logged == pytest.approx(
                {f"val_{name}": value for name, value in figures(features).items()}, rel=1e-4
            )
            found.append(logged)

    module = fit(UnlabelledCallback(batches), Seen(), epochs=2)
    assert [set(logged) for logged in found] == [{"val_rankme", "val_uniformity", "val_spread"}] * 2
    torch.testing.assert_close(module.state_dict(), fit(epochs=2).state_dict(), rtol=0, atol=0)


def test_batches_without_images() -> None:
    callback = UnlabelledCallback([{"image": torch.zeros(2, 3, 4, 4)}])
    with pytest.raises(DataError, match=r"^a batch starts with dict, but expected images, a tensor \(N, C, H, W\)$"):
        callback.measure(nn.Flatten())
