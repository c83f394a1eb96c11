"""Seconds to the first step, and resident memory, of `idaa-bench run` on very many images without labels.

python benchmarks/many_images.py --images 1000000 --kind files

The images are hard links to a few JPEG files, or small members of tar files, in a temporary directory.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console

FOLDER, LINKS, SHARD = 1000, 10_000, 10_000
"""Images per folder, hard links per file, and images per shard. File systems limit the first two."""


class Reached(Exception):
    """Raised at a training step."""


def jpeg(number: int) -> bytes:
    """Return a JPEG of 64 px."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64)).save(file, "jpeg")
    return file.getvalue()


def make_files(root: Path, images: int) -> str:
    """Write hard links in folders, and return the data set's name."""
    for index in range(images):
        folder = root / f"n{index // FOLDER:05}"
        if index % FOLDER == 0:
            folder.mkdir()
        if index % LINKS == 0:
            first = folder / f"ILSVRC2012_{index:08}.JPEG"
            first.write_bytes(jpeg(index))
        else:
            os.link(first, folder / f"ILSVRC2012_{index:08}.JPEG")
    return f"images:{root}"


def make_shards(root: Path, images: int) -> str:
    """Write shards, and return the data set's name."""
    count = -(-images // SHARD)
    for shard in range(count):
        content = jpeg(shard)
        with tarfile.open(root / f"{shard:05}.tar", "w") as tar:
            for index in range(shard * SHARD, min((shard + 1) * SHARD, images)):
                member = tarfile.TarInfo(f"{index:08}.jpg")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return f"wds:{root}/{{00000..{count - 1:05}}}.tar"


def memory(process: str) -> dict[str, int]:
    """Return the resident memory of a process in MB, and its share that no other process uses as well."""
    lines = [line.split() for line in Path("/proc", process, "smaps_rollup").read_text().splitlines()[1:]]
    kilobytes = {line[0]: int(line[1]) for line in lines}
    own = kilobytes["Private_Clean:"] + kilobytes["Private_Dirty:"]
    return {"resident": kilobytes["Rss:"] // 1000, "own": own // 1000}


@click.command()
@click.option("--images", default=200_000, show_default=True, help="Number of images.")
@click.option("--kind", type=click.Choice(["files", "shards"]), default="files", show_default=True)
@click.option("--workers", default=2, show_default=True, help="Processes of the data loader.")
@click.option("--steps", default=20, show_default=True, help="Steps before the memory is read.")
@click.option("--place", type=click.Path(path_type=Path), help="Directory for the images. Default: that of TMPDIR.")
def main(images: int, kind: str, workers: int, steps: int, place: Path | None) -> None:
    """Measure the start of a run. Its images stay on disk. Needs Linux."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        (root := Path(folder, "images")).mkdir()
        name = make_shards(root, images) if kind == "shards" else make_files(root, images)
        begun, spent, found = time.perf_counter(), time.process_time(), {"images": images, "kind": kind}
        from idaa_lightly.bench.config import RunConfig
        from idaa_lightly.bench.run.train import run
        from idaa_lightly.training import SelfSupervised

        found["imports_s"] = round(time.perf_counter() - begun, 1)
        step, seen = SelfSupervised.training_step, []

        def watched(self: Any, *args: Any) -> Any:
            seen.append((time.perf_counter() - begun, time.process_time() - spent))
            if len(seen) < steps:
                return step(self, *args)
            found.update(first_step_s=round(seen[0][0], 1), of_it_cpu_s=round(seen[0][1], 1))
            found["main_MB"] = memory("self")
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            found["workers_MB"] = [memory(child) for child in children]
            raise Reached

        SelfSupervised.training_step = watched  # type: ignore[method-assign]
        config = RunConfig(
            aug="none", data=name, image_size=112, backbone="resnet9-w8", batch_size=32, epochs=1, workers=workers
        )
        try:
            run(config, Path(folder) / "run")
        except Reached:
            Console(soft_wrap=True).print(found)


if __name__ == "__main__":
    main()
