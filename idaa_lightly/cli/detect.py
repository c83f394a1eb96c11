"""Command `idaa-bench detect`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from idaa_lightly.bench.detect.config import DetectConfig
from idaa_lightly.cli.launch import shown, supervised
from idaa_lightly.cli.options import config_options, configs
from idaa_lightly.cli.terminal import console
from idaa_lightly.errors import UsageError


@click.command()
@click.argument("run", required=False, type=click.Path(path_type=Path))
@config_options(
    *(name for name in DetectConfig.names() if name not in ("run", "epochs")),
    of=DetectConfig,
    set="Option of the detector: method.KEY, such as method.width=64. It has width (channels of the pyramid and the "
    "heads, 256), rois (proposals per image that the heads are trained on, 512), lr (for 16 images, 0.02) and "
    "weight_decay (0.0001).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory to write. Several runs get subdirectories such as scratch/seed-0. Default: one in runs/.",
)
@click.option("--resume", is_flag=True, help="Resume interrupted runs of the same configuration.")
@click.option(
    "--config",
    "config_file",
    metavar="FILE[:RECIPE]",
    help="TOML file that sets any of these options, or a recipe in one, such as "
    "benchmarks/detect/recipes.toml:coco-r50-c4. The command line overrides it.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check all annotations, build the detector, print the resolved configuration, and train nothing.",
)
@click.option(
    "--table",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Train nothing. Print a table of the finished runs below a directory, a row per initialisation.",
)
def detect(
    run: Path | None, out: Path | None, resume: bool, config_file: str | None, dry_run: bool, table: Path | None,
    **given: Any,
) -> None:  # fmt: skip
    """Fine-tune the backbone of RUN as a Mask R-CNN for detection and segmentation.

    RUN is the directory of a finished `idaa-bench run` with a convolutional network. The detector is torchvision's Mask
    R-CNN. All layers are trained, and average precision is measured once, on the test images, after the last step. To
    see what the pretraining is worth, train the same detector from other weights: --init run --init scratch --init
    imagenet.

    \b
    The folder of --data coco:PATH:
      PATH/annotations/instances_train2017.json   and instances_val2017.json; 2017 stands for any ending
      PATH/train2017/, PATH/val2017/              images, or images/train2017/ and images/val2017/

    \b
    Files of a run directory:
      config.toml, record.json, metrics.csv, checkpoints/   as for `idaa-bench run`
      predictions.png                                       boxes and masks, annotated and predicted
      model.pt                                              state dict of the detector

    \b
    Examples:
      idaa-bench detect runs/RUN --data coco:data/coco
      idaa-bench detect runs/RUN --data coco:data/coco --method maskrcnn-c4 --norm frozen
      idaa-bench detect runs/RUN --data coco:PATH --steps 2000 --init run --init scratch --seed 0 --seed 1
      idaa-bench detect --backbone resnet50 --init imagenet --weights resnet50.pth --data coco:PATH
      idaa-bench detect --table runs
    """
    if table:
        from idaa_lightly.bench.arms import read_records
        from idaa_lightly.bench.detect.results import table as table_of

        click.echo(table_of(read_records(table, DetectConfig)))
        return
    inits = given.pop("init") or ()
    given["run"] = str(run) if run else None
    asked = cast(list[DetectConfig], configs(given, config_file, of=DetectConfig))
    every = [replace(config, init=init) for init in inits or (asked[0].init,) for config in asked]
    if len(set(inits)) < len(inits):
        raise UsageError(f"--init is {', '.join(inits)}, but expected different ones")
    if every[0].weights and "imagenet" not in [config.init for config in every]:
        raise UsageError(f"weights is {every[0].weights}, but they are for --init imagenet: add it, or leave them out")
    from idaa_lightly.bench.detect.results import table as table_of
    from idaa_lightly.bench.detect.setup import resolve
    from idaa_lightly.bench.detect.train import prepare
    from idaa_lightly.bench.detect.train import run as train

    resolved = [resolve(config) for config in every]
    if dry_run:
        for config in resolved[:: len(asked)]:
            shown([replace(prepare(config).config, seed=other.seed) for other in asked])
        return
    if supervised(resolved[0]):
        return
    first = resolved[0]
    base = out or Path("runs") / f"detect-{Path(first.data).name}-{first.method}-{first.backbone}-{first.key()}"
    records = []
    for config in resolved:
        folder = base / config.init / f"seed-{config.seed}" if len(resolved) > 1 or out is None else base
        if record := train(config, folder, resume=resume):  # With DDP, only the first process gets the record.
            records.append(record)
    if records:
        click.echo(table_of(records))
        console().print(f"Run directory: {base}", soft_wrap=True, highlight=False)
