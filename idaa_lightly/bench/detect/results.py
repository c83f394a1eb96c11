"""Average precision of a detector, pictures of its predictions, and a table of finished trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import MaskRCNN
from torchvision.utils import draw_segmentation_masks

from idaa_lightly.bench.arms import arms, images_of
from idaa_lightly.bench.compare.text import markdown, mean_and_std
from idaa_lightly.bench.detect.coco import CocoImages, Target
from idaa_lightly.bench.detect.config import DetectConfig
from idaa_lightly.bench.progress import progress
from idaa_lightly.bench.run.figures import save_figure
from idaa_lightly.bench.schema import Record

FIGURES = {f"{kind}_{name}": f"{kind} {title}" for kind in ("box", "mask")
           for name, title in (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))}  # fmt: skip
"""Titles of the figures in a record, which are in [0, 1]."""
THEIRS = {"box": "bbox", "mask": "segm", "ap": "map", "ap50": "map_50", "ap75": "map_75"}
"""Names in torchmetrics."""
SHOWN, CONFIDENT = 6, 0.5
"""Images in the picture of predictions, and the least score of a prediction in it."""


def average_precision(predict: Callable[[Tensor], Target], images: CocoImages) -> dict[str, float]:
    """Return COCO's AP, AP50 and AP75 of boxes and masks, in [0, 1]. Crowds are ignored as in COCO's evaluation.

    Args:
        predict: Function from an image (3, H, W) to boxes (N, 4), labels (N,), scores (N,) and masks (N, H, W) on the
            CPU.
        images: Images to measure on.
    """
    # Only the first process measures, so synchronising with the others would wait forever.
    metric = MeanAveragePrecision(iou_type=("bbox", "segm"), sync_on_compute=False)
    metric.warn_on_many_detections = False
    step = progress("average precision", len(images))
    for index in range(len(images)):
        image, target = images[index]
        metric.update([predict(image)], [target | {"masks": target["masks"].bool()}])
        step("")
    found = metric.compute()
    return {name: max(0.0, float(found["_".join(THEIRS[part] for part in name.split("_"))])) for name in FIGURES}


def predictor(network: MaskRCNN, device: torch.device) -> Callable[[Tensor], Target]:
    """Return a function from an image (3, H, W) to the predictions of a detector, as in `average_precision`.

    Args:
        network: Detector, whose mode is kept.
        device: Its device.
    """

    @torch.no_grad()
    def predict(image: Tensor) -> Target:
        training = network.training
        network.eval()
        found: Target = {name: part.cpu() for name, part in network([image.to(device)])[0].items()}
        network.train(training)
        return found | {"masks": found["masks"].squeeze(1) > 0.5}

    return predict


def save_predictions(path: Path, predict: Callable[[Tensor], Target], images: CocoImages) -> None:
    """Draw boxes and masks of the first images with objects: the annotations, and below them the predictions.

    Args:
        path: PNG to write.
        predict: See `average_precision`.
        images: Images to choose from.
    """
    names = ["", *images.categories.values()]
    rows = [row for row, things in enumerate(images.things) if things][:SHOWN]
    figure = Figure(figsize=(2.6 * len(rows), 5.6), layout="constrained")
    axes = figure.subplots(2, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        image, target = images[row]
        found = predict(image)
        sure = found["scores"] >= CONFIDENT
        kinds = {"annotated": target, "predicted": {name: part[sure] for name, part in found.items()}}
        for axis, (title, objects) in zip(axes[:, column], kinds.items(), strict=True):
            _draw(axis, image, objects, names)
            axis.set(xticks=[], yticks=[])
            axis.set_ylabel(title if column == 0 else "")
    save_figure(figure, path)


def _draw(axis: Any, image: Tensor, objects: Target, names: list[str]) -> None:
    """Draw an image with masks, boxes and names of objects, in a colour per class."""
    colours = [colormaps["tab10"](label % 10) for label in objects["labels"].tolist()]
    masks = objects["masks"].bool()
    if len(masks):
        image = draw_segmentation_masks(image, masks, alpha=0.5, colors=[to_hex(colour) for colour in colours])
    axis.imshow(image.permute(1, 2, 0).numpy())
    scores = objects["scores"].tolist() if "scores" in objects else [None] * len(masks)
    for (x1, y1, x2, y2), label, score, colour in zip(
        objects["boxes"].tolist(), objects["labels"].tolist(), scores, colours, strict=True
    ):
        axis.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, color=colour, linewidth=1.5))
        words = names[label] + ("" if score is None else f" {score:.2f}")
        box = {"color": colour, "pad": 0.5}
        axis.text(x1, y1, words, color="white", fontsize=7, clip_on=True, bbox=box, parse_math=False)


def arm_of(record: Record) -> str:
    """Return the name of a row: how the backbone was initialised, with method and augmentation of the run."""
    init = record["fitted"].get("init", {})
    name = str(cast(Any, record["config"])["init"])
    return f"run: {init['method']} × {init['aug']}" if name == "run" else name


def settings_of(record: Record) -> dict[str, object]:
    """Return the settings that the rows of a table may differ in."""
    flat = DetectConfig(**cast(dict[str, Any], record["config"])).canonical().flat()
    left_out = ("seed", "init", "run", "weights", "data", "accelerator", "devices", "num_nodes", "strategy")
    settings = {key: value for key, value in flat.items() if key not in left_out}
    init = record["fitted"].get("init", {})
    source = init.get("key") or init.get("sha256", "")[:6]  # Runs of several seeds share a key.
    return settings | ({"pretraining": source} if source else {}) | {"set": images_of(record)}


def table(records: Iterable[Record]) -> str:
    """Return a Markdown table of average precisions in percent: mean ± standard deviation (number of seeds).

    Args:
        records: Records from `read_records`.
    """
    found = arms(records, arm_of, settings_of)
    rows = [
        [name, *(_spread([100 * cast(Any, run["last"])[figure] for run in runs]) for figure in FIGURES)]
        for name, runs in found.items()
    ]
    return markdown(["initialisation, %", *FIGURES.values()], rows)


def _spread(values: list[float]) -> str:
    return f"{mean_and_std(values)} ({len(values)})"
