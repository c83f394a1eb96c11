"""What the cases start from: images, finished and interrupted runs, results of evaluations, a VAE and its cache."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from attacks.arena import Case, Command

RUN = [
    "run", "--data", "folder:images", "--backbone", "resnet9-w2", "--batch-size", "12", "--accelerator", "cpu",
    "--epochs", "4",
]  # fmt: skip
NONE, CLAE = [*RUN, "--aug", "none"], [*RUN, "--aug", "clae"]
IDAA = [
    *RUN, "--aug", "idaa", "--set", "aug.width=4", "--set", "aug.bottleneck_dim=4", "--set", "aug.vae_epochs=1",
]  # fmt: skip
SEMI = [
    "semi", "--data", "folder:images", "--labels", "6", "--backbone", "wrn-10-1", "--batch-size", "3",
    "--accelerator", "cpu", "--epochs", "2", "--aug", "clae", "--set", "method.ratio=2", "--set", "method.threshold=0",
]  # fmt: skip
DETECT = [
    "detect", "--data", "coco:objects", "--backbone", "resnet18", "--init", "scratch", "--image-size", "64",
    "--batch-size", "1", "--accelerator", "cpu", "--steps", "4", "--set", "method.width=8", "--set", "method.rois=8",
]  # fmt: skip
EVALUATIONS = {
    "knn": ["knn", "finished"],
    "linear": ["linear", "finished"],
    "finetune": ["finetune", "finished", "--labels", "50%", "--epochs", "2"],
    "identity": ["identity", "finished", "--aug", "clae", "--samples", "24"],
}
RESULTS = {name: f"{name}.json" if name != "identity" else "identity/identity.json" for name in EVALUATIONS}
RECIPES = """
[recipes.small]
method = "simclr"
aug = "none"
data = "folder:images"
backbone = "resnet9-w2"
batch_size = 12
epochs = 4
accelerator = "cpu"
"""
TABLES = '[tables.small]\ntitle = "Small"\nseeds = 2\nrecipes = ["small"]\n'


def write_images(root: Path, size: int = 16) -> None:
    """Write 36 training and 12 test images of scikit-learn's digits 0, 1 and 2 as PNG files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(3):
        for index, pixels in enumerate(digits.images[digits.target == label][:16]):
            folder = root / ("train" if index < 12 else "test") / f"digit {label}"
            folder.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).convert("RGB")
            image.resize((size, size)).save(folder / f"{index:02}.png")


def write_objects(root: Path, images: Path) -> None:
    """Write two training and two test images in COCO's format: digits, each with a square over its middle."""
    square = [4, 4, 12, 4, 12, 12, 4, 12]
    for split, name in (("train", "train2017"), ("test", "val2017")):
        shutil.copytree(images / split / "digit 0", root / name)
        files = sorted(path.name for path in (root / name).iterdir())[:2]
        pictures = [{"id": id, "file_name": file, "width": 16, "height": 16} for id, file in enumerate(files)]
        objects = [
            {"id": id, "image_id": id, "category_id": 1, "bbox": [4, 4, 8, 8], "segmentation": [square], "iscrowd": 0}
            for id in range(2)
        ]
        content = {"images": pictures, "annotations": objects, "categories": [{"id": 1, "name": "square"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{name}.json").write_text(json.dumps(content))


def make_fixture(case: Case) -> None:
    """Fill the fixture's directory. A fault here ends the whole attack."""
    write_images(Path("images"))
    write_objects(Path("objects"), Path("images"))
    start = time.monotonic()
    runs = {"whole": NONE, "other": [*NONE, "--seed", "1"], "clae": CLAE, "idaa": IDAA, "semi": SEMI, "detect": DETECT}
    for name, options in runs.items():
        case.expect(case.bench(*options, "--out", name).exit_code == 0, f"cannot make the fixture {name}")
        if name == "whole":
            Path("seconds").write_text(str(time.monotonic() - start))
    shutil.copytree("whole", "finished")
    for arguments in EVALUATIONS.values():
        case.bench(*arguments)
    vae = ["vae", *RUN[1:3], "--epochs", "1", *IDAA[-6:-2], "--accelerator", "cpu", "--out", "vae.pt"]
    case.expect(case.bench(*vae).exit_code == 0, "cannot make the fixture vae.pt")
    shutil.copyfile("finished/features.npz", "features.npz")
    run, checkpoints = Command([*NONE, "--out", "stopped"], Path("log")), set[int]()
    while run.process.is_alive() and len(checkpoints) < 2:
        with suppress(OSError):
            checkpoints.add(os.stat("stopped/checkpoints/last.ckpt").st_mtime_ns)
    run.kill()
    case.expect(not Path("stopped/record.json").exists(), "the run to interrupt was not interrupted")
    os.rename(case.place / "cache", "cache")
    case.fixture.mkdir(exist_ok=True)
    for path in Path().iterdir():
        shutil.move(path, case.fixture / path.name)


def difference(whole: Path, run: Path, *, metrics: bool = True) -> str | None:
    """Return how a run differs from an undisturbed one, or None. Weights and figures must be equal to the bit.

    Args:
        whole: Directory of the undisturbed run.
        run: Directory of the other run.
        metrics: Compare metrics.csv too.
    """
    import torch

    weights = "backbone.pt" if (whole / "backbone.pt").exists() else "model.pt"
    first, second = (torch.load(folder / weights, weights_only=True) for folder in (whole, run))
    if first.keys() != second.keys() or not all(torch.equal(first[name], second[name]) for name in first):
        return "other weights"
    if figures(whole / "record.json") != figures(run / "record.json"):
        return "other figures in record.json"
    if metrics and (whole / "metrics.csv").read_text() != (run / "metrics.csv").read_text():
        return "another metrics.csv"
    return None


def figures(path: Path) -> object:
    """Return the figures of a record, of results or of a study, without times and descriptions of the machine."""
    content = json.loads(path.read_text())
    if "history" in content:
        return content["history"], content["last"], content["initial"]
    if "results" in content:
        timed = {"seconds", "versions", "device", "git_commit", "source"}
        return [
            (name, {k: v for k, v in entry.items() if k not in timed}) for name, entry in content["results"].items()
        ]
    return content["augmentations"]
