"""Fine-tuning on a few labels, through the real command line, on images whose class is their colour."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from idaa_lightly.bench.config import RunConfig
from idaa_lightly.bench.evaluate.finetune import labelled
from idaa_lightly.bench.run.setup import read_data
from idaa_lightly.cli import main
from idaa_lightly.data import DataSet, Images
from idaa_lightly.errors import UsageError
from idaa_lightly.seeding import STREAMS


def bench(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def rows(result: Result) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]


def stored(folder: str) -> dict[str, dict[str, Any]]:
    results: dict[str, dict[str, Any]] = json.loads(Path(folder, "finetune.json").read_text())["results"]
    return results


@pytest.fixture(autouse=True)
def runs(trained: Path) -> None:
    """Directory `r` with two runs that differ in their seed, on 36 images of 3 classes."""
    for seed in (0, 1):
        shutil.copytree(trained / f"seed-{seed}", f"r/{seed}")


@pytest.fixture
def data(folder: Path) -> DataSet:
    """Data set with 12 training images per class, ordered by label."""
    return read_data(RunConfig(data=f"folder:{folder}"))


def counts(images: Images) -> list[int]:
    return images.labels.bincount(minlength=3).tolist()


def test_labels_are_spread_over_the_classes(data: DataSet) -> None:
    assert counts(labelled(data, 0.25, seed=0)) == [3, 3, 3]
    assert sorted(counts(labelled(data, 0.22, seed=0))) == [2, 3, 3]  # 22 % of 36 are 7.92.
    assert counts(labelled(data, 1.0, seed=0)) == [12, 12, 12]
    uneven = data.train.take(torch.tensor([0, 1, 2, 3, 4, 5, 6, 12, 13, 24]))
    assert counts(labelled(replace(data, train=uneven), 0.6, seed=0)) == [3, 2, 1]  # Classes take turns.


def test_labels_depend_on_the_seed_only_and_the_fewer_are_among_the_more(data: DataSet) -> None:
    def drawn(share: float, seed: int) -> set[bytes]:
        images = labelled(data, share, seed)
        assert images.pixels is not None
        return {pixels.numpy().tobytes() for pixels in images.pixels}

    assert drawn(0.25, 3) == drawn(0.25, 3)
    assert len({frozenset(drawn(0.25, seed)) for seed in range(5)}) == 5
    assert drawn(0.1, 3) < drawn(0.25, 3) < drawn(1.0, 3)


def test_too_few_labels(data: DataSet) -> None:
    assert counts(labelled(data, 3 / 36, seed=0)) == [1, 1, 1]
    with pytest.raises(UsageError) as caught:
        labelled(data, 0.05, seed=0)
    assert str(caught.value) == (
        "5% of 36 training images are 2, but 3 classes need 3 or more, one each: take a larger share"
    )


def test_table_and_file() -> None:
    result = bench("finetune", "r", "--labels", "25%,50%", "--epochs", "2")
    for name, images in (("25%", 9), ("50%", 18)):
        found = [stored(f"r/{seed}")[name] for seed in (0, 1)]
        for seed, entry in enumerate(found):
            assert [f"r/{seed}", name, f"{100 * entry['accuracy']:.2f}"] in rows(result)
            assert entry["options"] == {"epochs": 2, "batch_size": 64, "lr": 0.05, "seed": seed, "streams": STREAMS}
            assert entry["images"] == images
            assert {"protocol", "source", "seconds", "versions", "device", "git_commit"} <= entry.keys()
        values = [100 * entry["accuracy"] for entry in found]
        expected = ["simclr × none, mean ± std of 2", name, f"{mean(values):.2f} ± {stdev(values):.2f}"]
        assert expected in rows(result)


def test_only_what_is_missing_or_asked_for_otherwise_is_done() -> None:
    options = ("r/0", "--labels", "10%,50%")
    bench("finetune", *options)
    path, first = Path("r/0/finetune.json"), stored("r/0")
    assert [first[name]["options"]["epochs"] for name in ("10%", "50%")] == [30, 30]
    before = path.stat().st_mtime_ns, path.read_bytes()
    again = bench("finetune", *options)
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert [row[2] for row in rows(again)] == [f"{100 * first[name]['accuracy']:.2f}" for name in ("10%", "50%")]
    content = json.loads(path.read_text())
    del content["results"]["50%"]
    path.write_text(json.dumps(content))  # As if interrupted after the first share.
    bench("finetune", *options)
    second = stored("r/0")
    assert second["10%"] == first["10%"]
    assert second["50%"]["accuracy"] == first["50%"]["accuracy"]  # The result is reproduced.
    bench("finetune", "r/0", "--labels", "10%", "--lr", "0.1", "--epochs", "1")
    assert stored("r/0")["10%"]["options"] == {"epochs": 1, "batch_size": 64, "lr": 0.1, "seed": 0, "streams": STREAMS}
    assert stored("r/0")["50%"] == second["50%"]


def test_it_learns_and_leaves_the_run_alone() -> None:
    """Twelve images of three colours are enough to beat chance and a learning rate of 0."""
    weights = Path("r/0/backbone.pt").read_bytes()
    accuracies: dict[str, list[float]] = {"0.3": [], "0": []}
    for rate, found in accuracies.items():
        for seed in range(4):
            options = ("--labels", "34%", "--epochs", "40", "--lr", rate, "--seed", seed)
            bench("finetune", "r/0", *options)
            assert stored("r/0")["34%"]["images"] == 12
            found.append(stored("r/0")["34%"]["accuracy"])
    assert mean(accuracies["0.3"]) >= 0.8
    assert mean(accuracies["0"]) <= 0.6
    assert Path("r/0/backbone.pt").read_bytes() == weights


def test_from_scratch_does_without_the_weights_of_the_run() -> None:
    options = ("r/0", "--labels", "50%", "--epochs", "1")
    bench("finetune", *options, "--from-scratch")
    before = stored("r/0")["50% from scratch"]
    broken = {name: value * float("nan") for name, value in torch.load("r/0/backbone.pt", weights_only=True).items()}
    torch.save(broken, "r/0/backbone.pt")
    refused = bench("finetune", *options, code=1)
    assert "Error: the network became NaN or infinite: lower --lr" in refused.stderr
    bench("finetune", *options, "--from-scratch")
    after = stored("r/0")["50% from scratch"]
    assert after["accuracy"] == before["accuracy"]
    assert after["source"] != before["source"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["r", "--labels", "1,10"], 2, "'1,10'; expected percentages, separated by commas, such as 1%,10%"),
        (["r", "--labels", "x%"], 2, "'x%'; expected percentages"),
        (["r", "--labels", "50%,0%"], 2, "a share of labels is 0%, but must be above 0% and up to 100%"),
        (["r", "--labels", "101%"], 2, "a share of labels is 101%, but must be above 0% and up to 100%"),
        (["r", "--labels", "nan%"], 2, "a share of labels is nan%, but must be above 0% and up to 100%"),
        (["r", "--labels", "50%,1%"], 2, "1% of 36 training images are 0, but 3 classes need 3 or more"),
        (["nowhere"], 1, "nowhere holds no finished run of idaa-bench run: expected one, or a folder of runs"),
    ],
)
def test_what_finetune_refuses(arguments: list[str], code: int, text: str) -> None:
    assert text in " ".join(bench("finetune", *arguments, code=code).stderr.split())
    assert not list(Path().rglob("finetune.json"))
