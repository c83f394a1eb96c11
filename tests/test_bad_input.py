"""Errors of the command line: one sentence and an exit code, without loss of existing files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from idaa_lightly import VAE
from idaa_lightly.cli import main

TINY = ("--backbone", "resnet9-w2", "--epochs", 1, "--batch-size", 8, "--accelerator", "cpu")
SMALL_VAE = ("--set", "aug.width=8", "--set", "aug.bottleneck_dim=8")
Folder = Callable[..., Path]


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="idaa-bench")


def run(data: Path, *arguments: object, aug: str = "none") -> Result:
    return bench("run", "--aug", aug, "--data", f"folder:{data}", *TINY, *arguments)


def vae(data: Path, *arguments: object) -> Result:
    return bench("vae", "--data", f"folder:{data}", "--epochs", 1, "--accelerator", "cpu", *SMALL_VAE, *arguments)


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def refused(result: Result, code: int, *words: str) -> str:
    """Check that the command ended with this exit code and one sentence that has these words; return the sentence."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"ended in a traceback: {result.exception!r}") from result.exception
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for word in words:
        assert word in result.stderr
    return result.stderr


def done(result: Result) -> Result:
    assert result.exception is None, result.output
    assert result.exit_code == 0
    assert result.stderr == ""
    return result


def images_of(data: Path, split: str, name: str) -> list[Path]:
    return sorted((data / split / name).iterdir())


@pytest.fixture
def finished(trained: Path) -> Path:
    """Run directory of a finished run with the options of `run`."""
    return Path(shutil.copytree(trained / "seed-0", "finished"))


# Options


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "simclrr"], ["no method 'simclrr'", "installed: ", "Did you mean 'simclr'?"]),
        (
            ["--aug", "iddaa"],
            ["no augmentation 'iddaa'", "affine, clae, color, color-fgsm, hvp, idaa, ", "Did you mean 'idaa'?"],
        ),
        (["--set", "aug.epz=0.1"], ["'idaa' has no option 'epz'", "eps", "Did you mean 'eps'?"]),
        (["--set", "method.temprature=1"], ["'simclr' has no option 'temprature'", "Did you mean 'temperature'?"]),
        (["--set", "eps"], ["--set got 'eps'", "method.KEY=VALUE or aug.KEY=VALUE"]),
        (["--set", "eps=0.1"], ["--set got 'eps=0.1'", "aug.KEY=VALUE"]),
        (["--set", "data.eps=0.1"], ["--set got 'data.eps=0.1'", "aug.KEY=VALUE"]),
        (["--set", "aug.=0.1"], ["--set got 'aug.=0.1'", "aug.KEY=VALUE"]),
        (["--set", "aug.eps=much"], ["eps is 'much'", "expected float"]),
        (["--set", "method.temperature=1e-300"], ["'simclr' does not take these options: Illegal temperature"]),
        (["--set", "aug.width=1.5"], ["width is '1.5'", "expected int, 1 or more"]),
        (["--aug", "random", "--set", "aug.norm=l3"], ["norm is 'l3'", "linf or l2"]),
        (["--aug", "none", "--vae", "vae.pt"], ["'none' has no option 'vae'", "leave --vae out"]),
        (["--data", "digitz"], ["no data set 'digitz'", "cifar10", "folder:PATH", "Did you mean 'digits'?"]),
        (["--data", "folders:x"], ["no data set 'folders:x'", "folder:PATH"]),
        (["--aug", "none", "--backbone", "resnet81"], ["no backbone 'resnet81'", "Did you mean 'resnet18'?"]),
        (["--aug", "none", "--backbone", "resnet9-w0"], ["no backbone 'resnet9-w0'"]),
        (["--epochs", "0"], ["epochs is 0", "1 or more"]),
        (["--epochs", "-3"], ["epochs is -3", "1 or more"]),
        (["--batch-size", "0"], ["batch_size is 0", "2 or more"]),
        (["--image-size", "7"], ["image_size is 7", "8 to 16384"]),
        (["--limit-train", "0"], ["limit_train is 0", "1 or more"]),
        (["--test-fraction", "1.5"], ["test_fraction is 1.5", "between 0 and 1"]),
        (["--test-fraction", "nan"], ["test_fraction is nan"]),
        (["--workers", "-1"], ["workers is -1"]),
        (["--seed", "3", "--seed", "3"], ["--seed is 3, 3", "different"]),
        (["--seed", "1", "--seed", "2", "--seed", "1"], ["--seed is 1, 2, 1", "different"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_options(arguments: list[str], words: list[str]) -> None:
    refused(bench("run", *arguments), 2, *words)
    assert not files()


@pytest.mark.parametrize("value", ["-0.1", "nan", "inf", "-inf"])
@pytest.mark.parametrize("aug", ["idaa", "clae", "random"])
def test_eps(folder: Path, aug: str, value: str) -> None:
    refused(run(folder, "--set", f"aug.eps={value}", aug=aug), 2, f"eps is {value}", "float, 0 or more")
    assert not files()


@pytest.mark.parametrize(
    ("aug", "option", "value"),
    [
        *(("clae", "aug.weight", value) for value in ("-1", "nan", "inf")),
        *(("idaa", "aug.beta", value) for value in ("-1", "nan", "inf")),
        *(("idaa", name, "0") for name in ("aug.bottleneck_dim", "aug.width", "aug.vae_epochs")),
        *(("none", "method.temperature", value) for value in ("0", "-1", "nan")),
        *(("none", "method.lr", value) for value in ("-1", "nan")),
        *(("none", "method.jitter", value) for value in ("-1", "nan")),
        ("none", "method.projection_dim", "0"),
    ],
)
def test_values_out_of_range(folder: Path, aug: str, option: str, value: str) -> None:
    name = option.partition(".")[2]
    refused(run(folder, *SMALL_VAE[: 4 * (aug == "idaa")], "--set", f"{option}={value}", aug=aug), 2, name, value)
    assert not files()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--accelerator", "warp"],
        ["--accelerator", "tpu"],
        ["--devices", "0"],
        ["--devices", "all"],
        ["--strategy", "luck"],
        ["--precision", "7"],
    ],
    ids=" ".join,
)
def test_what_lightning_refuses(folder: Path, arguments: list[str]) -> None:
    sentence = refused(run(folder, *arguments), 2, arguments[1])
    assert "\n" not in sentence.strip()


@pytest.mark.parametrize(
    "arguments",
    [["runn"], ["run", "--epochz", "3"], ["run", "--epochs", "many"], ["knn"], ["knn", "x.npz", "--k", "few"], ["vae"]],
    ids=" ".join,
)
def test_what_click_refuses(arguments: list[str]) -> None:
    result = bench(*arguments)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert "Usage: idaa-bench" in result.stderr
    assert "Error: " in result.stderr
    assert not files()


def test_plugins_show() -> None:
    refused(bench("plugins", "show", "ida"), 2, "no plugin 'ida'", "Did you mean 'idaa'?")


def test_exit_code_of_the_process() -> None:
    command = [sys.executable, "-m", "idaa_lightly.cli", "plugins", "show", "ida"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: no plugin 'ida'")
    assert result.stderr.count("\n") == 1


def test_vae_has_one_seed(folder: Path) -> None:
    refused(vae(folder, "--out", "vae.pt", "--seed", 1, "--seed", 2), 2, "--seed is 1, 2", "one")
    assert not files()


# Configuration files


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("epoch = 3", 2, ["config.toml: 'epoch' is not a field of a run", "Did you mean 'epochs'?"]),
        ("[aug]\neps = 0.1", 2, ["aug", "{'eps': 0.1}"]),
        ("[set.augs]\neps = 0.1", 2, ["augs"]),
        ("[set.aug]\nepz = 0.1", 2, ["no option 'epz'", "Did you mean 'eps'?"]),
        ("[set.aug]\neps = 'much'", 2, ["eps is 'much'", "float"]),
        ("epochs = ", 1, ["config.toml cannot be read as TOML"]),
        ("aug = 'none", 1, ["config.toml cannot be read as TOML"]),
        ("\0", 1, ["config.toml cannot be read as TOML"]),
        ("epochs = 'many'", 2, ["epochs", "many"]),
        ("epochs = true", 2, ["epochs"]),
        ("batch_size = 2.5", 2, ["batch_size", "2.5"]),
        ("test_fraction = 'half'", 2, ["test_fraction", "half"]),
        ("compile = 'yes'", 2, ["compile", "yes"]),
        ("data = 3", 2, ["data", "3"]),
        ("backbone = 18", 2, ["backbone", "18"]),
        ("seed = [1, 2]", 2, ["seed"]),
        ("seed = 1.5", 2, ["seed", "1.5"]),
        ("set = 3", 2, ["set"]),
        ("[set]\nmethod = 3", 2, ["method"]),
    ],
)
def test_config_file(text: str, code: int, words: list[str]) -> None:
    Path("config.toml").write_text(text)
    refused(bench("run", "--config", "config.toml", "--dry-run"), code, *words)
    assert files() == {Path("config.toml"): text.encode()}


def test_config_file_that_is_not_text() -> None:
    Path("config.toml").write_bytes(b"\xff\xfe\x00")
    refused(bench("run", "--config", "config.toml"), 1, "config.toml cannot be read as TOML")


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("missing.toml", "cannot be read as TOML"),
        (".", "is a directory, but expected a TOML file: choose another path"),
    ],
)
def test_config_file_that_is_none(path: str, fault: str) -> None:
    refused(bench("run", "--config", path), 1, f"{path} {fault}")


# Folders of images


@pytest.mark.parametrize("command", [run, vae])
def test_no_folder_and_no_images(command: Callable[..., Result]) -> None:
    refused(command(Path("missing"), "--out", "out"), 1, "missing is not a folder", "train/ and test/")
    Path("empty").mkdir()
    refused(command(Path("empty"), "--out", "out"), 1, "empty holds no images", "empty/CLASS/NAME.png")
    for split in ("train", "test"):
        Path("split", split, "red").mkdir(parents=True)
    Path("split/train/red/notes.txt").write_text("no image")
    refused(command(Path("split"), "--out", "out"), 1, "split/train holds no images")
    assert list(files()) == [Path("split/train/red/notes.txt")]


def test_no_test_images(own_folder: Path) -> None:
    for path in (own_folder / "test").rglob("*.png"):
        path.unlink()
    refused(run(own_folder, "--out", "out"), 1, f"{own_folder}/test holds no images")


def test_a_folder_that_is_a_file() -> None:
    Path("images.zip").write_text("")
    refused(run(Path("images.zip"), "--out", "out"), 1, "images.zip is not a folder")


def test_a_single_image() -> None:
    for name in ("red", "blue"):
        Path("images", name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(f"images/{name}/0.png")
    refused(run(Path("images"), "--out", "out"), 1, "cannot be split, because each class has a single one")
    shutil.rmtree("images/red")
    refused(run(Path("images"), "--out", "out"), 1, "has 1 training images, fewer than a batch of 8")


def test_evaluation_needs_two_classes(own_folder: Path) -> None:
    one = own_folder / "train/red"
    words = (f"folder:{one} has no labels, but evaluation needs two or more classes, a folder for each",)
    refused(run(own_folder, "--eval-data", f"folder:{one}", "--out", "out"), 1, *words)
    assert not Path("out").exists()
    done(vae(one, "--out", "vae.pt"))  # A VAE needs no classes.
    assert Path("vae.pt").exists()


def test_fewer_images_than_a_batch(folder: Path) -> None:
    words = ("fewer than a batch", "lower --batch-size")
    refused(run(folder, "--batch-size", 37, "--out", "out"), 1, "36 training images", "batch of 37", *words)
    refused(run(folder, "--limit-train", 7, "--out", "out"), 1, "7 training images", "batch of 8", *words)
    assert not files()


def test_too_few_images_to_evaluate(folder: Path) -> None:
    """The error comes before anything is trained or written."""
    refused(run(folder, "--limit-train", 12, "--out", "out"), 1, "12 training", "20 or more")
    assert not Path("out").exists()


@pytest.mark.parametrize(("split", "other"), [("test", "train"), ("train", "test")])
def test_different_classes(own_folder: Path, split: str, other: str) -> None:
    (own_folder / split / "red").rename(own_folder / split / "rot")
    before = files()
    words = (str(own_folder / split), str(own_folder / other), "different classes", "'red'")
    refused(run(own_folder, "--out", "out"), 1, *words)
    assert files() == before


def test_a_class_that_is_missing(own_folder: Path) -> None:
    shutil.rmtree(own_folder / "test/green")
    refused(run(own_folder, "--out", "out"), 1, "different classes", "'green'")


# Damaged images


def not_an_image(path: Path) -> Path:
    path.write_text("no image at all")
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def cut_to(part: float, suffix: str = ".png") -> Callable[[Path], Path]:
    def damage(path: Path) -> Path:
        with Image.open(path) as image:
            noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            target = path.with_suffix(suffix)
            image = Image.fromarray(noise)
        path.unlink()
        image.save(target)
        target.write_bytes(target.read_bytes()[: int(part * target.stat().st_size)])
        return target

    return damage


def broken_checksum(path: Path) -> Path:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    return path


def bomb(path: Path) -> Path:
    """Write a small file that would fill the memory when decoded."""
    Image.new("1", (16_000, 16_000)).save(path)
    return path


DAMAGES: dict[str, Callable[[Path], Path]] = {
    "not an image": not_an_image,
    "empty": empty,
    "header only": cut_to(0.002),
    "truncated": cut_to(0.5),
    "truncated at its end": cut_to(0.98),
    "truncated jpg": cut_to(0.5, ".jpg"),
    "truncated tif": cut_to(0.5, ".tif"),
    "truncated webp": cut_to(0.5, ".webp"),
    "truncated bmp": cut_to(0.5, ".bmp"),
    "broken checksum": broken_checksum,
    "bomb": bomb,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize(("split", "name"), [("train", "blue"), ("test", "red")])
def test_damaged_image(own_folder: Path, damage: Callable[[Path], Path], split: str, name: str) -> None:
    path = damage(images_of(own_folder, split, name)[0])
    before = files()
    for options in ((), ("--image-size", 16)):  # Without a size, it is inferred from training images.
        words = (f"cannot read the image {path} ", "repair it or remove it")
        refused(run(own_folder, *options, "--out", "out"), 1, *words)
        refused(vae(own_folder, *options, "--out", "vae.pt"), 1, *words)
    assert files() == before


@pytest.mark.parametrize("damage", [not_an_image, cut_to(0.5)], ids=["not an image", "truncated"])
def test_damaged_image_that_stays_on_disk(own_folder: Path, damage: Callable[[Path], Path]) -> None:
    path = damage(images_of(own_folder, "train", "red")[-1])
    refused(run(own_folder, "--image-size", 128, "--out", "out"), 1, f"cannot read the image {path} ", "repair it")
    assert not Path("out/record.json").exists()


def test_damaged_image_in_a_worker(own_folder: Path) -> None:
    path = not_an_image(images_of(own_folder, "train", "red")[-1])
    result = run(own_folder, "--image-size", 128, "--workers", 2, "--out", "out", *SMALL_VAE, aug="idaa")
    refused(result, 1, f"Error: cannot read the image {path} ", "repair it")


# Images that are converted


def all_kinds(data: Path) -> None:
    """Replace images by greyscale, bilevel, RGBA, palette, 16-bit and CMYK images, and by images of other sizes."""
    modes = ["L", "L", "1", "1", "RGBA", "RGBA", "RGBA", "P", "P", "LA", "LA", "RGB"]
    for path, mode in zip(images_of(data, "train", "red"), modes, strict=True):
        with Image.open(path) as image:
            image.convert(mode).save(path)
    for path in images_of(data, "train", "blue")[:2]:
        Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(path)
    for path in images_of(data, "test", "green")[:2]:
        Image.new("CMYK", (16, 16), (200, 0, 200, 20)).save(path.with_suffix(".jpg"))
        path.unlink()
    for path, size in zip(images_of(data, "test", "red")[:2], [(20, 16), (9, 40)], strict=True):
        Image.new("RGB", size, (220, 40, 40)).save(path)


@pytest.mark.parametrize("command", [run, vae])
def test_other_images_are_converted_with_a_note(own_folder: Path, command: Callable[..., Result]) -> None:
    all_kinds(own_folder)
    before = files()
    result = done(command(own_folder, "--image-size", 16, "--out", "out.pt"))
    notes = [line for line in result.stdout.splitlines() if line.startswith("Note: ")]
    modes = {"1": 2, "CMYK": 2, "I;16": 2, "L": 2, "LA": 2, "P": 2, "RGBA": 3}
    expected = [f"Note: {count} images converted from {mode} to RGB." for mode, count in modes.items()]
    assert sorted(notes) == sorted([*expected, "Note: 2 images resized and cropped to 16×16."])
    assert before.items() <= files().items()
    if command is run:
        assert json.loads(Path("out.pt/record.json").read_text())["data"]["notes"] == [note[6:-1] for note in notes]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "other sizes"])
def test_a_folder_of_such_images_only(own_folder: Path, mode: str) -> None:
    for index, path in enumerate(sorted(own_folder.rglob("*.png"))):
        with Image.open(path) as image:
            pixels = np.array(image.convert("L"))
            if mode == "I;16":
                Image.fromarray(pixels.astype(np.uint16) * 257).save(path)
            elif mode == "other sizes":
                image.resize((17 + index, 40 - index % 16)).save(path)
            else:
                image.convert(mode).save(path)
    result = done(run(own_folder, "--image-size", 16))
    what = "resized and cropped to 16×16" if mode == "other sizes" else f"converted from {mode} to RGB"
    assert [line for line in result.stdout.splitlines() if line.startswith("Note: ")] == [f"Note: 48 images {what}."]


# VAE files


def tensors(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


def text(path: Path) -> None:
    path.write_text("no VAE at all")


SIZES = {"image_size": 16, "channels": 3, "bottleneck_dim": 8, "width": 8}
VAES: dict[str, tuple[Callable[[Path], None], int, list[str]]] = {
    "another image size": (VAE(32, 3, 8, 8).save, 2, ["given.pt has image_size 32", "the data has 16"]),
    "another channel count": (VAE(16, 1, 8, 8).save, 2, ["given.pt has channels 1", "the data has 3"]),
    "missing": (lambda path: None, 1, ["given.pt does not exist", "`idaa-bench vae`"]),
    "a folder": (Path.mkdir, 1, ["given.pt is a directory, but expected a VAE", "`idaa-bench vae`"]),
    "text": (text, 1, ["given.pt is not a VAE", "`idaa-bench vae`"]),
    "empty": (Path.touch, 1, ["given.pt is not a VAE", "`idaa-bench vae`"]),
    "a tensor": (tensors(torch.ones(2)), 1, ["given.pt is not a VAE", "it holds a Tensor"]),
    "other tensors": (tensors({"weight": torch.ones(2)}), 1, ["given.pt holds tensors, but no VAE"]),
    "no weights": (tensors({"idaa_lightly.VAE": SIZES, "state": {}}), 1, ["given.pt holds tensors, but no VAE"]),
    "other weights": (tensors({"idaa_lightly.VAE": SIZES, "state": 3}), 1, ["given.pt holds tensors, but no VAE"]),
    "other sizes": (tensors({"idaa_lightly.VAE": {"width": "a"}, "state": {}}), 1, ["given.pt holds tensors, but no"]),
    "no sizes": (tensors({"idaa_lightly.VAE": 3, "state": {}}), 1, ["given.pt holds tensors, but no VAE"]),
    "a module": (tensors({"module": VAE(16, 3, 8, 8)}), 1, ["given.pt is not a VAE"]),
}


@pytest.mark.parametrize("kind", VAES)
def test_vae_file(folder: Path, kind: str) -> None:
    make, code, words = VAES[kind]
    make(Path("given.pt"))
    before = files()
    refused(run(folder, "--vae", "given.pt", "--out", "out", aug="idaa"), code, *words)
    assert before.items() <= files().items()
    assert not Path("out/record.json").exists()


def test_truncated_vae_file(folder: Path) -> None:
    VAE(16, 3, 8, 8).save("given.pt")
    content = Path("given.pt").read_bytes()
    Path("given.pt").write_bytes(content[: len(content) // 2])
    refused(run(folder, "--vae", "given.pt", aug="idaa"), 1, "given.pt is not a VAE")


@pytest.mark.parametrize(
    ("aug", "wrong", "right"),
    [
        ("idaa", ["--vae", "large.pt"], ["--vae", "small.pt"]),
        ("idaa", ["--vae", "missing.pt"], ["--vae", "small.pt"]),
        ("none", ["--limit-train", "12"], []),
        ("none", ["--lr", "nan"], ["--lr", "0.001"]),
        ("none", ["--precision", "7"], []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_refused_command_leaves_the_folder_free(folder: Path, aug: str, wrong: list[str], right: list[str]) -> None:
    """The corrected command can use the same `--out`, because nothing was trained."""
    VAE(32, 3, 8, 8).save("large.pt")
    VAE(16, 3, 8, 8).save("small.pt")
    assert run(folder, *wrong, "--out", "out", aug=aug).exit_code in (1, 2)
    done(run(folder, *right, "--out", "out", aug=aug))


# Files that `idaa-bench vae` writes


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_vae_does_not_overwrite(folder: Path, options: list[str]) -> None:
    Path("old.pt").write_text("precious")
    result = vae(folder, "--out", "old.pt", *options)
    if options:
        done(result)
        assert VAE.load("old.pt").config["image_size"] == 16
    else:
        refused(result, 2, "old.pt exists", "--force")
        assert files() == {Path("old.pt"): b"precious"}


@pytest.mark.parametrize("out", ["vae", "vae.pt", "new/folder/vae.bin"])
def test_vae_file_of_any_name(folder: Path, out: str) -> None:
    done(vae(folder, "--out", out))
    assert VAE.load(out).config["image_size"] == 16


@pytest.mark.parametrize("out", ["folder", "file.txt/vae.pt"])
def test_vae_file_that_cannot_be_written(folder: Path, out: str) -> None:
    """The error comes before an hour of training, not after it."""
    Path("folder").mkdir()
    Path("file.txt").write_text("precious")
    result = vae(folder, "--out", out, "--force")
    refused(result, result.exit_code or 1, out)
    assert "VAE on" not in result.stdout
    assert files() == {Path("file.txt"): b"precious"}


def test_vae_of_an_odd_size(folder: Path) -> None:
    refused(vae(folder, "--image-size", 15, "--out", "vae.pt"), 2, "15 px", "16, 28, 32")
    assert not Path("vae.pt").exists()


# knn


def arrays(**changed: Any) -> Callable[[Path], None]:
    rng = np.random.default_rng(0)
    given = {
        "train_features": rng.random((9, 4)), "train_labels": np.arange(9) % 3,
        "test_features": rng.random((5, 4)), "test_labels": np.arange(5) % 3,
    } | changed  # fmt: skip
    return lambda path: np.savez(path, **{name: value for name, value in given.items() if value is not None})


def array(path: Path) -> None:
    np.save("array.npy", np.ones(3))
    Path("array.npy").rename(path)


def nothing(path: Path) -> None:
    """Write no file."""


TARGETS: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "text": ("x.txt", text, ["x.txt is not a checkpoint"]),
    "text as ckpt": ("x.ckpt", text, ["x.ckpt is not a checkpoint", "`idaa-bench run`"]),
    "other tensors": ("x.ckpt", tensors({"a": torch.ones(1)}), ["x.ckpt holds tensors, but no checkpoint"]),
    "a tensor": ("x.ckpt", tensors(torch.ones(1)), ["x.ckpt is not a checkpoint", "it holds a Tensor"]),
    "no weights": ("x.ckpt", tensors({"state_dict": {}}), ["x.ckpt holds tensors, but no checkpoint"]),
    "other weights": ("x.ckpt", tensors({"state_dict": 3}), ["x.ckpt", "no checkpoint"]),
    "no config": ("x.ckpt", tensors({"state_dict": {"method.backbone.w": torch.ones(1)}}), ["no config.toml"]),
    "empty folder": ("folder", Path.mkdir, ["folder holds no finished run of idaa-bench run: expected one"]),
    "missing": ("missing", nothing, ["missing does not exist", "run directory", ".npz"]),
    "missing npz": ("missing.npz", nothing, ["missing.npz", "No such file"]),
    "text as npz": ("x.npz", text, ["x.npz is not a file of features", "train_features"]),
    "empty npz": ("x.npz", Path.touch, ["x.npz is not a file of features", "train_features"]),
    "one array": ("x.npz", array, ["x.npz", "train_features"]),
    "no arrays": ("x.npz", arrays(train_features=None), ["x.npz is not a file of features", "train_features"]),
    "no labels": ("x.npz", arrays(test_labels=None), ["x.npz is not a file of features", "test_labels"]),
    "objects": ("x.npz", arrays(train_features=np.array([{}], dtype=object)), ["x.npz is not a file of features"]),
    "other width": ("x.npz", arrays(test_features=np.ones((5, 3))), ["(9, 4)", "(5, 3)", "(M, D)"]),
    "flat": ("x.npz", arrays(test_features=np.ones(5)), ["x.npz: test_features has shape (5,)", "(N, D)"]),
    "fewer train labels": ("x.npz", arrays(train_labels=np.arange(3)), ["(3,)", "expected (9,)"]),
    "fewer test labels": ("x.npz", arrays(test_labels=np.arange(3)), ["test_labels", "(3,)"]),
    "negative labels": ("x.npz", arrays(train_labels=np.arange(9) - 1), ["minimum -1", "from 0"]),
    "fractional labels": ("x.npz", arrays(train_labels=np.arange(9) / 2), ["train_labels"]),
    "words as labels": ("x.npz", arrays(train_labels=np.array(list("abcabcabc"))), ["train_labels"]),
    "empty bank": ("x.npz", arrays(train_features=np.ones((0, 4)), train_labels=np.arange(0)), ["(0, 4)"]),
    "no queries": ("x.npz", arrays(test_features=np.ones((0, 4)), test_labels=np.arange(0)), ["(0, 4)"]),
    "NaN": ("x.npz", arrays(train_features=np.full((9, 4), np.nan)), ["9 of 9 rows of the bank", "NaN"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
def test_knn(kind: str) -> None:
    name, make, words = TARGETS[kind]
    make(Path(name))
    before = files()
    refused(bench("knn", name), 1, *words)
    assert files() == before


def test_an_empty_name_is_the_working_directory() -> None:
    command = ("knn", "", "--backbone", "resnet9-w2", "--data", "digits")
    refused(bench(*command), 1, "backbone.pt does not exist; expected a state dict, or a checkpoint")


def test_knn_takes_labels_of_any_integer_type() -> None:
    arrays(train_labels=(np.arange(9) % 3).astype(np.uint16), test_labels=(np.arange(5) % 3).astype(np.uint8))(
        Path("x.npz")
    )
    assert "top-1" in done(bench("knn", "x.npz")).stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "0"], ["k is 0", "1 or more"]),
        (["--k", "-2"], ["k is -2", "1 or more"]),
        (["--temperature", "0"], ["temperature 0.0", "above 0"]),
        (["--temperature", "nan"], ["temperature nan", "above 0"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_knn_options(options: list[str], words: list[str]) -> None:
    arrays()(Path("x.npz"))
    refused(bench("knn", "x.npz", *options), 2, *words)


def test_knn_of_a_run(finished: Path) -> None:
    for target in (finished, finished / "checkpoints/last.ckpt"):
        assert "top-1" in done(bench("knn", target)).stdout
    refused(bench("knn", finished / "config.toml"), 1, "config.toml is not a checkpoint")
    refused(bench("knn", finished / "backbone.pt"), 1, "backbone.pt holds tensors, but no checkpoint")
    config = (finished / "config.toml").read_text()
    (finished / "config.toml").write_text(config.replace("resnet9-w2", "resnet9-w4"))
    refused(bench("knn", finished), 1, str(finished), "does not fit the backbone resnet9-w4")
    (finished / "config.toml").unlink()
    refused(bench("knn", finished), 1, "finished has no config.toml")
    (finished / "backbone.pt").unlink()
    refused(bench("knn", finished), 1, "finished holds no backbone.pt")


# Divergence


def test_nan_in_the_loss(folder: Path) -> None:
    sentence = refused(run(folder, "--lr", 1e30, "--out", "out"), 1, "NaN or infinite", "lower the learning rate")
    assert re.search(r"at step [1-4]\b", sentence)
    assert not list(Path("out").rglob("*.ckpt"))
    assert not Path("out/record.json").exists()


@pytest.mark.slow
def test_nan_after_a_checkpoint(folder: Path) -> None:
    for rate in ("3e8", "2e8", "4e8", "5e7"):  # The weights overflow after the first epoch.
        result = run(folder, "--lr", rate, "--epochs", 10, "--out", rate)
        checkpoint = Path(rate) / "checkpoints/last.ckpt"
        if result.exit_code and checkpoint.exists():
            break
    else:
        pytest.fail("no learning rate gave a checkpoint and then NaN")
    sentence = refused(result, 1, "NaN or infinite", "lower the learning rate", "checkpoints/last.ckpt")
    step = re.search(r"at step (\d+)\b", sentence)
    assert step is not None
    assert 4 <= torch.load(checkpoint, weights_only=True)["global_step"] < int(step[1])
    assert not (Path(rate) / "record.json").exists()
    before = files()
    done(bench("knn", checkpoint))
    refused(run(folder, "--lr", rate, "--epochs", 10, "--out", rate), 1, "interrupted", "--resume")
    assert files() == before


@pytest.mark.parametrize("rate", ["5e7", "3e8"])
def test_no_broken_network_is_written(folder: Path, rate: str) -> None:
    """The last step of an epoch can break the network, and no loss shows it."""
    run(folder, "--lr", rate, "--epochs", 10, "--out", "out")
    states = [torch.load(path, weights_only=True)["state_dict"] for path in Path("out").rglob("*.ckpt")]
    states += [torch.load(path, weights_only=True) for path in Path("out").rglob("*.pt")]
    assert [name for state in states for name, value in state.items() if not value.isfinite().all()] == []


# Output folders


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["", "resume"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", "1"], ["seed 0 there, 1 here"]),
        (["--epochs", "2", "--seed", "1"], ["epochs 1 there, 2 here", "seed 0 there, 1 here"]),
        (["--aug", "clae"], ["aug none there, clae here"]),
        (["--lr", "0.001"], ["lr", "0.0003", "0.001"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_folder_of_another_run(
    folder: Path, finished: Path, options: list[str], words: list[str], resume: list[str]
) -> None:
    before = files()
    refused(run(folder, "--out", finished, *options, *resume), 1, "finished holds another run", *words)
    assert files() == before


def test_another_run_is_told_by_what_differs(folder: Path, finished: Path) -> None:
    sentence = refused(run(folder, "--lr", 1e-3, "--out", finished), 1, "finished holds another run")
    assert "temperature" not in sentence, "names an option that is the same"


def test_folder_of_this_run(folder: Path, finished: Path) -> None:
    before = files()
    refused(run(folder, "--out", finished), 1, "finished already holds this run", "is finished", "record.json")
    assert files() == before
    assert "is finished already" in done(run(folder, "--out", finished, "--resume")).stdout
    assert files() == before


def test_folder_of_this_run_interrupted(folder: Path, finished: Path) -> None:
    record = json.loads((finished / "record.json").read_text())
    (finished / "record.json").unlink()
    before = files()
    refused(run(folder, "--out", finished), 1, "finished already holds this run", "was interrupted", "--resume")
    assert files() == before
    assert "Resuming after epoch" in done(run(folder, "--out", finished, "--resume")).stdout
    assert json.loads((finished / "record.json").read_text())["history"] == record["history"]


def test_several_seeds_and_one_folder_in_the_way(folder: Path, finished: Path) -> None:
    finished.rename("seed-0")
    Path("out").mkdir()
    Path("seed-0").rename("out/seed-0")
    before = files()
    refused(run(folder, "--seed", 0, "--seed", 1, "--out", "out"), 1, "out/seed-0 already holds this run")
    assert files() == before


def test_foreign_files(folder: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("precious")
    for resume in ([], ["--resume"]):
        refused(run(folder, "--out", "out", *resume), 1, "out holds files that are not a run", "another --out")
    assert files() == {Path("out/thesis.tex"): b"precious"}


@pytest.mark.parametrize("out", ["thesis.tex", "thesis.tex/run"])
def test_a_file_in_place_of_the_folder(folder: Path, out: str) -> None:
    Path("thesis.tex").write_text("precious")
    refused(run(folder, "--out", out), 1, "thesis.tex")
    assert files() == {Path("thesis.tex"): b"precious"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("record.json", b"{", ["record.json is not the record"]),
        ("record.json", b"[]", ["record.json"]),
        ("record.json", b'{"schema": 99}', ["record.json has schema 99", "expected 3 or less"]),
        ("config.toml", b"x = [", ["config.toml cannot be read as TOML"]),
        ("config.toml", b"x = 3", ["config.toml: 'x' is not a field of a run"]),
        ("checkpoints/last.ckpt", b"PK", ["last.ckpt is not a checkpoint of this run"]),
        ("checkpoints/last.ckpt", None, ["last.ckpt"]),
    ],
)
def test_damaged_run_folder(folder: Path, finished: Path, name: str, content: bytes | None, words: list[str]) -> None:
    if name.startswith("checkpoints"):
        (finished / "record.json").unlink()
    if content is None:
        torch.save({"global_step": torch.tensor(0)}, finished / name)
    else:
        (finished / name).write_bytes(content)
    before = files()
    refused(run(folder, "--out", finished, "--resume"), 2 if content == b"x = 3" else 1, *words)
    assert files() == before


def test_brackets_in_paths(make_folder: Folder) -> None:
    """Brackets in paths are not read as markup."""
    data = make_folder(Path("images[red]x"))
    result = done(run(data, "--out", "run[/red]y"))
    assert "Run directory: run[/red]y" in result.stdout
    assert "images[red]x" in result.stdout


def test_a_short_run_is_silent(folder: Path) -> None:
    """A run of one step gives no library warnings and writes all files."""
    done(run(folder, "--batch-size", 36, "--out", "out"))
    names = {"config.toml", "record.json", "metrics.csv", "curves.png", "views.png", "backbone.pt", "last.ckpt"}
    assert {path.name for path in files() if path.parts[0] == "out"} == names
