"""Detection: folders in COCO's format, Mask R-CNN on a backbone, average precision, tables."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from records import a_record, interrupted
from torch import Tensor, nn
from torchvision.models import densenet121, resnet18
from torchvision.models.detection import maskrcnn_resnet50_fpn

from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.arms import read_records
from idaa_lightly.bench.config import read_recipe
from idaa_lightly.bench.detect.coco import CocoImages, read_coco
from idaa_lightly.bench.detect.config import DetectConfig
from idaa_lightly.bench.detect.masks import mask_of, unpacked
from idaa_lightly.bench.detect.network import C4, FPN, freeze, stages
from idaa_lightly.bench.detect.results import average_precision, save_predictions, table
from idaa_lightly.bench.detect.setup import ObjectViews, flip, make_parts, resolve
from idaa_lightly.bench.detect.train import Detection
from idaa_lightly.cli import main
from idaa_lightly.errors import DataError, MissingExtraError, UsageError

PAGES = Path(__file__).parents[1] / "benchmarks" / "detect"
SQUARE = [[4, 4, 12, 4, 12, 12, 4, 12]]
COUNTS = [4 * 20 + 4, *[8, 12] * 7, 8, 20 * 32 - 12 * 20 + 8]
"""Run lengths of the square of 8 px in an image of 32 × 20 px, column by column."""
COMMON = {"min_size": 64, "max_size": 107}


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """Return an annotation of the image 7: the square, of the category 30."""
    given = {"id": number, "image_id": 7, "category_id": 30, "bbox": [4, 4, 8, 8], "segmentation": SQUARE, "iscrowd": 0}
    return {key: value for key, value in (given | changes).items() if value is not None}


def coco(root: Path, annotations: list[dict[str, Any]] | None = None, **changes: Any) -> str:
    """Write a folder in COCO's format with two images in each split, and return its name.

    Args:
        root: Folder to write.
        annotations: Annotations of the training images. Default: a square in each.
        changes: Other contents of the training annotations.
    """
    rng = np.random.default_rng(0)
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 32, "height": 20},
            {"id": 9, "file_name": "b.png", "width": 32, "height": 20},
        ],
        "categories": [{"id": 30, "name": "square"}, {"id": 5, "name": "disc"}],
        "annotations": [entry(1), entry(4, image_id=9)],
    }
    for split in ("train2017", "val2017"):
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "images" / split).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            pixels = rng.integers(0, 256, (20, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / name)
        own = content if split == "val2017" else content | changes
        own |= {"annotations": annotations} if annotations is not None and split != "val2017" else {}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(own))
    return f"coco:{root}"


def changed(**changes: Any) -> list[dict[str, Any]]:
    """Return annotations of which the second one is changed."""
    return [entry(1), entry(17, **changes)]


def test_masks_in_every_form_are_the_same() -> None:
    from pycocotools import mask as masks

    expected = np.zeros((20, 32), np.uint8)
    expected[4:12, 4:12] = 1
    packed = masks.encode(np.asfortranarray(expected))["counts"].decode()
    halves = [[4, 4, 8, 4, 8, 12, 4, 12], [8, 4, 12, 4, 12, 12, 8, 12]]
    assert unpacked(packed) == COUNTS
    for found in (SQUARE, halves, {"size": [20, 32], "counts": COUNTS}, {"size": [20, 32], "counts": packed}):
        assert np.array_equal(mask_of(found, 20, 32), expected)


def test_objects_ids_and_crowds(tmp_path: Path) -> None:
    crowd = entry(900, iscrowd=1, category_id=5, segmentation={"size": [20, 32], "counts": COUNTS})
    data = read_coco(coco(tmp_path, [entry(3, bbox=[-4, 2, 100, 8.5]), crowd]))
    assert len(data.train) == 1  # The other one has no objects.
    assert data.train.categories == {5: "disc", 30: "square"}
    image, target = data.train[0]
    assert image.shape == (3, 20, 32)
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    assert target["boxes"].tolist() == [[0, 2, 32, 10.5]]  # within the image
    assert target["labels"].tolist() == [2]  # ids in ascending order, after the background
    assert target["masks"].sum() == 64
    assert len(data.test[0][1]["boxes"]) == 1
    shutil.copy(tmp_path / "annotations/instances_train2017.json", tmp_path / "annotations/instances_val2017.json")
    tested = read_coco(f"coco:{tmp_path}").test
    assert len(tested) == 2  # Images without objects can hold false detections.
    assert tested[0][1]["iscrowd"].tolist() == [0, 1]
    assert tested[1][1]["masks"].shape == (0, 20, 32)


def test_annotations_that_are_left_out(tmp_path: Path) -> None:
    nothing = {"size": [20, 32], "counts": [640]}
    data = read_coco(
        coco(
            tmp_path,
            [
                entry(1),
                entry(12, bbox=[4, 4, 0, 8]),
                entry(13, bbox=[4, 4, 8, -1]),
                entry(19, bbox=[4, 4, 8, 1e-5]),
                entry(14, bbox=[40, 4, 8, 8]),
                entry(15, segmentation=[]),
                entry(16, segmentation=[[1, 2, 3, 4]]),
                entry(17, segmentation=nothing),
                entry(18, segmentation=[[1, 2, 3, 4], *SQUARE]),
                entry(21, segmentation=[[4, 4, 12, 12, 12, 4, 4, 12]]),  # an hourglass
            ],
        )
    )
    assert len(data.train[0][1]["boxes"]) == 3
    file = "annotations of instances_train2017.json are left out, because their"
    assert data.train.notes == (
        f"3 {file} boxes have no area, such as id 12",
        f"1 {file} boxes are outside of the image, such as id 14",
        f"3 {file} masks are empty, such as id 15",
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"annotations": changed(bbox=[1, 2, 3])},
            "annotations[1] (id 17) has bbox [1, 2, 3], but expected 4 finite numbers [x, y, width, height] in pixels: "
            "correct or remove the entry",
        ),
        ({"annotations": changed(bbox=[1, 2, 3, float("nan")])}, "has bbox [1, 2, 3, nan], but expected 4 finite"),
        ({"annotations": changed(bbox=None)}, "annotations[1] (id 17) has no bbox, but expected 4 finite numbers"),
        ({"annotations": changed(iscrowd=2)}, "has iscrowd 2, but expected 0 or 1"),
        (
            {"annotations": changed(segmentation="x")},
            "has segmentation x, but expected polygons [[x1, y1, x2,",
        ),
        ({"annotations": changed(id="a")}, "annotations[1] (id a) has id a, but expected a whole number"),
        (
            {"annotations": changed(segmentation=[[1, 2, 3, 4, 5, 6, 7]])},
            "the annotation 17 has a polygon of 7 numbers, but expected pairs x, y: correct or remove it",
        ),
        (
            {"annotations": changed(segmentation=[[0, 0, 1e8, 0, 1e8, 10]])},
            "the annotation 17 has a polygon with a coordinate of ±1e+08, but expected one in or near its image, from "
            "-64 to 64: correct or remove it",
        ),
        (
            {"annotations": changed(segmentation={"size": [32, 20], "counts": COUNTS})},
            "the annotation 17 has an RLE of size [32, 20], but expected [20, 32], [height, width] of the image",
        ),
        (
            {"annotations": changed(segmentation={"size": [20, 32], "counts": [3, 4]})},
            "has an RLE whose counts add up to 7, but expected numbers from 0 whose sum is 640, the pixels of",
        ),
        (
            {"annotations": changed(segmentation={"size": [20, 32], "counts": "zzzz"})},
            "the annotation 17 has an RLE whose counts cannot be read, but expected numbers from 0 whose sum is 640",
        ),
        (
            {"annotations": changed(segmentation={"size": [20, 32], "counts": "PPd"})},
            "the annotation 17 has an RLE whose counts cannot be read",
        ),
        (
            {"annotations": changed(segmentation={"size": [20, 32], "counts": ""})},
            "the annotation 17 has an RLE whose counts add up to 0, but expected",
        ),
        (
            {"annotations": changed(category_id=6)},
            "the annotation 17 has category_id 6, but expected an id of its categories: correct or remove it",
        ),
        ({"annotations": changed(image_id=8)}, "the annotation 17 has image_id 8, but expected an id of its images"),
        (
            {"annotations": [entry(1), entry(1)]},
            "annotations have the id 1 twice, but expected different ids: renumber them",
        ),
        (
            {"images": [{"id": 7, "file_name": "a.png", "width": 32, "height": 20}] * 2},
            "images have the id 7 twice, but expected different ids",
        ),
        (
            {"images": [{"id": 7, "file_name": "a.png", "width": 0, "height": 20}]},
            "images[0] (id 7) has width 0, but expected a whole number of pixels above 0: correct or remove the entry",
        ),
        ({"categories": [{"id": 5, "name": "x"}] * 2}, "categories have the id 5 twice"),
        (
            {"categories": [{"id": 5, "name": "disc"}, {"id": 30, "name": "box"}]},
            "have different categories ({30: 'square'}), but expected the same ids and names in both: correct one",
        ),
        ({"images": 3}, "images is no entry of COCO's format (Input should be a valid list): expected {images, "),
        ({"annotations": [entry(1), 5]}, "annotations.1 is no entry of COCO's format (Input should be a valid dict"),
        (
            {"annotations": [entry(1, bbox=[0, 0, 0, 0])]},
            "has no object that can be used: add annotations with boxes and masks",
        ),
        (
            {"images": [{"id": 7, "file_name": "c.png", "width": 32, "height": 20}], "annotations": [entry(1)]},
            "1 of 1 images of {root}/annotations/instances_train2017.json are missing, such as "
            "{root}/images/train2017/c.png (id 7): add them, or remove their entries",
        ),
    ],
)
def test_malformed_annotations(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError) as error:
        read_coco(coco(tmp_path, **changes))
    assert text.replace("{root}", str(tmp_path)) in str(error.value)
    assert f"{tmp_path}/annotations/instances_train2017.json" in str(error.value)


def test_folders_of_another_form(tmp_path: Path) -> None:
    name = coco(tmp_path)
    file = tmp_path / "annotations" / "instances_train2017.json"

    def refused() -> str:
        with pytest.raises(DataError) as error:
            read_coco(name).test[0]
        return str(error.value)

    with pytest.raises(DataError, match="data is 'folder:x', but expected coco:PATH of a folder with annotations/ and"):
        read_coco("folder:x")
    whole = file.read_text()
    file.write_text(whole[:99])
    assert f"{file} cannot be read as JSON (" in refused()
    file.write_text("[]")
    assert f"{file}: its content is no entry of COCO's format (Input should be a valid dictionary)" in refused()
    file.write_text(whole.replace('"images"', '"pictures"'))
    assert f"{file}: images is no entry of COCO's format (Field required)" in refused()
    file.write_text(whole)
    shutil.copy(file, file.with_stem("instances_train"))
    assert "annotations has 2 files instances_train*.json, but expected one: keep one of them there" in refused()
    file.unlink()
    file.with_stem("instances_train").unlink()
    assert "annotations has 0 files instances_train*.json, but expected one: put COCO's annotations there" in refused()
    file.write_text(whole)
    Image.new("RGB", (20, 32)).save(tmp_path / "images" / "val2017" / "a.png")
    assert "val2017/a.png has 20 × 32 px, but " in refused()
    assert "instances_val2017.json has 32 × 20 for the image 7: restore the image, or correct its entry" in refused()
    (tmp_path / "images" / "val2017").rename(tmp_path / "val")
    assert f"{tmp_path} has neither val2017/ nor images/val2017/, but " in refused()


def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingExtraError) as error:
        read_coco(coco(tmp_path))
    assert str(error.value) == 'pycocotools is not installed: pip install "idaa-lightly[detect]" to use detection'


def answers(images: CocoImages, share: float = 1.0) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a predictor that knows the annotations of the images, in order, but for crowds, or none of them."""
    known = iter([images[index][1] for index in range(len(images))])

    def predict(image: Tensor) -> dict[str, Tensor]:
        target = next(known)
        kept = (target["iscrowd"] == 0) & (share > 0)
        found = {name: target[name][kept] for name in ("boxes", "labels", "masks")}
        return found | {"masks": found["masks"].bool(), "scores": torch.full((int(kept.sum()),), 0.9)}

    return predict


def test_average_precision(tmp_path: Path) -> None:
    images = read_coco(coco(tmp_path, [entry(1), entry(2, image_id=9, category_id=5)])).train
    assert set(average_precision(answers(images), images).values()) == {1.0}
    assert set(average_precision(answers(images, 0), images).values()) == {0.0}

    def shifted(image: Tensor) -> dict[str, Tensor]:
        found = predict(image)
        return found | {"boxes": found["boxes"] + torch.tensor([1.9, 0, 1.9, 0])}  # an IoU of 48.8 / 79.2 = 0.62

    predict = answers(images)
    found = average_precision(shifted, images)
    assert found["box_ap"] == pytest.approx(0.3)  # 3 of the 10 thresholds
    assert (found["box_ap50"], found["box_ap75"], found["mask_ap"]) == (1, 0, 1)


def test_detections_of_a_crowd_count_neither_way(tmp_path: Path) -> None:
    counts = [16 * 20, 16 * 20]  # the right half
    crowd = entry(2, iscrowd=1, bbox=[16, 0, 16, 20], segmentation={"size": [20, 32], "counts": counts})
    coco(tmp_path, [entry(1), crowd])
    shutil.copy(tmp_path / "annotations/instances_train2017.json", tmp_path / "annotations/instances_val2017.json")
    images = read_coco(f"coco:{tmp_path}").test
    predict = answers(images)

    def and_more(image: Tensor) -> dict[str, Tensor]:
        found = predict(image)
        if not len(found["boxes"]):
            return found
        mask = torch.zeros(1, 20, 32, dtype=torch.bool)
        mask[:, 2:10, 20:28] = True
        more = {"boxes": torch.tensor([[20.0, 2, 28, 10]]), "masks": mask}
        more |= {"labels": found["labels"][:1], "scores": torch.tensor([0.95])}
        return {name: torch.cat([part, more[name]]) for name, part in found.items()}

    assert set(average_precision(and_more, images).values()) == {1.0}


def test_the_feature_pyramid_is_that_of_torchvision() -> None:
    with torch.device("meta"):
        theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
        network, _ = create_backbone("resnet50", 224)
        ours = FPN(network, stages(network, "resnet50"), 4, None, {})
    theirs_state, our_state = theirs.state_dict(), ours.state_dict()
    assert {name: part.shape for name, part in our_state.items()} == {
        name: part.shape for name, part in theirs_state.items()
    }
    assert str(ours.rpn) == str(theirs.rpn)
    assert str(ours.roi_heads) == str(theirs.roi_heads)


def test_c4_shares_the_last_stage() -> None:
    with torch.device("meta"):
        network, _ = create_backbone("resnet50", 224)
        last = network.get_submodule("layer4")
        detector = C4(network, stages(network, "resnet50"), 81, nn.BatchNorm2d, COMMON, width=64)
    assert detector.roi_heads.mask_head is last
    assert detector.roi_heads.box_head[0] is last
    assert detector.roi_heads.box_predictor.cls_score.weight.shape == (81, 2048)
    assert detector.roi_heads.mask_predictor.mask_fcn_logits.weight.shape == (81, 64, 1, 1)
    assert detector.rpn.head.cls_logits.weight.shape == (15, 1024, 1, 1)  # five sizes, three shapes
    assert len({id(part) for part in detector.parameters()}) == len(list(detector.parameters()))


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        (
            "resnet18",
            64,
            "'resnet18' has no maps that are reduced by 16 and 32, but a detector needs them reduced by 4, 8",
        ),
        (
            "resnet9-w2",
            224,
            "'resnet9-w2' has no maps that are reduced by 16 and 32, but a detector needs them reduced by",
        ),
        (
            "alexnet",
            224,
            "take a convolutional network such as resnet50, and train its run with --image-size 96 or more",
        ),
        (
            "vit_b_16",
            224,
            "'vit_b_16' does not take images of 64 px (Wrong image height! Expected 224 but got 64!), but a",
        ),
    ],
)
def test_backbones_that_are_refused(name: str, size: int, text: str) -> None:
    with torch.device("meta"):
        network, _ = create_backbone(name, size)
    with pytest.raises(UsageError) as error:
        stages(network, name)
    assert text in str(error.value)


def test_c4_refuses_other_networks_than_resnets() -> None:
    with torch.device("meta"):
        network, _ = create_backbone("regnet_y_400mf", 224)
        channels = stages(network, "regnet_y_400mf")
        with pytest.raises(UsageError) as error:
            C4(network, channels, 4, None, COMMON)
    assert "the stages of the backbone are trunk_output.block1, trunk_output.block2, trunk_output.b" in str(error.value)
    assert "take a run of a ResNet, or --method maskrcnn-fpn" in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}),
        ("mobilenet_v3_small", {"features.1": 16, "features.3": 24, "features.8": 48, "features": 576}),
        ("shufflenet_v2_x0_5", {"maxpool": 24, "stage2": 48, "stage3": 96, "conv5": 1024}),
        *(
            pytest.param(name, expected, marks=pytest.mark.slow)  # timm is slow to import.
            for name, expected in (
                ("timm/resnet18", {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}),
                ("tf_efficientnet_lite0", {"blocks.1": 24, "blocks.2": 40, "blocks.4": 112, "bn2": 1280}),
                ("convnext_atto", {"stages.0": 40, "stages.1": 80, "stages.2": 160, "norm_pre": 320}),
            )
        ),
    ],
)
def test_maps_of_the_stages(name: str, expected: dict[str, int]) -> None:
    """The pyramid gets the outputs of the stages, trained or not, and the training changes the BatchNorms as usual."""
    torch.manual_seed(0)
    network, _ = create_backbone(name, 224)
    assert stages(network, name) == expected
    detector = FPN(copy.deepcopy(network), expected, 3, None, COMMON, width=8)
    images = torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        found, outputs = detector.train(mode).backbone.body(images), {}
        for stage in expected:
            network.get_submodule(stage).register_forward_hook(partial(keep_output, outputs, stage))
        network.train(mode)(images)
        for place, stage in enumerate(expected):
            assert torch.equal(found[str(place)], outputs[stage])
    state = network.state_dict()
    kept = detector.backbone.body.state_dict()
    assert all(torch.equal(kept[key], state[key]) for key in kept)
    assert sum("running_mean" in key for key in kept) == sum("running_mean" in key for key in state)


def keep_output(outputs: dict[str, Tensor], stage: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    outputs[stage] = output.clone()  # The next layer may change it in place.


@pytest.mark.parametrize("name", ["nn.BatchNorm2d", pytest.param("BatchNormAct2d", marks=pytest.mark.slow)])
def test_frozen_norms_compute_the_same(name: str) -> None:
    norm = nn.BatchNorm2d if name == "nn.BatchNorm2d" else importlib.import_module("timm.layers").BatchNormAct2d
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(norm(4, eps=1e-3)))
    with torch.no_grad():
        for part in (*network.parameters(), *network.buffers()):
            part.copy_(torch.rand(part.shape) + 0.5)
    images = torch.randn(2, 3, 8, 8)
    expected = network.eval()(images)
    freeze(network)
    assert torch.allclose(network.train()(images), expected, atol=1e-6)


def test_flipped_objects_stay_on_their_pixels(tmp_path: Path) -> None:
    images = read_coco(coco(tmp_path, [entry(1)])).train
    image, target = flip(*images[0])
    assert target["boxes"].tolist() == [[20, 4, 28, 12]]
    rows, columns = target["masks"][0].nonzero().unbind(1)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (20, 27, 4, 11)
    assert torch.equal(image.flip(-1), images[0][0])
    views = ObjectViews(images, seed=0)
    boxes = [views[epoch, 0][1]["boxes"][0, 0].item() for epoch in range(20)]
    assert set(boxes) == {4, 20}
    assert boxes == [views[epoch, 0][1]["boxes"][0, 0].item() for epoch in range(20)]


def test_the_schedule() -> None:
    network: Any = nn.Linear(1, 1)
    network.lr, network.weight_decay = 0.02, 1e-4
    made = Detection(network, 8, epochs=3, steps_per_epoch=30, seed=0).configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(90):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(1e-5)  # a thousandth of 0.02 · 8 / 16
    assert rates[9] == pytest.approx(0.01)
    assert rates[59:61] == pytest.approx([0.01, 0.001])
    assert rates[79:81] == pytest.approx([0.001, 0.0001])


def test_steps_are_laid_out_in_epochs(tmp_path: Path) -> None:
    data = read_coco(coco(tmp_path))
    config = resolve(DetectConfig(backbone="resnet18", init="scratch", batch_size=1, steps=7, image_size=64))
    with torch.device("meta"):
        parts = make_parts(config, data)
        assert (parts.epochs, parts.steps) == (4, 2)
        assert parts.detector.transform.min_size == (51, 54, 56, 59, 61, 64)
        assert parts.detector.transform.max_size == 107
        assert make_parts(replace(config, epochs=4), data).config.epochs == 4
        for change, text in (
            ({"batch_size": 3}, "has 2 images with objects, fewer than a batch of 3: lower --batch-size"),
            ({"epochs": 5}, "epochs is 5, but 7 steps are 4 epochs of these images: leave epochs out"),
        ):
            with pytest.raises(UsageError) as error:
                make_parts(replace(config, **change), data)
            assert text in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"norm": "group"}, "norm is 'group', but expected sync or batch or frozen"),
        ({"method": "fcos"}, "method is 'fcos', but expected maskrcnn-fpn or maskrcnn-c4"),
        ({"init": "run"}, "init is run, but there is no RUN: name a run directory, or use --init scratch or imagenet"),
        (
            {"norm": "frozen"},
            "init is scratch, but norm is frozen, and BatchNorms that were never trained normalise no",
        ),
        ({"backbone": None}, "there is no RUN and no backbone: name a run directory, or a network by --backbone"),
        ({"set": {"aug": {"eps": 1}}}, "a detector has no options aug.KEY: leave --set aug.KEY out"),
        ({"set": {"method": {"eps": 1}}}, "'maskrcnn-fpn' has no option 'eps'; it has: width, rois, lr, weight_decay."),
        ({"steps": 0}, "steps is 0, but expected int, 1 or more"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(replace(DetectConfig(data="coco:x", init="scratch", backbone="resnet18"), **changes))
    assert text in str(error.value)


def test_weights_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = read_coco(coco(tmp_path / "data"))
    config = resolve(DetectConfig(backbone="resnet18", init="imagenet", batch_size=2))
    monkeypatch.setattr(urllib.request, "_opener", None)  # It would keep another proxy.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UsageError) as error:
        make_parts(config, data)
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert str(error.value).startswith("torchvision's weights of resnet18 cannot be downloaded (<urlopen error")
    assert f"download {url} on a machine with access, and pass the file by --weights FILE" in str(error.value)


def test_weights_of_densenets_have_old_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(5)
    whole = densenet121()
    old = {  # The file is older than the counters of batches.
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): part
        for name, part in whole.state_dict().items()
        if "num_batches" not in name
    }
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(old, tmp_path / "hub/checkpoints/densenet121-a639ec97.pth")
    config = resolve(DetectConfig(backbone="densenet121", init="imagenet", batch_size=2, set={"method": {"width": 8}}))
    parts = make_parts(config, read_coco(coco(tmp_path / "data")))
    weights = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(parts.detector.backbone.body.get_parameter(weights), whole.get_parameter(weights))
    assert parts.init == {"weights": "DenseNet121_Weights.IMAGENET1K_V1", "missing": []}


def test_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = resnet18()
    torch.save(whole.state_dict(), tmp_path / "resnet18.pth")
    config = DetectConfig(
        backbone="resnet18", init="imagenet", batch_size=2, weights=str(tmp_path / "resnet18.pth"),
        set={"method": {"width": 8}},
    )  # fmt: skip
    parts = make_parts(resolve(config), read_coco(coco(tmp_path / "data")))
    assert torch.equal(
        parts.detector.backbone.body.get_submodule("layer4.1.conv2").weight, whole.layer4[1].conv2.weight
    )
    assert parts.init["missing"] == []


def test_recipes_can_be_run() -> None:
    for name, method in (("coco-r50-fpn", "maskrcnn-fpn"), ("coco-r50-c4", "maskrcnn-c4")):
        config = resolve(
            replace(DetectConfig(**read_recipe(PAGES / "recipes.toml", name, DetectConfig)), init="scratch")
        )
        assert (config.method, config.steps, config.batch_size) == (method, 90_000, 16)
        assert config.set["method"]["lr"] == 0.02


def record(init: str, seed: int, figure: float, **config: Any) -> Any:
    """Return a record of the training of a detector."""
    last = {"epoch": 1, **{f"{kind}_{name}": figure for kind in ("box", "mask") for name in ("ap", "ap50", "ap75")}}
    facts = {"method": "byol", "aug": "idaa", "key": "abc123"} if init == "run" else {}
    given = {"method": "maskrcnn-fpn", "aug": "flip", "init": init, "seed": seed, "norm": "sync", "steps": 10, **config}
    return a_record(config=given, last=last, history=[{"epoch": 0}, last], fitted={"init": facts})


def test_the_table() -> None:
    runs = [record("run", 0, 0.3), record("run", 1, 0.4), record("scratch", 0, 0.25)]
    lines = table(runs).splitlines()
    assert lines[0] == "| initialisation, % | box AP | box AP50 | box AP75 | mask AP | mask AP50 | mask AP75 |"
    assert lines[2].startswith("| run: byol × idaa | 35.00 ± 7.07 (2) | 35.00 ± 7.07 (2) | ")
    assert lines[3].startswith("| scratch | 25.00 (1) | ")
    others = [record("imagenet", seed, 0.5, weights=f"{seed}.pt") for seed in (0, 1)]
    for seed, other in enumerate(others):
        other["fitted"]["init"] = {"sha256": str(seed) * 64}
    assert len(table(others).splitlines()) == 4  # Other weights are not another seed.
    elsewhere = record("scratch", 1, 0.2)
    elsewhere["data"] = elsewhere["data"] | {"fingerprint": [runs[2]["data"]["fingerprint"][0], "ffff"]}
    assert len(table([runs[2], elsewhere]).splitlines()) == 4  # Other test images are not another seed.
    with pytest.raises(UsageError) as error:
        table([*runs, record("scratch", 0, 0.25)])
    assert str(error.value) == (
        "scratch has seed 0 more than once, but expected each seed once: move copies of a run out of the directory"
    )
    rows = [line.split(" | ")[0] for line in table([*runs, record("scratch", 0, 0.2, norm="batch")]).splitlines()]
    assert rows[3:] == ["| scratch norm=sync", "| scratch norm=batch"]


def drawn(folder: Path, **options: Any) -> Path:
    """Draw a data set over noise by the committed generator, and return its folder."""
    found = importlib.util.spec_from_file_location("draw", PAGES / "draw.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    (folder / "photos").mkdir(parents=True)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (80, 70, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.png")
    photos = sorted((folder / "photos").iterdir())
    for split, count in (("train2017", options.pop("train", 4)), ("val2017", 2)):
        module.draw(photos, folder / "set", split, count, options.get("size", 64), options.get("seed", 0))
    return folder / "set"


def test_the_generator(tmp_path: Path) -> None:
    first, again, other = (drawn(tmp_path / str(turn), seed=turn // 2) for turn in range(3))
    for name in ("annotations/instances_train2017.json", "train2017/000000000010.jpg"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()
    data = read_coco(f"coco:{first}")
    assert not data.train.notes
    for index in range(len(data.train)):
        masks = data.train[index][1]["masks"].int()
        assert masks.sum(0).max() == 1  # Only what is visible belongs to a mask.
        assert masks.flatten(1).sum(1).min() > 0


@pytest.mark.parametrize("name", ["efficientnet", "resnet18"])
def test_the_pages_show_the_committed_records(name: str) -> None:
    rendered = table(read_records(PAGES / "records" / name, DetectConfig))
    assert rendered in (PAGES / "README.md").read_text()
    if name == "efficientnet":  # README.md has the first columns of its rows.
        readme = (PAGES.parents[1] / "README.md").read_text()
        for row in rendered.splitlines()[2:]:
            assert "|".join(row.split("|")[:5]).strip() in readme


def bench(folder: Path, *options: object) -> Result:
    """Call `idaa-bench detect` on a data set, with a small ResNet-18 and small heads."""
    given = "--image-size 64 --batch-size 2 --aug flip --accelerator cpu --set method.width=8 --set method.rois=8"
    return CliRunner().invoke(main, ["detect", "--data", f"coco:{folder}", *given.split(), *map(str, options)])


@pytest.mark.slow
def test_a_run_its_files_and_resuming_to_the_bit(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "drawn")
    options = ["--backbone", "resnet18", "--init", "scratch", "--steps", 4]
    whole = bench(folder, *options, "--out", "whole")
    assert whole.exit_code == 0, whole.output
    assert "| scratch | " in whole.stdout
    assert "million weights, BatchNorms sync; 4 training images with " in whole.stdout
    found = json.loads(Path("whole/record.json").read_text())
    assert found["last"].keys() == {"epoch", "box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"}
    assert found["initial"] == {"epoch": 0}
    assert found["config"]["epochs"] == 2
    names = {"config.toml", "record.json", "metrics.csv", "predictions.png", "model.pt", "checkpoints"}
    assert {path.name for path in Path("whole").iterdir()} == names
    assert "already holds this run, which is finished" in bench(folder, *options, "--out", "whole").output
    interrupted(Path("whole"), Path("part"))
    resumed = bench(folder, *options, "--out", "part", "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert "Resuming after epoch 1." in resumed.stdout
    one, other = (torch.load(f"{name}/model.pt", weights_only=True) for name in ("whole", "part"))
    for name, value in one.items():
        assert torch.equal(value, other[name]), name
    assert Path("whole/metrics.csv").read_bytes() == Path("part/metrics.csv").read_bytes()
    shown = CliRunner().invoke(main, ["detect", "--table", "whole"])
    assert shown.exit_code == 0
    assert "| scratch | " in shown.stdout


@pytest.mark.slow
def test_the_backbone_of_a_run_c4_frozen_and_several(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "drawn")
    given = f"run --data images:{folder / 'train2017'} --backbone resnet18 --image-size 96 --epochs 1 --batch-size 4"
    made = CliRunner().invoke(main, [*given.split(), "--aug", "none", "--accelerator", "cpu", "--out", "pretrained"])
    assert made.exit_code == 0, made.output
    found = bench(folder, "pretrained", "--steps", 2, "--init", "run", "--init", "scratch", "--out", "both")
    assert found.exit_code == 0, found.output
    assert "| run: simclr × none | " in found.stdout
    assert "| scratch | " in found.stdout
    assert Path("both/scratch/seed-0/record.json").exists()
    facts = json.loads(Path("both/run/seed-0/record.json").read_text())
    assert facts["fitted"]["init"]["method"] == "simclr"
    pretrained = json.loads(Path("pretrained/record.json").read_text())
    assert facts["data"]["normalize"] == pretrained["data"]["normalize"]
    c4 = bench(folder, "pretrained", "--steps", 2, "--method", "maskrcnn-c4", "--norm", "frozen", "--out", "c4")
    assert c4.exit_code == 0, c4.output
    state = torch.load("c4/model.pt", weights_only=True)
    backbone = torch.load("pretrained/backbone.pt", weights_only=True)
    for name in ("running_mean", "weight"):
        assert torch.equal(state[f"backbone.layer1.0.bn1.{name}"], backbone[f"layer1.0.bn1.{name}"])
    config = resolve(DetectConfig(backbone="timm/resnet18", init="imagenet", batch_size=2))
    with pytest.raises(UsageError, match="torchvision has no ImageNet weights of timm/resnet18: pass their file by"):
        make_parts(config, read_coco(f"coco:{folder}"))
    assert not torch.equal(state["backbone.layer1.0.conv1.weight"], backbone["layer1.0.conv1.weight"])


@pytest.mark.slow
def test_several_processes_and_messages(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "drawn")
    options = ["--backbone", "resnet18", "--init", "scratch", "--steps", 2, "--devices", 2, "--strategy", "ddp"]
    found = bench(folder, *options, "--norm", "batch", "--out", "two")
    assert found.exit_code == 0, found.output
    assert json.loads(Path("two/record.json").read_text())["device"]["count"] == 2
    for more, text in (
        (
            ["--backbone", "tf_efficientnet_lite0"],
            "norm is sync, but the BatchNorms of tf_efficientnet_lite0 contain th",
        ),
        (["--norm", "sync"], "norm is sync, but 2 processes on the CPU cannot share statistics: use --norm batch"),
        (["--weights", "x.pth"], "weights is x.pth, but they are for --init imagenet: add it, or leave them out"),
        (["--init", "scratch"], "--init is scratch, scratch, but expected different ones"),
    ):
        result = bench(folder, *options, *more)
        assert text in result.stderr
        assert result.exit_code != 0


@pytest.mark.slow
def test_the_coco_recipes_on_twenty_images(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "drawn", train=20)
    for name in ("coco-r50-fpn", "coco-r50-c4"):
        given = ["detect", "--config", f"{PAGES}/recipes.toml:{name}", "--data", f"coco:{folder}", "--init", "scratch"]
        result = CliRunner().invoke(main, [*given, "--dry-run"])
        assert result.exit_code == 0, result.output
        assert "20 training images with " in result.stdout
        assert 'backbone = "resnet50"' in result.stdout


def test_the_picture_of_predictions(tmp_path: Path) -> None:
    images = read_coco(coco(tmp_path)).test
    save_predictions(tmp_path / "predictions.png", answers(images), images)
    with Image.open(tmp_path / "predictions.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    green = (np.abs(pixels - np.array([44, 160, 44])).sum(2) < 3).nonzero()[0]  # the colour of the second class
    assert green.min() < len(pixels) / 2 < green.max()  # in both rows
