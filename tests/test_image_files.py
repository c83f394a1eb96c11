"""Image files: compact lists of paths, and decoding to RGB."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from idaa_lightly.errors import DataError
from idaa_lightly.image_files import ImageFiles, decode, list_images, read_list

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def grey(values: np.ndarray) -> np.ndarray:
    return np.stack([values] * 3, axis=2)


# Lists of paths


def touch(*names: str) -> None:
    for name in names:
        path = Path(os.fsdecode(os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * len(name))


def test_names_are_kept_in_two_arrays() -> None:
    files = ImageFiles("data", [b"a.png", b"b/c.png", b"", "ü.png".encode(), b"\xff.png"])
    assert (files.text.nbytes, files.ends.tolist()) == (5 + 7 + 0 + 6 + 5, [5, 12, 12, 18, 23])
    assert list(files) == [Path("data", name) for name in ("a.png", "b/c.png", "", "ü.png", "\udcff.png")]
    assert files[-1] == files[4]
    assert list(files[1:3]) == [files[1], files[2]]
    assert list(files.take(torch.tensor([3, 0, 3]))) == [files[3], files[0], files[3]]
    with pytest.raises(IndexError):
        files[5]


def test_images_are_listed_at_any_depth_in_the_order_of_their_paths() -> None:
    kept = ["in/B.JPG", "in/a/b/c.webp", "in/a/b.png", "in/a b/x.gif", "in/a.tiff", "in/z/ü.png"]
    touch(*kept, "in/notes.txt", "in/.hidden.png", "in/.cache/x.png", "in/a/png", "in/empty/list.json")
    files = list_images(Path("in"))
    assert list(files) == sorted(map(Path, kept))
    assert files.name(0) == b"B.JPG"
    assert not list_images(Path("in/empty"))


def test_links_are_followed_but_not_in_circles() -> None:
    touch("in/a/1.png", "other/2.png")
    Path("in/a/back").symlink_to(Path("in").resolve())
    Path("in/link").symlink_to(Path("other").resolve())
    assert list(list_images(Path("in"))) == [Path("in/a/1.png"), Path("in/link/2.png")]


def test_files_are_identified_by_name_and_size() -> None:
    touch("in/a.png", "in/b/c.png")
    files = list_images(Path("in"))
    assert list(files.identities()) == [b"a.png:8;", b"b/c.png:10;"]
    Path("in").rename("moved")
    with pytest.raises(DataError, match=r"cannot read the image in/a.png \(No such file or directory\): repair it"):
        list(files.identities())
    assert list(list_images(Path("moved")).identities()) == [b"a.png:8;", b"b/c.png:10;"]


def test_a_list_is_relative_to_its_folder() -> None:
    touch("in/a.png")
    Path("in/list.txt").write_bytes(b"a.png\r\n\n../up.png \n/abs/\xff.png")
    assert list(read_list(Path("in/list.txt"))) == [Path("in/a.png"), Path("in/../up.png"), Path("/abs/\udcff.png")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_windows(encoding: str) -> None:
    Path("list.txt").write_bytes("a.png\r\nb.png\r\n".encode(encoding))
    if encoding == "utf-8-sig":
        assert list(read_list(Path("list.txt"))) == [Path("a.png"), Path("b.png")]
    else:
        text = "^list.txt is not in UTF-8, but expected one path per line in UTF-8: save it as UTF-8$"
        with pytest.raises(DataError, match=text):
            read_list(Path("list.txt"))


# decode


PALETTE = [(255, 0, 0), (0, 255, 0), (1, 2, 3), (250, 128, 7)]
INDICES = (np.arange(15, dtype=np.uint8) % 4).reshape(3, 5)
COLOURS = np.array(PALETTE, np.uint8)[INDICES]


def palette_image() -> Image.Image:
    image = Image.fromarray(INDICES).convert("P")
    image.putdata(INDICES.ravel().tolist())
    image.putpalette([value for colour in PALETTE for value in colour])
    return image


def with_alpha(array: np.ndarray, mode: str) -> Image.Image:
    image = Image.fromarray(array).convert(mode)
    image.putalpha(Image.fromarray(np.full(array.shape[:2], 77, np.uint8)))
    image.putpixel((0, 0), (*np.atleast_1d(array[0, 0]).tolist(), 0))
    return image


BILEVEL = (RAMP % 3 == 0).astype(np.uint8) * 255
FILES: dict[str, tuple[Callable[[], Image.Image], str, np.ndarray, dict[str, Any]]] = {
    "rgb.png": (lambda: Image.fromarray(COLOURS), "RGB", COLOURS, {}),
    "grey.png": (lambda: Image.fromarray(RAMP), "L", grey(RAMP), {}),
    "palette.png": (palette_image, "P", COLOURS, {}),
    "palette-transparent.png": (palette_image, "P", COLOURS, {"transparency": 1}),
    "alpha.png": (lambda: with_alpha(COLOURS, "RGB"), "RGBA", COLOURS, {}),
    "grey-alpha.png": (lambda: with_alpha(RAMP, "L"), "LA", grey(RAMP), {}),
    "deep.png": (lambda: Image.fromarray(RAMP.astype(np.uint16) * 257), "I;16", grey(RAMP), {}),
    "deep.tif": (lambda: Image.fromarray(RAMP.astype(np.uint16) * 257), "I;16", grey(RAMP), {}),
    "bilevel.png": (lambda: Image.fromarray(BILEVEL).convert("1"), "1", grey(BILEVEL), {}),
}


@pytest.mark.parametrize("name", FILES)
def test_decode(name: str) -> None:
    image, mode, expected, options = FILES[name]
    image().save(name, **options)
    pixels, notes = decode(Path(name))
    assert notes == (() if mode == "RGB" else (f"converted from {mode} to RGB",))
    assert (pixels.dtype, pixels.shape) == (np.uint8, expected.shape)
    assert np.array_equal(pixels, expected)


def test_decode_rounds_16_bits() -> None:
    Image.fromarray(np.array([[0, 128, 129, 32767, 65535]], np.uint16)).save("deep.png")
    pixels, _ = decode(Path("deep.png"))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 127, 255]  # 128/257 = 0.498, 129/257 = 0.502, 32767/257 = 127.498


def test_decode_fractions() -> None:
    """The largest finite value becomes 255. NaN, as in depth maps, infinity and negative values become 0."""
    values = [[0.0, 1.0, 4.0, float("nan")], [2.0, float("inf"), -1.0, float("-inf")]]
    Image.fromarray(np.array(values, np.float32)).save("fractions.tif")
    pixels, notes = decode(Path("fractions.tif"))
    assert pixels[..., 0].tolist() == [[0, 64, 255, 0], [128, 0, 0, 0]]
    assert notes == ("converted from F to RGB",)


def test_decode_cmyk() -> None:
    """Each channel is 255 (1 − ink)(1 − black): 255 · 204/255, 127 · 204/255 and 0."""
    Image.new("CMYK", (16, 8), (0, 128, 255, 51)).save("ink.jpg", quality=100)
    pixels, notes = decode(Path("ink.jpg"))
    assert (notes, pixels.dtype, pixels.shape) == (("converted from CMYK to RGB",), np.uint8, (8, 16, 3))
    assert np.abs(pixels.astype(int) - (204, 102, 0)).max() <= 3


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""How a stored image becomes upright, by its EXIF orientation (TIFF 6.0, p. 36)."""


def with_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_images_are_turned_by_their_orientation(name: str, orientation: int) -> None:
    Image.fromarray(COLOURS).save(name, exif=with_exif(orientation), lossless=True)
    pixels, notes = decode(Path(name))
    assert np.array_equal(pixels, TURNS[orientation](COLOURS))
    if name != "a.tif":  # Pillow turns these by itself.
        assert notes == (("turned by their EXIF orientation",) if orientation > 1 else ())


def test_damaged_metadata_does_not_matter() -> None:
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    image.save("plain.jpg")
    plain, _ = decode(Path("plain.jpg"))
    image.save("a.jpg", exif=with_exif(6))
    whole = Path("a.jpg").read_bytes()
    start = whole.index(b"Exif")
    for place in range(start, start + len(with_exif(6).tobytes())):
        Path("a.jpg").write_bytes(whole[:place] + bytes([whole[place] ^ 0xB5]) + whole[place + 1 :])
        pixels, _ = decode(Path("a.jpg"))
        assert any(np.array_equal(pixels, turn(plain)) for turn in TURNS.values())


def test_truncated_animations() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save("whole.gif", save_all=True, append_images=frames[1:])
    content = Path("whole.gif").read_bytes()
    for length in range(0, len(content), 7):
        Path("a.gif").write_bytes(content[:length])
        with suppress(DataError):  # The first frame may be whole.
            decode(Path("a.gif"))


def test_a_limit_above_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    Image.new("L", (10, 10)).save("a.png")
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_PIXELS", "40")
    with pytest.raises(DataError, match=r"IDAA_LIGHTLY_MAX_PIXELS=100|could be decompression bomb"):
        decode(Path("a.png"))
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_PIXELS", "100")
    assert decode(Path("a.png"))[0].shape == (10, 10, 3)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.png"])
def test_of_several_frames_the_first_one_is_decoded(name: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(name, save_all=True, append_images=frames[1:], lossless=True)
    pixels, notes = decode(Path(name))
    assert np.array_equal(pixels, np.full((3, 4, 3), (255, 0, 0), np.uint8))
    assert "reduced to their first frame" in notes
