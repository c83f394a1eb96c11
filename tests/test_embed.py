"""Features and weights for other programs: `idaa-bench embed` and `idaa-bench export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner, Result
from records import a_record
from torch import Tensor, nn

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.evaluate.state_dicts import Given
from idaa_lightly.bench.evaluate.targets import load_backbone
from idaa_lightly.cli import main


def bench(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="idaa-bench", env={"COLUMNS": "150"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def bench_features(data: str) -> Any:
    bench("embed", "run", "--data", data, "--out", "features.npz")
    with np.load("features.npz") as arrays:
        return arrays["test_features"]


def accuracies(*arguments: object) -> list[str]:
    lines = bench("knn", *arguments, "--k", "1,5,36", "--temperature", "0.07,0.5").stdout.splitlines()
    return [line for line in lines if line.startswith("│")]


@pytest.fixture
def run(trained: Path) -> Path:
    return Path(shutil.copytree(trained / "seed-0", "run"))


# embed


@pytest.mark.parametrize("target", ["run", "run/checkpoints/last.ckpt"])
def test_features_of_a_run_give_its_accuracies(run: Path, target: str) -> None:
    result = bench("embed", target, "--out", "features.npz")
    assert "Written to features.npz: train_features (36, 16), train_labels (36,), test_fe" in result.stdout
    with np.load("features.npz", allow_pickle=False) as arrays:
        assert list(arrays) == ["train_features", "train_labels", "test_features", "test_labels"]
        assert arrays["train_features"].dtype == np.float32
        assert arrays["train_labels"].tolist() == [0] * 12 + [1] * 12 + [2] * 12
        assert arrays["test_labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert arrays["test_features"].std() > 0
    assert len(accuracies("features.npz")) == 6
    assert accuracies("features.npz") == accuracies(target)


def test_features_of_a_foreign_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save(create_backbone("resnet18", 16)[0].state_dict(), "x.pth")
    options = ("--backbone", "resnet18", "--data", f"folder:{folder}")
    bench("embed", "x.pth", *options, "--out", "deep/features.npz")
    assert accuracies("deep/features.npz") == accuracies("x.pth", *options)


def arrays_of(path: str) -> dict[str, Any]:
    with np.load(path) as arrays:
        return dict(arrays)


def test_an_exported_state_dict_is_evaluated_as_the_run_is(run: Path, folder: Path) -> None:
    """The JSON file beside it says what the run was trained with; the data set alone would say something else."""
    record = json.loads((run / "record.json").read_text())
    bench("export", run, "--out", "x.pth")
    note = json.loads(Path("x.pth.json").read_text())
    assert note == {"backbone": "resnet9-w2", "options": {}, "image_size": 16, **record["data"]["normalize"]}
    shutil.copytree(folder / "train", "other/train", ignore=shutil.ignore_patterns("red"))
    shutil.copytree(folder / "test", "other/test", ignore=shutil.ignore_patterns("red"))
    bench("embed", run, "--data", "folder:other", "--out", "a.npz")
    text = bench("embed", "x.pth", "--data", "folder:other", "--out", "b.npz").stdout
    mean, std = ([round(value, 4) for value in note[name]] for name in ("mean", "std"))
    assert f"x.pth: resnet9-w2, images of 16 px, less mean {mean}, divided by std {std}\n" in text
    ours, theirs = arrays_of("a.npz"), arrays_of("b.npz")
    assert all(np.array_equal(values, theirs[name]) for name, values in ours.items())

    Path("x.pth.json").unlink()
    options = ["--backbone", "resnet9-w2", "--data", "folder:other"]
    text = bench("embed", "x.pth", *options, "--out", "c.npz").stdout
    assert "; assumed from the data set: --image-size, --mean, --std\n" in text
    assert not np.allclose(ours["test_features"], arrays_of("c.npz")["test_features"], rtol=1e-3)
    given = [f"--{name}={','.join(map(str, note[name]))}" for name in ("mean", "std")]
    text = bench("embed", "x.pth", *options, *given, "--out", "d.npz").stdout
    assert "; assumed from the data set: --image-size\n" in text
    np.testing.assert_allclose(ours["test_features"], arrays_of("d.npz")["test_features"], rtol=1e-5)
    text = bench("embed", "x.pth", *options, "--image-size", 24, "--out", "e.npz").stdout
    assert "x.pth: resnet9-w2, images of 24 px" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--mean", "0.5"], "--mean is 0.5, but expected three numbers: red, green, blue"),
        (["--std", "0.1,0.2,0"], "--std is 0.1,0.2,0.0, but expected three numbers above 0: red, green, blue"),
        (["--std", "a"], "'a'; expected numbers, separated by commas"),
    ],
)
def test_normalisations_that_are_refused(folder: Path, options: list[str], text: str) -> None:
    torch.save(create_backbone("resnet9-w2", 16)[0].state_dict(), "x.pth")
    target = ["x.pth", "--backbone", "resnet9-w2", "--data", f"folder:{folder}"]
    assert text in bench("embed", *target, *options, "--out", "x.npz", code=2).stderr


@pytest.mark.parametrize("limit", ["", "limit_train = 5\n"])
def test_features_of_other_images(limit: str, run: Path, folder: Path) -> None:
    """All of them: the run's limit is about the images that it was trained on."""
    config = run / "config.toml"
    config.write_text(limit + config.read_text())
    bench("embed", run, "--data", f"folder:{folder / 'test'}", "--out", "features.npz")
    with np.load("features.npz") as arrays:
        assert (len(arrays["train_labels"]), len(arrays["test_labels"])) == (9, 3)


def test_a_network_meets_other_images_as_it_was_trained(run: Path, folder: Path) -> None:
    """Two of three classes have other means, but the same images must give the same features as before."""
    shutil.copytree(folder / "train", "other/train", ignore=shutil.ignore_patterns("red"))
    shutil.copytree(folder / "test", "other/test", ignore=shutil.ignore_patterns("red"))
    _, data = load_backbone(run, Given(data="folder:other"))
    assert data.normalize == json.loads((run / "record.json").read_text())["data"]["normalize"]
    own, whole = (bench_features(path) for path in ("folder:other", f"folder:{folder}"))
    np.testing.assert_allclose(own, whole[:8], rtol=1e-5)  # Blue and green come first.


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["run", "--out", "x.pt"], 2, "--out is x.pt, but expected a file whose name ends in .npz"),
        (["x.npz", "--out", "y.npz"], 2, "x.npz holds features already: expected a network"),
        (["nowhere", "--out", "x.npz"], 1, "nowhere does not exist; expected a run directory"),
        (["run", "--image-size", "8", "--out", "x.npz"], 2, "own settings: leave out --image-size"),
        (["run", "--backbone", "resnet18", "--out", "x.npz"], 2, "nothing says which images to embed: add --data"),
    ],
)
def test_embed_refuses(run: Path, arguments: list[str], code: int, text: str) -> None:
    assert text in bench("embed", *arguments, code=code).stderr
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_a_directory_of_several_seeds_is_taken_as_its_runs(trained: Path) -> None:
    shutil.copytree(trained, "runs")
    text = bench("embed", "runs", "--out", "features.npz").stdout
    bench("export", "runs", "--out", "net.pth")
    for seed in (0, 1):
        assert f"Written to features-seed-{seed}.npz: train_features" in text
        weights = torch.load(f"net-seed-{seed}.pth", weights_only=True)
        own = torch.load(f"runs/seed-{seed}/backbone.pt", weights_only=True)
        assert all(torch.equal(value, own[name]) for name, value in weights.items())
    text = bench("identity", "runs", "--aug", "clae", "--samples", 8).stdout
    for seed in (0, 1):
        assert f"Written to runs/seed-{seed}/identity" in text
        assert Path(f"runs/seed-{seed}/identity/identity.json").exists()
    shutil.rmtree("runs/seed-1")
    bench("embed", "runs", "--out", "only.npz")
    assert Path("only.npz").exists()


# export

NORMALIZE = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


def folder_of_a_run(backbone: str, image_size: int) -> nn.Module:
    """Write the files that `export` reads, for a network with random values in every tensor; return the network."""
    torch.manual_seed(0)
    network, _ = create_backbone(backbone, image_size)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1)
    record = a_record(config={"backbone": backbone}, data={"image_size": image_size, "normalize": NORMALIZE})
    Path("made").mkdir()
    torch.save(network.state_dict(), "made/backbone.pt")
    Path("made/record.json").write_text(json.dumps(record))
    return network.eval()


def loaded(result: Result) -> nn.Module:
    """Run the printed lines and return the model that they make."""
    names: dict[str, Any] = {}
    exec(result.stdout.split("To load it:\n\n")[1], names)
    model: nn.Module = names["model"]
    return model


@torch.no_grad()
def features(network: nn.Module, image_size: int) -> Tensor:
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))
    found: Tensor = network(images)
    return found


@pytest.mark.parametrize(
    ("backbone", "image_size", "form", "line"),
    [
        ("resnet18", 224, "torchvision", "model = torchvision.models.resnet18()"),
        ("resnet18", 224, "timm", "model = timm.create_model('resnet18', num_classes=0)"),
        ("resnet18", 32, "torchvision", "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)"),
        ("resnet18", 32, "timm", "model.maxpool = torch.nn.Identity()"),
        ("timm/resnet18", 65, "torchvision", "model = torchvision.models.resnet18()"),
        ("timm/resnet18", 32, None, "model = torchvision.models.resnet18()"),
        ("timm/resnet10t", 224, None, "model = timm.create_model('resnet10t', num_classes=0)"),
        ("resnet10t", 32, "timm", "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)"),
        ("shufflenet_v2_x0_5", 64, None, "model.fc = torch.nn.Identity()"),
        ("mobilenet_v3_small", 64, "torchvision", "model.classifier[3] = torch.nn.Identity()"),
        ("test_vit", 16, None, "'test_vit', num_classes=0, img_size=16, patch_size=2, dynamic_img_size=True"),
        ("test_convnext", 32, "timm", "model.stem[0] = torch.nn.Conv2d(3, 24, 2, 2)"),
        ("resnet9-w4", 32, None, "model, num_features = create_backbone('resnet9-w4', 32)"),
    ],
)
def test_the_printed_lines_load_the_same_network(backbone: str, image_size: int, form: str | None, line: str) -> None:
    network = folder_of_a_run(backbone, image_size)
    result = bench("export", "made", "--out", "x.pth", *(["--format", form] if form else []))
    assert line in result.stdout
    assert f"{image_size} px, less mean [0.5, 0.4, 0.3], divided by std [0.2, 0.2, 0.1]" in result.stdout
    model = loaded(result)
    assert not model.training
    assert torch.equal(features(model, image_size), features(network, image_size))


def test_only_the_classifier_is_missing() -> None:
    network = folder_of_a_run("resnet18", 224)
    bench("export", "made", "--out", "x.pth")
    model = torchvision.models.resnet18().eval()
    keys = model.load_state_dict(torch.load("x.pth", weights_only=True), strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    model.fc = nn.Identity()
    assert torch.equal(features(model, 224), features(network, 224))


def test_a_name_that_both_libraries_have_is_one_network() -> None:
    names = [n for n in torchvision.models.list_models(module=torchvision.models) if "resne" in n and timm.is_model(n)]
    assert {"resnet18", "resnet34", "resnet50", "resnet101", "wide_resnet50_2"} <= set(names)
    for name in names:
        with torch.device("meta"):
            ours, theirs = create_backbone(name, 224)[0], create_backbone(f"timm/{name}", 224)[0]
        shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (ours, theirs)]
        assert shapes[0] == shapes[1], name


def test_the_backbone_of_a_run(run: Path) -> None:
    model = loaded(bench("export", run, "--out", "x.pth"))
    weights = torch.load(run / "backbone.pt", weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("backbone", "form", "text"),
    [
        ("resnet9-w4", "timm", "timm has no resnet9-w4 with these weights: leave --format out for create_backbone's"),
        ("resnet10t", "torchvision", "torchvision has no resnet10t with these weights: export it with --format timm"),
    ],
)
def test_a_library_that_lacks_the_network(backbone: str, form: str, text: str) -> None:
    folder_of_a_run(backbone, 32)
    assert text in bench("export", "made", "--out", "x.pth", "--format", form, code=2).stderr
    assert not Path("x.pth").exists()


def test_export_refuses(run: Path) -> None:
    assert "nowhere/record.json is not the record" in bench("export", "nowhere", "--out", "x.pth", code=1).stderr
    Path("there").mkdir()
    refused = bench("export", run, "--out", "there", code=2).stderr
    assert "--out is there, a directory, but expected a file such as there/backbone.pth" in refused
