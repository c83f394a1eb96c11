"""Cases of damaged, huge or odd image files."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random

from PIL import Image

from attacks.arena import Case
from attacks.files import OTHERS
from attacks.fixture import NONE
from attacks.mutations import damaged

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16", "La", "RGBa")
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "PNG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".webp": "WEBP",
    ".ppm": "PPM",
    ".pgm": "PPM",
}


def images(case: Case) -> None:
    """Replace an image by a damaged or odd one, and embed the folder, decoded at once or one by one."""
    random = case.random
    case.take("images")
    case.take("finished")
    path = random.choice(sorted(Path("images").rglob("*.png")))
    case.outcome.tried = f"{path}: {_odd_image(random, path)}"
    command = ["knn", "finished", "--data", "folder:images"]
    if random.randrange(6) == 0:
        size = random.choice(["8", "16", "100"])
        command = [*NONE, "--epochs", "1", "--image-size", size, "--out", "out", "--backbone", "resnet9-w2"]
    result = case.bench(*command, kept=("images", "finished"))
    if result.exit_code == 1:
        case.expect("images" in result.stderr, f"no path in {result.stderr!a}")


def _odd_image(random: Random, path: Path) -> str:
    suffix = random.choice([".png", ".png", *SUFFIXES])
    size = random.choice([(16, 16), (16, 16), (1, 1), (2, 100), (300, 7), (1, 1_000_000), (9000, 9000), (40, 40)])
    mode = random.choice(MODES)
    mode = "L" if size[0] * size[1] > 10**6 else mode
    buffer = io.BytesIO()
    try:
        image = (
            Image.new("L", size, random.randrange(256)).convert(mode)
            if mode not in ("I;16", "La", "RGBa", "RGBX", "LAB", "HSV")
            else Image.new(mode, size)
        )
        image.save(buffer, SUFFIXES[suffix])
    except (OSError, ValueError, SystemError):  # a format without this mode or size
        mode = "RGB"
        buffer = io.BytesIO()
        Image.new(mode, (16, 16)).save(buffer, SUFFIXES[suffix])
    what, content = f"{mode} {size} as {suffix}", buffer.getvalue()
    if random.randrange(3):
        damage, content = damaged(random, content)
        what += f", {damage}"
    elif random.randrange(6) == 0:
        path.unlink()
        name = random.choice(["a directory", "a FIFO", "a link to nothing", "a link to itself", "a device", "text"])
        OTHERS[name](path)
        return name
    path.unlink()
    path.with_suffix(suffix).write_bytes(content)
    return what
