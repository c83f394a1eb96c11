"""Data from files to batches: reading, splits, conversion, normalisation, views, and reproducibility."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import Timeout
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.transforms.simclr_transform import SimCLRTransform
from PIL import Image
from scipy.io import savemat
from test_image_files import RAMP, grey
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import functional as TF

from idaa_lightly.data import IMAGENET, DataSet, Images, load_data
from idaa_lightly.errors import DataError
from idaa_lightly.files import locked
from idaa_lightly.loading import ViewDataset, describe, evaluation_batches, view_loader
from idaa_lightly.splits import balanced, sample, validation_split
from idaa_lightly.torchvision_data import SETS

Folder = Callable[..., Path]


def read(path: Path, **options: Any) -> DataSet:
    return load_data(f"folder:{path}", **options)


def numbered(count: int) -> Images:
    """Return images of 8 px, of which image i has grey level i."""
    levels = torch.arange(count, dtype=torch.uint8)
    return Images(torch.arange(count) % 3, levels.view(-1, 1, 1, 1).expand(-1, 8, 8, 3).contiguous())


def level(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0))[0])


# Reading


def test_digits() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.image_size) == (1438, 359, 32)
    assert data.classes == tuple("0123456789")
    assert data.train.pixels is not None
    assert data.train.pixels.shape == (1438, 32, 32, 3)
    assert (int(data.train.pixels.min()), int(data.train.pixels.max())) == (0, 255)
    assert data.train.labels.bincount().min() > 100
    assert data.test.labels.bincount().min() > 30
    assert data.notes == ()


def test_folder_with_train_and_test(folder: Path) -> None:
    data = read(folder)
    assert (len(data.train), len(data.test), data.image_size) == (36, 12, 16)
    assert data.classes == ("blue", "green", "red")
    assert data.train.labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert data.notes == ()
    with Image.open(folder / "train/green/03.png") as image:
        assert np.array_equal(data.train[15], np.array(image))
    with Image.open(folder / "test/red/00.png") as image:
        assert np.array_equal(data.test[8], np.array(image))


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ({"train": 3, "val": 2}, (9, 6)),
        ({"train": 3, "test": 1, "val": 2}, (9, 3)),
        ({"train": 5}, (12, 3)),
        ({"Train": 3, "Test": 1}, (9, 3)),
        ({"training": 3, "validation": 2}, (9, 6)),
        ({"train": 3, "valid": 2}, (9, 6)),
    ],
)
def test_splits_of_a_folder(make_folder: Folder, counts: dict[str, int], sizes: tuple[int, int]) -> None:
    data = read(make_folder(Path("images"), counts=counts))
    assert (len(data.train), len(data.test)) == sizes
    assert data.classes == ("blue", "green", "red")


def test_test_and_val_without_train_are_no_classes(make_folder: Folder) -> None:
    root = make_folder(Path("images"), counts={"test": 2, "val": 2})
    with pytest.raises(DataError, match="train"):
        read(root)


def test_a_class_of_the_name_of_a_split(make_folder: Folder) -> None:
    root = make_folder(Path("images"), counts={"train": 3, "cars": 2})
    (root / ".cache").mkdir()
    with pytest.raises(DataError) as error:
        read(root)
    assert str(error.value) == (
        "images has train/ and images in cars/, but expected train/ with test/ or val/, or a folder per class: move "
        "cars/ away, or rename the class train"
    )
    shutil.rmtree(root / "cars")
    Image.new("RGB", (8, 8)).save(root / "notes.png")
    (root / "annotations").mkdir()
    assert len(read(root).train) > 0


def test_test_images_without_classes(make_folder: Folder) -> None:
    root = make_folder(Path("images"), counts={"train": 3})
    (root / "test").mkdir()
    Image.new("RGB", (8, 8)).save(root / "test/1.png")
    text = (
        "images/test has images without a class folder, but expected the classes of images/train: move it away, so that"
    )
    with pytest.raises(DataError, match=f"^{text} the training images are split$"):
        read(root)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.25, 3), (0.5, 6), (0.75, 9)])
def test_one_folder_is_split_by_a_fraction(folder: Path, fraction: float, held_out: int) -> None:
    first, again = (read(folder / "train", image_size=128, test_fraction=fraction) for _ in range(2))
    assert first.test.labels.bincount().tolist() == 3 * [held_out]
    assert first.train.labels.bincount().tolist() == 3 * [12 - held_out]
    train, test = set(first.train.paths), set(first.test.paths)
    assert not train & test
    assert train | test == set((folder / "train").rglob("*.png"))
    assert [list(again.train.paths), list(again.test.paths)] == [list(first.train.paths), list(first.test.paths)]
    for images in (first.train, first.test):
        assert [path.parent.name for path in images.paths] == [first.classes[label] for label in images.labels]


def test_each_class_is_split_in_the_same_proportion(folder: Path) -> None:
    source = folder / "train/red/00.png"
    for name, count in {"many": 40, "few": 5, "rare": 5}.items():
        (Path("images") / name).mkdir(parents=True)
        for index in range(count):
            shutil.copy(source, Path("images") / name / f"{index:02}.png")
    data = read(Path("images"), image_size=128)
    assert data.classes == ("few", "many", "rare")
    assert data.test.labels.bincount(minlength=3).tolist() == [1, 8, 1]
    assert data.train.labels.bincount(minlength=3).tolist() == [4, 32, 4]


def test_no_class_is_used_up_by_the_test_images(folder: Path) -> None:
    for name, count in {"many": 60, "rare": 4}.items():
        (Path("images") / name).mkdir(parents=True)
        for index in range(count):
            shutil.copy(folder / "train/red/00.png", Path("images") / name / f"{index:02}.png")
    data = read(Path("images"), image_size=128)
    assert data.train.labels.bincount(minlength=2).min() > 0
    assert data.test.labels.bincount(minlength=2).min() > 0


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("images", "images at its top"),
        ("images/train", "images at its top"),
        ("images/red", "images of only one class, red"),
        ("images/train/red", "images of only one class, red"),
    ],
)
def test_a_folder_without_classes_is_unlabelled(folder: Path, place: str, found: str) -> None:
    Path(place).mkdir(parents=True)
    for index, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        shutil.copy(path, Path(place) / f"{index}.png")
    data = read(Path("images"))
    assert not data.labelled
    assert (data.classes, len(data.train), len(data.test)) == ((), 36, 0)
    root = Path("images/train" if "train" in place else "images")
    assert data.notes == (f"{root} has {found}, so that all its images are treated as unlabelled",)


def test_images_at_the_top_make_all_images_unlabelled(own_folder: Path) -> None:
    shutil.copy(own_folder / "train/red/00.png", own_folder / "train/readme.png")
    data = read(own_folder)
    assert (data.classes, len(data.train), len(data.test)) == ((), 37, 0)
    assert data.notes == (
        f"{own_folder}/train has images at its top, so that all its images are treated as unlabelled",
    )


def test_images_without_labels(own_folder: Path) -> None:
    shutil.copy(own_folder / "train/red/00.png", own_folder / "top.png")
    data = load_data(f"images:{own_folder}")
    assert not data.labelled
    assert (data.classes, len(data.train), len(data.test), data.image_size) == ((), 49, 0, 16)
    assert (data.facts()["classes"], data.facts()["test"]) == (0, 0)
    assert load_data(f"images:{own_folder}", limit_train=7).train.labels.tolist() == [0] * 7


def test_a_list_of_images(folder: Path) -> None:
    names = ["../red/11.png", "", "blue/03.png  ", str(folder / "test/green/00.png")]
    shutil.copytree(folder / "train", "images")
    Path("images/lists").mkdir()
    Path("images/lists/some.txt").write_text("\r\n".join(names).replace("blue", "../blue"))
    train = load_data("images:images/lists/some.txt").train
    for index, path in enumerate(("train/red/11.png", "train/blue/03.png", "test/green/00.png")):
        with Image.open(folder / path) as image:
            assert np.array_equal(train[index], np.array(image))


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("missing", "missing is missing, but expected a folder of images, or a .txt file with one path per line"),
        ("some.csv", "some.csv is a file, but expected a folder of images, or a .txt file"),
        ("empty", "empty holds no images; expected files that end in .jpg, "),
        ("empty.txt", "empty.txt holds no images"),
        ("wrong.txt", "cannot read the image nowhere.png ("),
    ],
)
def test_places_without_images(place: str, words: str) -> None:
    Path("empty").mkdir()
    for name, text in {"some.csv": "a.png", "empty.txt": "\n", "wrong.txt": "nowhere.png\n"}.items():
        Path(name).write_text(text)
    with pytest.raises(DataError, match=re.escape(words)):
        load_data(f"images:{place}")


def test_images_that_take_too_much_memory_stay_on_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 48 * 16 * 16 * 3
    monkeypatch.setattr("idaa_lightly.data.MEMORY", size)
    assert read(folder).train.pixels is not None
    monkeypatch.setattr("idaa_lightly.data.MEMORY", size - 1)
    data = read(folder)
    assert (data.train.pixels, len(data.train.paths), data.normalize) == (None, 36, IMAGENET)
    batch, _ = next(evaluation_batches(data, data.test))
    assert batch.shape == (12, 3, 16, 16)


def test_other_files_and_empty_folders_do_not_count(own_folder: Path, folder: Path) -> None:
    (own_folder / "train/red/notes.txt").write_text("no image")
    (own_folder / "train/.cache").mkdir()
    (own_folder / "train/red/more").mkdir()
    shutil.copy(own_folder / "train/red/00.png", own_folder / "train/red/more/UPPER.PNG")
    data = read(own_folder)
    assert data.classes == ("blue", "green", "red")
    assert data.train.labels.bincount().tolist() == [12, 12, 13]


# Torchvision's data sets, in their unpacked layouts


def picture(path: Path, level: int) -> None:
    """Write a square of one grey level. It is a PNG whatever its name, so that the level is exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (level,) * 3).save(path, "PNG")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def dtd(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/dtd/dtd")
    for name, level in {"blotchy/b_1": 1, "zigzag/z_1": 2, "blotchy/b_2": 3, "zigzag/z_2": 4}.items():
        picture(root / f"images/{name}.jpg", level)
    write(root / "labels/train1.txt", "blotchy/b_1.jpg\nzigzag/z_1.jpg\n")
    write(root / "labels/val1.txt", "zigzag/z_2.jpg\nblotchy/b_2.jpg\n")
    write(root / "labels/test1.txt", "zigzag/z_1.jpg\nblotchy/b_1.jpg\n")
    write(root / "labels/train2.txt", "zigzag/z_2.jpg\n")


def flowers102(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/flowers-102")
    for index in range(1, 7):
        picture(root / f"jpg/image_{index:05}.jpg", index)
    savemat(root / "imagelabels.mat", {"labels": [[2, 1, 1, 2, 2, 1]]})
    savemat(root / "setid.mat", {"trnid": [[1, 2]], "valid": [[6, 5]], "tstid": [[3, 4]]})
    for key, name in {"label": "imagelabels.mat", "setid": "setid.mat"}.items():
        patch.setitem(datasets.Flowers102._file_dict, key, (name, md5(root / name)))


def aircraft(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/fgvc-aircraft-2013b/data")
    for index in range(1, 5):
        picture(root / f"images/000000{index}.jpg", index)
    write(root / "variants.txt", "707-320\nMD-80 X\n")
    write(root / "images_variant_trainval.txt", "0000001 MD-80 X\n0000003 707-320\n")
    write(root / "images_variant_test.txt", "0000004 707-320\n0000002 MD-80 X\n")


def pets(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/oxford-iiit-pet")
    for level, name in enumerate(("Maine_Coon_1", "pug_1", "Maine_Coon_2", "pug_2"), 1):
        picture(root / f"images/{name}.jpg", level)
    write(root / "annotations/trainval.txt", "Maine_Coon_1 1 1 1\npug_1 2 2 1\n")
    write(root / "annotations/test.txt", "pug_2 2 2 1\nMaine_Coon_2 1 1 1\n")


def food101(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/food-101")
    for level, name in enumerate(("pho/1", "tacos/2", "pho/3", "tacos/4"), 1):
        picture(root / f"images/{name}.jpg", level)
    write(root / "meta/train.json", json.dumps({"tacos": ["tacos/2"], "pho": ["pho/1"]}))
    write(root / "meta/test.json", json.dumps({"pho": ["pho/3"], "tacos": ["tacos/4"]}))


def cars(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/stanford_cars")
    kinds = [("fname", object), ("class", int)]
    (root / "devkit").mkdir(parents=True)
    for name, first in {"devkit/cars_train_annos": 1, "cars_test_annos_withlabels": 3}.items():
        rows = np.array([(f"{first}.jpg", 2), (f"{first + 1}.jpg", 1)], dtype=kinds)
        savemat(root / f"{name}.mat", {"annotations": rows})
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "Fiat"], object)})
    for level in range(1, 5):
        picture(root / f"cars_{'train' if level < 3 else 'test'}/{level}.jpg", level)


def svhn(patch: pytest.MonkeyPatch) -> None:
    for split, levels in {"train": (1, 2), "test": (3, 4)}.items():
        path = Path(f"data/{split}_32x32.mat")
        path.parent.mkdir(exist_ok=True)
        pixels = np.broadcast_to(np.array(levels, np.uint8), (32, 32, 3, 2))
        savemat(path, {"X": pixels, "y": np.array([[1], [10]], np.uint8)})  # The digit 0 is stored as 10.
        patch.setitem(datasets.SVHN.split_list, split, ["", path.name, md5(path)])


def cifar100(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/cifar-100-python")
    root.mkdir(parents=True)
    for split, levels in {"train": (1, 2), "test": (3, 4)}.items():
        pixels = np.repeat(np.array(levels, np.uint8)[:, None], 3 * 32 * 32, axis=1)
        (root / split).write_bytes(pickle.dumps({"data": pixels, "fine_labels": [1, 0]}))
        patch.setattr(datasets.CIFAR100, f"{split}_list", [[split, md5(root / split)]])
    (root / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bee"]}))
    meta = {"filename": "meta", "key": "fine_label_names", "md5": md5(root / "meta")}
    patch.setattr(datasets.CIFAR100, "meta", meta)


def fashionmnist(patch: pytest.MonkeyPatch) -> None:
    root = Path("data/FashionMNIST/raw")
    root.mkdir(parents=True)
    for split, levels in {"train": (1, 2), "t10k": (3, 4)}.items():
        pixels = b"".join(bytes([level]) * 28 * 28 for level in levels)
        (root / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, 2, 28, 28) + pixels)
        (root / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, 2) + bytes([1, 0]))


Samples = list[tuple[int, int]]
"""Label and grey level of each image."""
HALVES: tuple[Samples, Samples] = [(1, 1), (0, 2)], [(1, 3), (0, 4)]
LAYOUTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Samples, Samples, tuple[str, ...]]] = {
    "dtd": (dtd, [(0, 1), (1, 2), (1, 4), (0, 3)], [(1, 2), (0, 1)], ("blotchy", "zigzag")),
    "flowers102": (flowers102, [(1, 1), (0, 2), (0, 6), (1, 5)], [(0, 3), (1, 4)], ("pink primrose",)),
    "aircraft": (aircraft, [(1, 1), (0, 3)], [(0, 4), (1, 2)], ("707-320", "MD-80 X")),
    "pets": (pets, [(0, 1), (1, 2)], [(1, 4), (0, 3)], ("Maine Coon", "Pug")),
    "food101": (food101, [(1, 2), (0, 1)], [(0, 3), (1, 4)], ("pho", "tacos")),
    "cars": (cars, *HALVES, ("Audi", "Fiat")),
    "svhn": (svhn, *HALVES, ("0", "1")),
    "cifar100": (cifar100, *HALVES, ("apple", "bee")),
    "fashionmnist": (fashionmnist, *HALVES, ("T-shirt/top", "Trouser")),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_torchvision(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training images include the validation images, and DTD uses its first partition."""
    make, train, test, classes = LAYOUTS[name]
    make(monkeypatch)
    for size in (16, 128):  # In memory, and image by image.
        data = load_data(name, image_size=size)
        for images, expected in ((data.train, train), (data.test, test)):
            found = zip(images.labels.tolist(), (int(level(images[i])) for i in range(len(images))), strict=True)
            assert list(found) == expected
        assert data.classes[: len(classes)] == classes


def test_only_one_process_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for its lock. Nobody waits for data that are there."""
    asked = []

    class Downloaded(datasets.VisionDataset):
        data, targets, classes = np.zeros((40, 32, 32, 3), np.uint8), [0, 1] * 20, ["a", "b"]

        def __init__(self, root: str, train: bool, download: bool) -> None:
            asked.append(download)
            if not download and len(asked) < 4:
                raise RuntimeError("Dataset not found")
            if download:
                with pytest.raises(Timeout), locked(Path(root, ".cifar10.lock"), timeout=0):
                    pass

    monkeypatch.setitem(SETS, "cifar10", (Downloaded, [{"train": True}], [{"train": False}]))
    for _ in range(2):
        load_data("cifar10", data_dir="data")
    assert asked == [False, True, True, False, False]
    assert not list(Path("data").iterdir())


@pytest.mark.parametrize("name", ["cars", "dtd"])
def test_torchvision_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.DTD, "_URL", "http://127.0.0.1:9/dtd.tar.gz")  # No server answers there.
    with pytest.raises(DataError) as caught:
        load_data(name, data_dir="data")
    text = str(caught.value)
    assert text.startswith(f"{name} is not in data and cannot be downloaded (")
    assert text.endswith("): give --data-dir, or a copy of it as folder:PATH")


# Choices of images


@pytest.mark.parametrize(("total", "count"), [(4, 4), (2, 9), (0, 3)])
def test_a_sample_of_few_images_is_all(total: int, count: int) -> None:
    assert sample(total, count).tolist() == list(range(total))


@pytest.mark.parametrize("limit", [10240, 5120, 2048, None])
def test_a_sample_has_all_classes(limit: int | None) -> None:
    """Images are in the order of their classes, or in turn from each class, as --limit-train leaves them."""
    labels = torch.arange(10).repeat_interleave(5000)
    order = torch.arange(len(labels)) if limit is None else balanced(labels, limit)
    indices = sample(len(order), 1024)
    assert torch.equal(indices, indices.unique())
    assert len(indices) == 1024
    assert labels[order[indices]].bincount(minlength=10).min() > 70


@pytest.mark.parametrize("count", [10, 30, 100])
def test_limit_train_is_balanced(count: int) -> None:
    data, whole = load_data("digits", limit_train=count), load_data("digits")
    assert data.train.labels.bincount(minlength=10).tolist() == 10 * [count // 10]
    assert data.test.fingerprint == whole.test.fingerprint


def test_limit_train_is_nested_and_the_same_each_time(folder: Path) -> None:
    paths = {
        count: list(read(folder, image_size=128, limit_train=count).train.paths) for count in (1, 3, 7, 12, 36, 99)
    }
    chosen = [set(value) for value in paths.values()]
    assert [len(part) for part in chosen] == [1, 3, 7, 12, 36, 36]
    assert all(small <= large for small, large in pairwise(chosen))
    assert list(read(folder, image_size=128, limit_train=7).train.paths) == paths[7]
    per_class = [sum(path.parent.name == name for path in paths[7]) for name in ("blue", "green", "red")]
    assert sorted(per_class) == [2, 2, 3]


# Size


@pytest.mark.parametrize(
    ("shapes", "size"),
    [
        ([(16, 16)], 16),
        ([(48, 48)], 48),
        ([(96, 96)], 96),
        ([(128, 128)], 96),
        ([(300, 240)], 224),
        ([(16, 20)], 32),
        ([(40, 70), (60, 45), (50, 50)], 32),
        ([(70, 80), (64, 100), (30, 30)], 64),
    ],
)
def test_size_that_is_inferred(shapes: list[tuple[int, int]], size: int) -> None:
    for name in ("a", "b"):
        for index in range(6):
            path = Path("images") / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", shapes[index % len(shapes)]).save(path)
    data = read(Path("images"))
    assert data.image_size == size
    assert (data.train.pixels is None) == (size == 224)


def test_images_of_other_sizes_are_resized_and_cropped(own_folder: Path) -> None:
    thirds = np.zeros((16, 48, 3), np.uint8)
    thirds[:, :16, 0] = thirds[:, 16:32, 1] = thirds[:, 32:, 2] = 255
    Image.fromarray(thirds).save(own_folder / "train/red/00.png")
    Image.new("RGB", (64, 32), (10, 20, 30)).save(own_folder / "test/red/01.png")
    data = read(own_folder, image_size=16)
    assert np.array_equal(data.train[24], np.full((16, 16, 3), (0, 255, 0), np.uint8))
    assert np.array_equal(data.test[9], np.full((16, 16, 3), (10, 20, 30), np.uint8))
    assert data.notes == ("2 images resized and cropped to 16×16",)


def test_digits_of_another_size() -> None:
    data = load_data("digits", image_size=16, limit_train=20)
    assert data.train.pixels is not None
    assert data.train.pixels.shape == (20, 16, 16, 3)
    assert data.notes == ("379 images resized and cropped to 16×16",)


def test_notes_name_how_many_images_were_converted(own_folder: Path) -> None:
    for index, mode in enumerate(("L", "L", "L", "P", "P", "RGBA", "RGBA")):
        path = own_folder / f"train/red/{index:02}.png"
        with Image.open(path) as image:
            image.convert(mode).save(path)
    for index in range(2):
        Image.fromarray(RAMP.astype(np.uint16) * 257).save(own_folder / f"test/blue/{index:02}.png")
    data = read(own_folder)
    assert data.notes == (
        "2 images converted from I;16 to RGB",
        "3 images converted from L to RGB",
        "2 images converted from P to RGB",
        "2 images converted from RGBA to RGB",
    )
    assert np.array_equal(data.test[0], grey(RAMP))


def test_progress_has_a_step_an_image(folder: Path) -> None:
    calls: list[Any] = []

    def progress(title: str, total: int) -> Callable[[str], None]:
        calls.append((title, total))
        return calls.append

    read(folder, progress=progress)
    assert calls == [("reading images", 48), *[""] * 48]


# Batches for evaluation


def test_statistics() -> None:
    """Half zeros and half ones have mean 0.5 and deviation 0.5. A constant channel gets a deviation of 0.001."""
    for split in ("train", "test"):
        for name, colour in {"a": (0, 0, 102), "b": (255, 51, 102)}.items():
            (Path("images") / split / name).mkdir(parents=True)
            for index in range(16):
                Image.new("RGB", (32, 32), colour).save(Path("images") / split / name / f"{index}.png")
    data = read(Path("images"))
    assert data.normalize == {"mean": [0.5, 0.1, 0.4], "std": [0.5, 0.1, 0.001]}
    (batch, labels), *rest = evaluation_batches(data, data.train)
    assert not rest
    assert labels.tolist() == [0] * 16 + [1] * 16
    assert batch.shape == (32, 3, 32, 32)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch[:16, :2], -torch.ones(16, 2, 32, 32))
    torch.testing.assert_close(batch[16:, :2], torch.ones(16, 2, 32, 32))
    torch.testing.assert_close(batch[:, 2], torch.zeros(32, 32, 32), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [16, 128])
def test_a_normalisation_that_is_given(folder: Path, size: int) -> None:
    """A given normalisation is that of the network to be used, so no note mentions ImageNet's."""
    given = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.2]}
    data = read(folder, image_size=size, normalize=given)
    assert data.normalize == given
    assert data.notes == ()
    (batch, _), *_ = evaluation_batches(data, data.test)
    (plain, _), *_ = evaluation_batches(replace(data, normalize={"mean": [0.0] * 3, "std": [1.0] * 3}), data.test)
    mean, std = (torch.tensor(given[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(batch, (plain - mean) / std)


def test_statistics_are_of_the_training_images_only(own_folder: Path) -> None:
    before = read(own_folder).normalize
    for path in (own_folder / "test").rglob("*.png"):
        Image.new("RGB", (16, 16)).save(path)
    assert read(own_folder).normalize == before


def test_evaluation_batches_are_in_order(folder: Path) -> None:
    data = read(folder)
    whole = torch.cat([images for images, _ in evaluation_batches(data, data.train, 36)])
    parts = list(evaluation_batches(data, data.train, 10))
    assert [len(images) for images, _ in parts] == [10, 10, 10, 6]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole)
    assert torch.equal(torch.cat([labels for _, labels in parts]), data.train.labels)


@pytest.mark.parametrize("size", [128, 224])
def test_large_images_stay_on_disk(make_folder: Folder, size: int) -> None:
    root = make_folder(Path("images"), size * 8 // 7, {"train": 1, "test": 1})
    data = read(root, image_size=size)
    assert data.train.pixels is None
    assert [path.parent.name for path in data.train.paths] == ["blue", "green", "red"]
    assert data.normalize == IMAGENET
    assert data.notes == (
        "images stay on disk, are converted to RGB and turned by their EXIF orientation when they are read, and are "
        "normalised by ImageNet's mean and standard deviation",
    )
    ((batch, labels),) = evaluation_batches(data, data.test)
    assert batch.shape == (3, 3, size, size)
    assert labels.tolist() == [0, 1, 2]
    with Image.open(root / "test/green/00.png") as image:
        pixels = np.array(image) / 255
    margin = round((size * 8 // 7 - size) / 2)  # The file already has 8/7 of the size, so it is only cropped.
    centre = (pixels[margin : margin + size, margin : margin + size] - IMAGENET["mean"]) / IMAGENET["std"]
    torch.testing.assert_close(batch[1], torch.from_numpy(centre).permute(2, 0, 1).float(), rtol=0, atol=1e-5)


def test_files_of_any_shape_and_mode_make_equal_batches(own_folder: Path) -> None:
    Image.new("L", (200, 150), 51).save(own_folder / "test/blue/00.png")
    Image.new("RGBA", (90, 300), (51, 51, 51, 9)).save(own_folder / "test/blue/01.png")
    data = read(own_folder, image_size=128)
    ((batch, _),) = evaluation_batches(data, data.test)
    assert batch.shape == (12, 3, 128, 128)
    expected = (0.2 - torch.tensor(IMAGENET["mean"])) / torch.tensor(IMAGENET["std"])
    torch.testing.assert_close(batch[:2], expected.view(1, 3, 1, 1).expand(2, -1, 128, 128))


def test_fingerprint(folder: Path, own_folder: Path) -> None:
    first = read(folder).train.fingerprint
    assert read(own_folder).train.fingerprint == first
    with Image.open(own_folder / "train/blue/05.png") as image:
        image.load()
    red, *others = image.getpixel((3, 4))
    image.putpixel((3, 4), (red ^ 1, *others))
    image.save(own_folder / "train/blue/05.png")
    changed = read(own_folder)
    assert changed.train.fingerprint != first
    assert changed.test.fingerprint == read(folder).test.fingerprint
    relabelled = Images(changed.train.labels.flip(0), changed.train.pixels)
    assert relabelled.fingerprint != changed.train.fingerprint
    assert read(folder, limit_train=35).train.fingerprint != first


def test_fingerprint_of_files(own_folder: Path) -> None:
    first = read(own_folder, image_size=128).train.fingerprint
    assert read(own_folder, image_size=128).train.fingerprint == first
    path = own_folder / "train/blue/05.png"
    path.rename(path.with_name("05b.png"))
    assert read(own_folder, image_size=128).train.fingerprint != first
    path.with_name("05b.png").rename(path)
    assert read(own_folder, image_size=128).train.fingerprint == first
    path.write_bytes(path.read_bytes() + b"0")
    assert read(own_folder, image_size=128).train.fingerprint != first


# Views


def views_of(images: Images, seed: int = 0) -> ViewDataset:
    return ViewDataset(images, SimCLRTransform(16, gaussian_blur=0.5, rr_prob=0.5, rr_degrees=30.0), seed)


def drawn(image: Image.Image) -> list[Tensor]:
    """Draw a number from each random stream that transforms use."""
    return [torch.rand(1), torch.tensor(np.random.rand()), torch.tensor(random.random())]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def states() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()


def test_views_depend_on_seed_epoch_and_index_only(folder: Path) -> None:
    views, others = views_of(read(folder).train), views_of(read(folder).train)
    keys = [(epoch, index) for epoch in range(2) for index in range(6)]
    forwards = {key: views[key] for key in keys}
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    backwards = {key: others[key] for key in reversed(keys)}
    for key in keys:
        assert same(forwards[key][0], backwards[key][0])
        assert forwards[key][1] == backwards[key][1]
    assert not same(forwards[0, 0][0], forwards[0, 1][0])
    assert not same(forwards[0, 0][0], forwards[1, 0][0])
    assert not same(forwards[0, 0][0], views_of(views.images, seed=1)[0, 0][0])


@pytest.mark.parametrize("stream", range(3), ids=["torch", "numpy", "random"])
def test_each_stream_is_seeded(stream: int) -> None:
    views = ViewDataset(numbered(4), drawn, seed=3)
    numbers = [float(views[epoch, index][0][stream]) for epoch in range(3) for index in range(4)]
    assert numbers == [float(views[epoch, index][0][stream]) for epoch in range(3) for index in range(4)]
    assert len(set(numbers)) == 12


def test_views_leave_the_global_streams_alone(folder: Path) -> None:
    views = views_of(read(folder).train)
    before = states()
    for index in range(4):
        views[0, index]
    assert states() == before


def test_global_streams_survive_a_transform_that_raises() -> None:
    before = states()
    views = ViewDataset(numbered(1), lambda image: drawn(image)[3], seed=0)
    with pytest.raises(IndexError):
        views[0, 0]
    assert states() == before


def test_workers_make_the_same_views(folder: Path) -> None:
    views = views_of(read(folder).train)
    for epoch in (0, 3):
        batches = []
        for workers in (0, 2):
            loader = view_loader(views, 8, workers=workers)
            loader.sampler.set_epoch(epoch)
            batches.append(list(loader))
        assert len(batches[0]) == len(batches[1]) == 4
        for (ours, labels), (theirs, their_labels) in zip(*batches, strict=True):
            assert same(ours, theirs)
            assert torch.equal(labels, their_labels)


def order(loader: Any, epoch: int) -> list[int]:
    loader.sampler.set_epoch(epoch)
    return [int(number) for numbers, _ in loader for number in numbers]


def test_loader_shuffles_each_epoch_anew() -> None:
    loader = view_loader(ViewDataset(numbered(36), level, seed=0), 9)
    orders = [order(loader, epoch) for epoch in range(4)]
    assert all(sorted(indices) == list(range(36)) for indices in orders)
    assert len({tuple(indices) for indices in [*orders, range(36)]}) == 5
    assert order(loader, 2) == orders[2]
    assert order(view_loader(ViewDataset(numbered(36), level, seed=1), 9), 0) != orders[0]


def test_loader_gives_the_labels_of_its_images_and_full_batches_only() -> None:
    loader = view_loader(ViewDataset(numbered(20), level, seed=0), 8)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [8, 8]
    for numbers, labels in batches:
        assert torch.equal(numbers % 3, labels)


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2))
def test_ranks_share_the_images(count: int, ranks: int, batch_size: int, epoch: int) -> None:
    """All ranks take as many steps as one process with the whole batch. What fills no batch waits for another epoch."""
    views = ViewDataset(numbered(count), level, seed=0)
    shares = [order(view_loader(views, batch_size, ranks=ranks, rank=rank), epoch) for rank in range(ranks)]
    steps = count // (ranks * batch_size)
    assert [len(share) for share in shares] == [steps * batch_size] * ranks
    assert len({number for share in shares for number in share}) == steps * batch_size * ranks


# describe


TRANSFORM: dict[str, Any] = {
    "input_size": 32, "cj_prob": 0.8, "cj_strength": 1.0, "cj_bright": 0.8, "cj_contrast": 0.8, "cj_sat": 0.8,
    "cj_hue": 0.2, "min_scale": 0.08, "random_gray_scale": 0.2, "gaussian_blur": 0.5, "sigmas": (0.1, 2.0),
    "vf_prob": 0.5, "hf_prob": 0.5, "rr_prob": 0.5, "rr_degrees": 30.0, "normalize": IMAGENET,
}  # fmt: skip
CHANGED: dict[str, Any] = {
    "input_size": 16, "cj_prob": 0.7, "cj_strength": 0.5, "cj_bright": 0.7, "cj_contrast": 0.7, "cj_sat": 0.7,
    "cj_hue": 0.1, "min_scale": 0.2, "random_gray_scale": 0.1, "gaussian_blur": 0.4, "sigmas": (0.1, 1.0),
    "vf_prob": 0.4, "hf_prob": 0.4, "rr_prob": 0.4, "rr_degrees": 20.0,
    "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
}  # fmt: skip


def test_description_is_the_same_for_two_constructions() -> None:
    transforms = [SimCLRTransform(**TRANSFORM) for _ in range(3)]  # All alive at once, so no address is reused.
    texts = {json.dumps(describe(transform)) for transform in transforms}
    assert len(texts) == 1
    assert " at 0x" not in texts.pop()


@pytest.mark.parametrize("name", TRANSFORM)
def test_description_tells_parameters_apart(name: str) -> None:
    first, second = (
        re.sub("0x[0-9a-f]+", "", json.dumps(describe(SimCLRTransform(**(TRANSFORM | options)))))
        for options in ({}, {name: CHANGED[name]})
    )
    assert first != second


def test_description_tells_functions_apart() -> None:
    assert describe([level]) != describe([grey])
    json.dumps(describe([level, {"a": (1, None, True)}, np.float32(2), Path("x")]))


def within(value: int) -> Callable[[Any], Any]:
    return lambda image: image + value


class Owner:
    def __init__(self, value: int) -> None:
        self.value, self.own = value, self.one  # It refers to itself.

    def one(self, image: Any) -> Any:
        return image

    def other(self, image: Any) -> Any:
        return image + 1


class Private:
    def __init__(self, value: int) -> None:
        self._value, self._noise = value, torch.Generator()


def moved() -> torch.nn.Module:
    norm = torch.nn.BatchNorm1d(2)
    norm(torch.ones(2, 2))
    return norm


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda image: TF.hflip(image), lambda image: TF.vflip(image)),
        (within(1), within(2)),
        (lambda image, k=1: image, lambda image, k=2: image),
        (lambda image: [k + 1 for k in image], lambda image: [k + 2 for k in image]),
        (Owner(1).one, Owner(1).other),
        (Owner(1).one, Owner(2).one),
        (Private(1), Private(2)),
        (torch.nn.BatchNorm1d(2), moved()),
    ],
    ids=["names", "enclosed", "defaults", "inner code", "methods", "owners", "private", "buffers"],
)
def test_description_tells_what_a_function_uses(first: Any, second: Any) -> None:
    assert describe(first) != describe(second)
    assert "0x" not in json.dumps([describe(first), describe(second)])


def test_images_in_memory_are_evaluated_at_the_size_that_was_asked_for() -> None:
    data = load_data("digits", image_size=128, limit_train=20)
    batch, _ = next(evaluation_batches(data, data.train, 4))
    assert batch.shape == (4, 3, 128, 128)


def test_loading_leaves_the_global_random_stream_alone() -> None:
    loader = view_loader(ViewDataset(numbered(16), lambda image: [level(image)], seed=0), 8)
    before = torch.get_rng_state()
    assert len(list(loader)) == 2
    assert torch.equal(before, torch.get_rng_state())


def test_validation_images_are_a_tenth_of_each_class_and_of_training_images_only() -> None:
    data = load_data("digits")
    held = data.held_out()
    counts, kept = data.train.labels.bincount(), held.train.labels.bincount()
    assert torch.equal(held.test.labels.bincount(), (counts * 0.1).round().long())
    assert torch.equal(kept + held.test.labels.bincount(), counts)
    both = torch.cat([held.train.pixels, held.test.pixels])
    assert sorted(map(hash, map(bytes, both.numpy()))) == sorted(map(hash, map(bytes, data.train.pixels.numpy())))
    with pytest.raises(DataError, match=r"^2 image\(s\) cannot be split, because each class has a single one"):
        validation_split(torch.tensor([0, 1]))
