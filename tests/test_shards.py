"""WebDataset shards: their index, runs on them, and shards that are refused."""

from __future__ import annotations

import gc
import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_bad_input import bench, done, refused

from idaa_lightly.data import load_data
from idaa_lightly.errors import DataError, IDAAError, MissingExtraError, UsageError
from idaa_lightly.image_files import Member, decode
from idaa_lightly.loading import ViewDataset, view_loader
from idaa_lightly.shards import NONE, read_shards

OPTIONS = ["--aug", "none", "--backbone", "resnet9-w2", "--batch-size", "4", "--accelerator", "cpu", "--epochs", "2"]


def png(number: int, size: int = 8) -> bytes:
    pixels = np.random.default_rng(number).integers(256, size=(size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write(path: str, members: Iterable[tuple[str, bytes]]) -> Path:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return place


def shards(folder: str = "data", *, images: int = 12, classes: int = 3, size: int = 8) -> str:
    """Write two shards, and return their pattern. Without classes, there are no .cls members."""
    for shard in range(2):
        numbers = range(shard * images // 2, (shard + 1) * images // 2)
        members = [(f"{number:04}.png", png(number, size)) for number in numbers]
        members += [(f"{number:04}.cls", b"%d\n" % (10 * (number % classes))) for number in numbers if classes]
        write(f"{folder}/part-{shard}.tar", members)
    return f"{folder}/part-{{0..1}}.tar"


def test_images_and_classes_are_listed_without_being_read() -> None:
    images = [("a/b.jpg", b"12345"), ("./c.PNG", b"123"), ("ü.left.webp", b"1234567")]
    others = [
        ("a/b.cls", b" 7 "),
        ("a/b.json", b"{}"),
        ("ü.CLS", b"0"),
        ("c.txt", b"no"),
        ("._c.png", b""),
        ("png", b""),
    ]
    write("in/x.tar", [*others[:3], *images, *others[3:], ("./c.cls", b"123456789")])
    files, classes = read_shards("in/x.tar")
    shard = Path("in/x.tar").absolute()
    assert [(file.shard, file.name, file.read().getvalue()) for file in files] == [
        (shard, name, content) for name, content in images
    ]
    assert classes.tolist() == [7, 123456789, 0]
    assert str(files[0]) == f"a/b.jpg of {shard}"
    assert files.take(torch.tensor([2, 0]))[:1][0] == files[2]


def test_images_are_identified_by_shard_name_and_size() -> None:
    write("in/x.tar", [("a.png", b"12345")])
    write("in/sub/y.tar", [("a.png", b"1"), ("b.png", b"123")])
    write("moved/x.tar", [("other", b"moves the offset"), ("a.png", b"12345")])
    files, classes = read_shards("in/{x,sub/y}.tar")
    assert list(files.identities()) == [b"x.tar/a.png:5;", b"sub/y.tar/a.png:1;", b"sub/y.tar/b.png:3;"]
    assert classes.tolist() == [NONE] * 3
    assert list(read_shards("moved/x.tar")[0].identities()) == [b"x.tar/a.png:5;"]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # WebDataset closes its files when it is deleted.
def test_the_index_is_that_of_webdataset() -> None:
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter("w-%02d.tar", maxcount=3, verbose=0) as sink:
        for number in range(7):
            sink.write({"__key__": f"k/{number}", "png": png(number), "cls": number % 2, "json": {"a": 1}})
    files, classes = read_shards("w-{00..02}.tar")
    found = [(file.name, file.read().getvalue(), label) for file, label in zip(files, classes.tolist(), strict=True)]
    samples = list(wds.WebDataset("w-{00..02}.tar", shardshuffle=False))
    gc.collect()
    assert found == [(f"{sample['__key__']}.png", sample["png"], int(sample["cls"])) for sample in samples]
    assert len(found) == 7


def test_shards_hold_the_images_of_a_folder(folder: Path) -> None:
    paths = sorted((folder / "train").glob("*/*.png"))
    members = [(f"{path.parent.name}-{path.name}", path.read_bytes()) for path in paths]
    names = sorted({path.parent.name for path in paths})
    classes = [(f"{path.parent.name}-{path.stem}.cls", b"%d" % names.index(path.parent.name)) for path in paths]
    write("all.tar", members + classes)
    one, other = load_data("wds:all.tar"), load_data(f"folder:{folder}/train")
    assert (one.classes, one.normalize, one.image_size) == (("0", "1", "2"), other.normalize, 16)
    for split in ("train", "test"):
        assert torch.equal(getattr(one, split).pixels, getattr(other, split).pixels)
        assert torch.equal(getattr(one, split).labels, getattr(other, split).labels)
    large = load_data("wds:all.tar", image_size=224)
    assert large.train.pixels is None
    assert np.array_equal(large.train[0], decode(paths[0])[0])


def test_shards_may_have_no_classes_or_one() -> None:
    data = load_data(f"wds:{shards(classes=0)}")
    assert (len(data.train), len(data.test), data.classes, data.notes) == (12, 0, (), ())
    data = load_data(f"wds:{shards(classes=1)}")
    assert (len(data.train), len(data.test), data.classes) == (12, 0, ())
    assert "has images of only one class, 0, so that all its images are treated as unlabelled" in data.notes[0]
    data = load_data(f"wds:{shards()}")
    assert (len(data.train), len(data.test), data.classes) == (9, 3, ("0", "10", "20"))


def test_ranks_share_the_images() -> None:
    data = load_data(f"wds:{shards(classes=0)}", image_size=100)
    views = ViewDataset(data.train, lambda image: [torch.from_numpy(np.array(image))], seed=0)
    ranks = [view_loader(views, 3, workers=rank, ranks=2, rank=rank) for rank in range(2)]
    found = [image.numpy().tobytes() for loader in ranks for (batch,), _ in loader for image in batch]
    assert sorted(found) == sorted(np.asarray(data.train[index]).tobytes() for index in range(12))


@pytest.mark.slow
def test_a_run_on_shards_resumes_to_the_bit() -> None:
    """The images are too large to stay in memory, so each is read from its shard in every epoch."""
    data = [
        "--data",
        f"wds:{shards(size=100, images=16, classes=0)}",
        "--eval-data",
        f"wds:{shards('other', images=30)}",
    ]
    options = ["run", *data, *OPTIONS, "--image-size", "100", "--view-size", "16", "--out", "run"]
    done(bench(*options))
    record, weights = json.loads(Path("run/record.json").read_text()), torch.load("run/backbone.pt", weights_only=True)
    assert (record["data"]["train"], record["eval_data"]["train"], record["eval_data"]["test"]) == (16, 24, 6)
    Path("run/checkpoints/previous.ckpt").rename("run/checkpoints/last.ckpt")
    Path("run/record.json").unlink()
    assert "Resuming after epoch 1" in done(bench(*options, "--resume", "--workers", "2")).stdout
    assert json.loads(Path("run/record.json").read_text())["history"] == record["history"]
    torch.testing.assert_close(torch.load("run/backbone.pt", weights_only=True), weights, rtol=0, atol=0)
    Path("run/record.json").unlink()
    shards(size=99, images=16, classes=0)
    refused(bench(*options, "--resume"), 1, "changed after this run was begun")


def test_images_of_a_shard_that_cannot_be_decoded() -> None:
    write("x.tar", [("a.png", png(0)), ("b.png", png(1)[:60]), ("c.png", b"text")])
    where = Path.cwd() / "x.tar"
    for name, reason in (("b", "image file is truncated"), ("c", "it has no known image format")):
        with pytest.raises(DataError, match=rf"cannot read the image {name}.png of {where} \(.*{reason}"):
            decode(Member(where, f"{name}.png", *_place(where, f"{name}.png")))
    refused(bench("run", "--data", "wds:x.tar", *OPTIONS), 1, f"cannot read the image c.png of {where} (")
    assert not Path("runs").exists()


def _place(shard: Path, name: str) -> tuple[int, int]:
    with tarfile.open(shard) as tar:
        member = tar.getmember(name)
        return member.offset_data, member.size


def _linked() -> None:
    write("x.tar", [("a.png", png(0))])
    with tarfile.open("x.tar", "a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)


def _zipped() -> None:
    with tarfile.open("x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))


def _members(*members: tuple[str, bytes]) -> Callable[[], object]:
    return lambda: write("x.tar", members)


NO_TAR = "x.tar ({}): expected a whole and uncompressed tar file"
FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (lambda: None, NO_TAR.format("No such file or directory")),
    "directory": (lambda: Path("x.tar").mkdir(), "x.tar is a directory, but expected a shard"),
    "empty file": (lambda: Path("x.tar").touch(), NO_TAR.format("empty file")),
    "text": (lambda: Path("x.tar").write_text("no tar" * 200), NO_TAR.format("invalid header")),
    "compressed": (_zipped, NO_TAR.format("truncated header")),
    "empty tar": (_members(), "x.tar holds no images; expected members such as 0001.jpg"),
    "no image": (_members(("a.txt", b"")), "x.tar holds no images; expected members such as 0001.jpg"),
    "link": (_linked, "b.png of {here}/x.tar is a link or a directory, but expected a file"),
    "two images": (_members(("a.png", b""), ("a.seg.png", b"")), "a.seg.png of {here}/x.tar repeats the key 'a'"),
    "two classes": (_members(("a.cls", b"1"), ("a.cls", b"1")), "a.cls of {here}/x.tar repeats the key 'a'"),
    "word": (
        _members(("a.png", b""), ("a.cls", b"cat")),
        "a.cls of {here}/x.tar holds b'cat', but expected the number",
    ),
    "negative": (_members(("a.png", b""), ("a.cls", b"-1")), "a.cls of {here}/x.tar holds b'-1', but expected the"),
    "huge": (_members(("a.cls", b"9" * 30)), "a.cls of {here}/x.tar holds b'9999999999999999', but expected the"),
    "some classes": (
        _members(("a.png", b""), ("b.png", b""), ("a.cls", b"1")),
        "b.png of {here}/x.tar has no class, but other images have one: add a .cls file for each image or for none",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_shards_that_are_refused(fault: str) -> None:
    make, text = FAULTS[fault]
    make()
    refused(bench("run", "--data", "wds:x.tar", *OPTIONS), 1, text.format(here=Path.cwd()))


def test_a_truncated_shard_is_refused_wherever_it_ends() -> None:
    whole = write("x.tar", [("a.png", png(0)), ("b.png", png(1, 16)), ("c.cls", b"1")]).read_bytes()
    end = whole.rindex(b"1") + 1
    for length in (*range(1, end, 97), 512, 1024, end, -(-end // 512) * 512):
        Path("x.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cannot read the shard .*/x.tar \(.*: expected a whole and uncompressed"):
            read_shards("x.tar")


def test_a_damaged_shard_is_read_or_refused() -> None:
    whole = write("x.tar", [("a.png", b"1"), ("a.cls", b"1"), ("ü" * 90 + ".png", b"2")]).read_bytes()
    rng, refusals = np.random.default_rng(0), 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(6 * 512, size=3):
            damaged[place] = rng.integers(256)
        Path("x.tar").write_bytes(damaged)
        try:
            read_shards("x.tar")
        except IDAAError:
            refusals += 1
    assert refusals > 20


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (
            "https://host/x-{0..9}.tar",
            "https://host/x-{0..9}.tar is not on this machine, but shards are read from disk",
        ),
        ("pipe:cat x.tar", "pipe:cat x.tar is not on this machine"),
        ("x-{0..9.tar", "x-{0..9.tar cannot be expanded (Unbalanced braces"),
        ("x-{0..9}}.tar", "x-{0..9}}.tar cannot be expanded (Unbalanced braces"),
    ],
)
def test_patterns_that_are_refused(pattern: str, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_shards(pattern)
    assert str(caught.value).startswith(text)


def test_only_braces_need_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = shards(classes=0)
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    assert len(read_shards("data/part-0.tar")[0]) == 6
    with pytest.raises(MissingExtraError, match="to use --data wds: with braces"):
        read_shards(pattern)
