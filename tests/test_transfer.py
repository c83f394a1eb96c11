"""Transfer of runs to other data sets, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from idaa_lightly import linear_probe
from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.evaluate.transfer import METRICS, metric_of, parse_sets
from idaa_lightly.cli import main
from idaa_lightly.errors import UsageError

Folder = Callable[..., Path]


def bench(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="idaa-bench", env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def results(run: Path) -> dict[str, Any]:
    content = json.loads((run / "transfer.json").read_text())
    assert content["schema"] == 1
    found: dict[str, Any] = content["results"]
    return found


def table(result: Result) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if line[:1] == "│"]


@pytest.fixture
def runs(trained: Path) -> Path:
    return Path(shutil.copytree(trained, "runs"))


@pytest.fixture
def textures() -> Path:
    """Folder of noisy images of 16 px, 40 for training and 20 for test. Three quarters are of the class `many`."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 40, "test": 20}.items():
        for index in range(count):
            name = "few" if index % 4 == 0 else "many"
            path = Path("textures") / split / name / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.normal(100 if name == "few" else 120, 40, (16, 16, 3)) + rng.normal(0, 20, 3)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return Path("textures")


def by_hand(run: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return features and labels of the textures, normalised as in the run's record."""
    record = json.loads((run / "record.json").read_text())
    network, _ = create_backbone("resnet9-w2", 16)
    network.load_state_dict(torch.load(run / "backbone.pt", weights_only=True))
    paths = sorted(Path("textures", split).rglob("*.png"))
    pixels = np.stack([np.array(Image.open(path)) / 255 for path in paths])
    normal = (pixels - record["data"]["normalize"]["mean"]) / record["data"]["normalize"]["std"]
    with torch.no_grad():
        features = network.eval()(torch.from_numpy(normal).permute(0, 3, 1, 2).float())
    return features, torch.tensor([int(path.parent.name == "many") for path in paths])


def test_the_figures_are_those_of_the_protocol(runs: Path, textures: Path) -> None:
    """The name selects the metric. The images are normalised like those that the run was trained on."""
    bench("transfer", runs, "--to", f"pets=folder:{textures},other=folder:{textures}")
    for run in (runs / "seed-0", runs / "seed-1"):
        record = json.loads((run / "record.json").read_text())
        probe = linear_probe(*by_hand(run, "train"), *by_hand(run, "test"))
        found = results(run)
        assert found.keys() == {"pets", "other"}
        assert [found[name]["metric"] for name in ("pets", "other")] == ["mean_per_class", "top1"]
        for entry in found.values():
            assert entry["top1"] == pytest.approx(probe.accuracy)
            assert entry["mean_per_class"] == pytest.approx(probe.mean_per_class)
            assert entry["l2"] == probe.l2
            assert entry["accuracy"] == entry[entry["metric"]]
            assert entry["data"]["normalize"] == record["data"]["normalize"]
            assert [entry["data"][name] for name in ("train", "test", "classes", "image_size")] == [40, 20, 2, 16]
            assert {"versions", "device", "git_commit", "protocol", "seconds"} <= entry.keys()
        assert found["pets"]["accuracy"] != found["other"]["accuracy"]


def test_the_table_has_mean_and_deviation_over_seeds(runs: Path, textures: Path, make_folder: Folder) -> None:
    large = make_folder(Path("large"), 24)
    to = f"pets=folder:{textures},large=folder:{large}"
    result = bench("transfer", runs / "seed-0", runs / "seed-1", "--to", to)
    assert "mean per class, %" in result.stdout
    assert "top-1, %" in result.stdout
    assert result.stdout.count("48 images resized and cropped to 16×16") == 1  # Both runs share one reading.
    values = [[100 * results(runs / f"seed-{seed}")[name]["accuracy"] for seed in (0, 1)] for name in ("pets", "large")]
    *_, first, second, spread = table(result)
    assert first == ["runs/seed-0", *(f"{value[0]:.2f}" for value in values)]
    assert second == ["runs/seed-1", *(f"{value[1]:.2f}" for value in values)]
    assert spread[0] == "simclr × none, mean ± std of 2"
    assert spread[1:] == [f"{mean(value):.2f} ± {stdev(value):.2f}" for value in values]


def test_what_is_there_is_not_done_again(runs: Path, textures: Path) -> None:
    run, to = runs / "seed-0", f"textures=folder:{textures}"
    first = table(bench("transfer", run, "--to", to))
    before = (run / "transfer.json").read_bytes()
    textures.rename("away")
    assert table(bench("transfer", run, "--to", to)) == first  # The images are not needed.
    assert (run / "transfer.json").read_bytes() == before
    entry = results(run)["textures"]
    bench("transfer", run, "--to", f"{to},again=folder:away")
    assert results(run)["textures"] == entry
    assert results(run)["again"]["accuracy"] == entry["accuracy"]
    assert "textures is not a folder" in bench("transfer", runs, "--to", to, code=1).stderr  # Seed 1 needs it.


def test_other_weights_or_another_folder_are_done_anew(runs: Path, textures: Path) -> None:
    run = runs / "seed-0"
    bench("transfer", run, "--to", f"textures=folder:{textures},old=folder:{textures}")
    shutil.copytree(textures, "copy")
    shutil.rmtree("copy/test/few")
    shutil.rmtree("copy/train/few")
    refused = bench("transfer", run, "--to", "textures=folder:copy", code=1).stderr
    assert "has no labels, but evaluation needs two or more classes" in refused  # The new folder was read.
    before = results(run)["textures"]
    shutil.copy(runs / "seed-1/backbone.pt", run / "backbone.pt")
    bench("transfer", run, "--to", f"textures=folder:{textures}")
    found = results(run)
    assert found.keys() == {"textures"}  # Results of the old weights are dropped.
    assert found["textures"]["source"] != before["source"]
    probe = linear_probe(*by_hand(run, "train"), *by_hand(run, "test"))
    assert found["textures"]["top1"] == pytest.approx(probe.accuracy)


def test_another_normalisation_is_done_anew(runs: Path, textures: Path) -> None:
    run, to = runs / "seed-0", f"textures=folder:{textures}"
    bench("transfer", run, "--to", to)
    record = json.loads((run / "record.json").read_text())
    record["data"]["normalize"]["mean"][0] += 0.1
    (run / "record.json").write_text(json.dumps(record))
    bench("transfer", run, "--to", to)
    assert results(run)["textures"]["data"]["normalize"] == record["data"]["normalize"]


def test_what_is_done_is_kept_where_the_next_data_set_fails(runs: Path, textures: Path) -> None:
    run = runs / "seed-0"
    result = bench("transfer", run, "--to", f"textures=folder:{textures},gone=folder:nowhere", code=1)
    assert "nowhere is not a folder; expected train/ and test/ or val/ below it" in result.stderr
    assert results(run).keys() == {"textures"}
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_conventions() -> None:
    """The metrics are those of Kornblith et al., Table 1."""
    per_class = ("aircraft", "pets", "caltech101", "flowers102")
    top1 = ("food101", "cifar10", "cifar100", "birdsnap", "cars", "dtd", "cub200", "mine")
    assert {metric_of(name) for name in per_class} == {"mean_per_class"}
    assert {metric_of(name) for name in top1} == {"top1"}
    assert METRICS.keys() == {"mean_per_class", "top1"}


def test_names_and_folders() -> None:
    here = Path.cwd()
    assert parse_sets(" dtd, cub200=folder:cub/a=b ,") == {"dtd": "dtd", "cub200": f"folder:{here}/cub/a=b"}
    assert parse_sets("dtd=folder:~/x")["dtd"] == f"folder:{Path.home() / 'x'}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flower102", ["--to has 'flower102', but known are digits, cifar10, ", "Did you mean 'flowers102'?"]),
        ("cub200", ["a folder with train/ and test/ write cub200=folder:PATH"]),
        ("folder:x", ["--to has 'folder:x' without a name: write NAME=folder:x"]),
        ("cub200=x", ["--to has 'cub200=x', but expected NAME=folder:PATH"]),
        ("cub200=folder:", ["but expected NAME=folder:PATH"]),
        ("=folder:x", ["but expected NAME=folder:PATH"]),
        ("dtd,dtd=folder:x", ["--to has 'dtd' twice"]),
        (" ,", ["--to names no data set"]),
    ],
)
def test_names_that_are_refused(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_sets(text)
    for word in words:
        assert word in str(caught.value)


def damage(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).unlink() if content is None else (run / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (damage("record.json", None), "holds no finished run of idaa-bench run: expected one"),
        (damage("backbone.pt", None), "holds no backbone.pt, so it is not a finished run"),
        (damage("backbone.pt", b"PK"), "backbone.pt is not a backbone written by a run"),
        (damage("transfer.json", b"{"), "transfer.json is not a file of results: "),
    ],
)
def test_runs_that_are_refused(runs: Path, textures: Path, change: Callable[[Path], None], text: str) -> None:
    run = runs / "seed-0"
    change(run)
    assert text in bench("transfer", run, "--to", f"textures=folder:{textures}", code=1).stderr
    assert "nowhere holds no finished run" in bench("transfer", "nowhere", "--to", "digits", code=1).stderr


def test_a_backbone_of_another_shape(runs: Path) -> None:
    torch.save(create_backbone("resnet9-w4", 16)[0].state_dict(), runs / "seed-0/backbone.pt")
    refused = bench("transfer", runs / "seed-0", "--to", "digits", code=1).stderr
    assert "backbone.pt does not fit the backbone resnet9-w2" in refused
