"""Smoke runs: methods × backbones through the command line, a few steps each, as a Markdown table.

python benchmarks/smoke.py --out docs/smoke.md

The table shows that every pair trains, is evaluated and is exported. Its accuracies after a few steps mean nothing.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from pathlib import Path

import click
from click.testing import CliRunner

from idaa_lightly.cli import main as idaa_bench

METHODS = "simclr,simsiam,plain,uel,debiased,hcl"
BACKBONES = "resnet9-w16,test_vit,test_convnext"
HEADER = """# Smoke runs

Methods × backbones with `--aug {aug}`, on {images} images of digits at {size} px, {epochs} epochs of {steps} steps with
32 images each, on the CPU. A cell shows the mean loss of the first and the last epoch. Every network was then exported
by `idaa-bench export`, and loaded by the printed lines. Accuracies after so few steps mean nothing, so they are left
out. `{command}` writes this page. It took {seconds:.0f} seconds of CPU time.

| method | {backbones} |
| --- |{rule}
"""


@click.command()
@click.option("--methods", default=METHODS, show_default=True, help="Methods.")
@click.option("--backbones", default=BACKBONES, show_default=True, help="Backbones.")
@click.option("--aug", default="clae", show_default=True, help="Augmentation.")
@click.option("--images", default=192, show_default=True, help="Training images.")
@click.option("--epochs", default=2, show_default=True, help="Epochs.")
@click.option("--out", type=click.Path(path_type=Path), help="Page to write. Default: print it.")
def main(methods: str, backbones: str, aug: str, images: int, epochs: int, out: Path | None) -> None:
    """Train every pair for a few steps, and write a table."""
    names, rows = backbones.split(","), []
    with tempfile.TemporaryDirectory() as folder:
        for method in methods.split(","):
            cells = []
            for backbone in names:
                place = Path(folder, method, backbone)
                command = (
                    f"run --method {method} --aug {aug} --backbone {backbone} --limit-train {images} --batch-size 32"
                )
                _invoke(*command.split(), "--epochs", str(epochs), "--accelerator", "cpu", "--out", str(place))
                cells.append(_cell(place))
                click.echo(f"{method} × {backbone}: {cells[-1]}", err=True)
            rows.append(f"| `{method}` | {' | '.join(cells)} |")
        record = json.loads((place / "record.json").read_text())
    text = HEADER.format(
        aug=aug, images=images, epochs=epochs, steps=images // 32, size=record["data"]["image_size"],
        backbones=" | ".join(f"`{name}`" for name in names), rule=" --- |" * len(names),
        command=f"python benchmarks/smoke.py {shlex.join(sys.argv[1:])}", seconds=time.process_time(),
    ) + "\n".join(rows) + "\n"  # fmt: skip
    if out:
        out.write_text(text)
    else:
        click.echo(text)


def _cell(run: Path) -> str:
    """Return the losses of a run, after its backbone was exported and loaded again."""
    import torch

    exported = run / "exported.pth"
    lines = _invoke("export", str(run), "--out", str(exported)).split("To load it:\n\n")[1]
    made: dict[str, torch.nn.Module] = {}
    exec(lines, made)
    record = json.loads((run / "record.json").read_text())
    size = record["data"]["image_size"]
    with torch.no_grad():
        assert made["model"](torch.zeros(2, 3, size, size)).ndim == 2
    column = (run / "metrics.csv").read_text().splitlines()
    values = [line.split(",")[column[0].split(",").index("loss/total_epoch")] for line in column[1:]]
    losses = [float(value) for value in values if value]
    return f"{losses[0]:.2f} → {losses[-1]:.2f}"


def _invoke(*arguments: str) -> str:
    result = CliRunner().invoke(idaa_bench, arguments, catch_exceptions=False)
    if result.exit_code:
        raise click.ClickException(f"idaa-bench {' '.join(arguments)}: {result.output}")
    return result.output


if __name__ == "__main__":
    main()
