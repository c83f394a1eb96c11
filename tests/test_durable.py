"""Files and runs that survive kills, signals, full disks, damage and files of another kind."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from attacks.arena import Command
from click.testing import CliRunner, Result

from idaa_lightly import VAE
from idaa_lightly.cli import main
from idaa_lightly.errors import FileFormatError, RunFolderError
from idaa_lightly.files import atomic_write, claim, load_tensors
from idaa_lightly.vae_cache import cached_vae

RUN = ["run", "--aug", "none", "--data", "folder:images", "--backbone", "resnet9-w2", "--batch-size", "12"]
RUN += ["--epochs", "4", "--accelerator", "cpu"]
HINT = "Repeat the command with --resume to continue after the last finished epoch."


@pytest.fixture(autouse=True)
def images(folder: Path, own_place: None) -> None:
    Path("images").symlink_to(folder)


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(main, [*RUN, *arguments])


def done(*arguments: str) -> str:
    result = bench(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@contextmanager
def when_logged(text: str, act: Callable[[], object]) -> Iterator[None]:
    """Call a function each time a message with a text is logged. Epoch n is logged before its checkpoint is written."""

    class Act(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                act()

    handler = Act()
    logging.getLogger("idaa_lightly").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("idaa_lightly").removeHandler(handler)


def killed_while_writing(path: str) -> None:
    """Write a file in a process that is killed halfway."""
    code = f"""
import os, signal
from idaa_lightly.files import atomic_write
with atomic_write({path!r}) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert not Path(path).exists()


def epoch_of(name: str) -> int:
    return int(torch.load(Path("run/checkpoints", name), weights_only=True)["epoch"]) + 1


def same(first: str, second: str) -> bool:
    a, b = (torch.load(Path(path, "backbone.pt"), weights_only=True) for path in (first, second))
    histories = [json.loads(Path(run, "record.json").read_text())["history"] for run in (first, second)]
    metrics = [Path(run, "metrics.csv").read_text() for run in (first, second)]
    return all(torch.equal(a[name], b[name]) for name in a) and histories[0] == histories[1] and len({*metrics}) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    """Change one bit of the largest tensor."""
    with ZipFile(path) as parts:
        tensor = parts.read(max(parts.infolist(), key=lambda part: part.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(tensor) + len(tensor) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        pytest.param(cut, "last.ckpt is not a checkpoint of this run: ", marks=pytest.mark.slow),
        (flip, "last.ckpt is not a checkpoint of this run"),
        pytest.param(
            Path.unlink, "last.ckpt does not exist; expected a checkpoint of this run. ", marks=pytest.mark.slow
        ),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage: Callable[[Path], None], text: str) -> None:
    """SIGTERM in epoch 4, then damage. The run repeats epoch 3, and equals an uninterrupted one to the bit."""
    done("--out", "whole")
    with when_logged("epoch 4/4", lambda: signal.raise_signal(signal.SIGTERM)):
        stopped = bench("--out", "run")
    assert (stopped.exit_code, stopped.stderr) == (143, f"Interrupted by SIGTERM. {HINT}\n")
    assert [epoch_of(name) for name in ("last.ckpt", "previous.ckpt")] == [3, 2]
    damage(Path("run/checkpoints/last.ckpt"))
    output = done("--out", "run", "--resume")
    assert text in output
    assert "Falling back to previous.ckpt, from an epoch earlier, which is last.ckpt now." in output
    assert "Resuming after epoch 2." in output
    assert same("whole", "run")
    assert [epoch_of(name) for name in ("last.ckpt", "previous.ckpt")] == [4, 3]


def test_two_damaged_checkpoints_are_refused_and_left() -> None:
    done("--out", "run")
    Path("run/record.json").unlink()
    for path in Path("run/checkpoints").iterdir():
        cut(path)
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    refused = bench("--out", "run", "--resume")
    assert refused.exit_code == 1
    assert refused.stderr == (
        "Error: run/checkpoints/last.ckpt is not a checkpoint of this run: RuntimeError, and "
        "run/checkpoints/previous.ckpt is not a checkpoint of this run: RuntimeError: start anew with another --out\n"
    )
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_checkpoint_is_never_overwritten_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with TMPDIR on another file system, where a rename from there is a copy."""
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    monkeypatch.setattr(tempfile, "tempdir", None)
    held: list[int] = []
    with when_logged("epoch 2/4", lambda: held.append(os.open("run/checkpoints/last.ckpt", os.O_RDONLY))):
        done("--out", "run")
    with os.fdopen(held[0], "rb") as file:
        assert torch.load(file, weights_only=True)["epoch"] + 1 == 1
    assert epoch_of("last.ckpt") == 4


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_slurm_end_a_run_that_can_be_resumed(number: signal.Signals) -> None:
    with when_logged("epoch 2/4", lambda: signal.raise_signal(number)):
        stopped = bench("--out", "run")
    assert (stopped.exit_code, stopped.stderr) == (128 + number, f"Interrupted by {number.name}. {HINT}\n")
    assert signal.getsignal(number) == signal.SIG_DFL
    assert "Resuming after epoch 1." in done("--out", "run", "--resume")


def stopped_after_an_epoch(arguments: list[str], *, group: bool) -> str:
    """Send SIGTERM to a process, or also to its children as Slurm does, once it has a checkpoint. Return its output."""
    started = Command(arguments, Path("log"))
    process = started.process
    while process.is_alive() and not list(Path().glob("run/**/last.ckpt")):
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid or 0, signal.SIGTERM)
    process.join(60)
    started.kill()
    output = Path("log").read_text()
    assert process.exitcode == 143, output
    assert "Traceback" not in output
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "group"), [(["--workers", "2"], True), (["--workers", "2"], False), (["--devices", "2"], True)]
)
def test_sigterm_with_several_processes(options: list[str], group: bool) -> None:
    output = stopped_after_an_epoch([*RUN, *options, "--epochs", "300", "--out", "run"], group=group)
    assert f"Interrupted by SIGTERM. {HINT}\n" in output
    assert epoch_of("last.ckpt") < 300


@pytest.mark.slow
def test_sigterm_stops_a_sweep_and_its_run() -> None:
    arguments = ["sweep", *RUN[1:], "--epochs", "300", "--out", "run"]
    output = stopped_after_an_epoch(arguments, group=False)
    assert output.endswith("\nInterrupted by SIGTERM. Repeat the command to continue.\n")
    (out,) = (path.parent for path in Path("run").rglob("config.toml"))
    with claim(out, timeout=60):  # The run has ended, and released its directory.
        assert not (out / "record.json").exists()


def test_a_full_disk_is_one_sentence_and_the_run_resumes() -> None:
    """A limit on the size of files stands in for the disk. Only the checkpoint is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with when_logged("epoch 2/4", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16000, before[1]))):
            full = bench("--out", "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert full.exit_code == 1
    assert full.stderr.endswith(
        "run/checkpoints/last.ckpt cannot be written (File too large): make room or choose another path, then try "
        "again (a run that has begun can be resumed)\n"
    )
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["last.ckpt"]
    assert "Resuming after epoch 1." in done("--out", "run", "--resume")


def test_a_kill_in_the_first_write_does_not_lock_the_folder() -> None:
    killed_while_writing("run/config.toml")
    assert len(list(Path("run").iterdir())) == 1
    done("--out", "run")
    assert not list(Path("run").rglob(".*"))


def test_leftovers_of_dead_processes_are_cleared_and_nothing_else() -> None:
    killed_while_writing("here/a.txt")
    (left,) = Path("here").iterdir()
    old, day = time.time() - 90000, Path("here", left.name.replace(f"-{left.name.split('-')[-2]}-", "-1-"))
    foreign = [Path("here", left.name.replace("tmp-", f"tmp-{host}")) for host in ("young", "old")]
    kept = [day, foreign[0], *(Path("here", name) for name in (".idaa-tmp-x", ".config-abcdefgh.toml", "mine.tmp"))]
    for path in (*kept, foreign[1]):
        path.touch()
    for path in (*kept[2:], foreign[1]):
        os.utime(path, (old, old))
    with atomic_write("here/a.txt") as own:
        assert {*Path("here").iterdir()} == {*kept, Path(own).relative_to(Path.cwd())}
    assert {*Path("here").iterdir()} == {*kept, Path("here/a.txt")}
    assert left not in kept


def test_modes_links_and_the_umask() -> None:
    before = os.umask(0o077)
    try:
        for name in ("private", "shared"):
            with atomic_write(name) as temporary:
                temporary.write_text("1")
            assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
        Path("shared").chmod(0o664)
        Path("link").symlink_to("shared")
        with atomic_write("link") as temporary:
            temporary.write_text("2")
    finally:
        os.umask(before)
    assert Path("link").is_symlink()
    assert Path("shared").read_text() == "2"
    assert stat.S_IMODE(Path("shared").stat().st_mode) == 0o664


def test_a_link_to_nothing_gets_a_file_with_the_format_of_the_link() -> None:
    """NumPy adds the suffix .npz to names without it, so that another file would be written than is renamed."""
    Path("here").mkdir()
    Path("here/x.npz").symlink_to("nowhere")
    with atomic_write("here/x.npz") as temporary:
        np.savez(temporary, a=np.arange(3))
    assert {path.name for path in Path("here").iterdir()} == {"x.npz", "nowhere"}
    with np.load("here/x.npz") as arrays:
        assert arrays["a"].tolist() == [0, 1, 2]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (fifo, "a FIFO"),
        (a_socket, "a socket"),
        (Path.mkdir, "a directory"),
        (lambda path: path.symlink_to("/dev/null"), "a device"),
    ],
    ids=["FIFO", "socket", "directory", "device"],
)
def test_files_of_another_kind_are_neither_opened_nor_replaced(make: Callable[[Path], None], kind: str) -> None:
    make(Path("x.pt"))
    with pytest.raises(FileFormatError, match=f"^x.pt is {kind}, but expected a VAE: choose another path$"):
        load_tensors("x.pt", "a VAE")
    with pytest.raises(FileFormatError, match=f"is {kind}, but expected a regular file"), atomic_write("x.pt"):
        pass
    assert {path.name for path in Path().iterdir()} == {"images", "x.pt"}


@pytest.mark.parametrize("name", ["config.toml", "record.json", "metrics.csv", "checkpoints/last.ckpt"])
def test_a_fifo_in_a_run_folder_is_refused(name: str) -> None:
    with when_logged("epoch 2/4", lambda: signal.raise_signal(signal.SIGTERM)):
        bench("--out", "run")
    Path("run", name).unlink(missing_ok=True)
    os.mkfifo(f"run/{name}")
    refused = bench("--out", "run", "--resume")
    assert refused.exit_code == 1
    assert f"Error: run/{name} is a FIFO, but expected " in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (["run", "--config", "x.toml"], "x.toml", "a TOML file"),
        (["knn", "x.npz"], "x.npz", "features"),
    ],
)
def test_a_fifo_among_the_inputs_is_refused(arguments: list[str], name: str, expected: str) -> None:
    os.mkfifo(name)
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 1
    assert f"{name} is a FIFO, but expected {expected}: choose another path" in " ".join(refused.stderr.split())


def test_a_fifo_among_the_images_is_refused() -> None:
    done("--out", "run", "--epochs", "1")
    shutil.copytree("images", "others")
    os.mkfifo("others/train/red/x.png")
    refused = CliRunner().invoke(main, ["knn", "run", "--data", "folder:others"])
    assert refused.exit_code == 1
    assert "Error: others/train/red/x.png is a FIFO, but expected an image: choose another path\n" in refused.stderr


def test_what_cannot_be_written_is_one_sentence() -> None:
    Path("file").touch()
    with pytest.raises(RunFolderError, match=r"^file/x.txt cannot be written \(File exists\)"):
        atomic_write("file/x.txt").__enter__()


@pytest.mark.parametrize("number", [0, 1])
def test_a_damaged_or_foreign_vae_in_the_cache_is_fitted_again(number: int, caplog: pytest.LogCaptureFixture) -> None:
    fitted: list[int] = []

    def fit(value: float) -> VAE:
        fitted.append(1)
        vae = VAE(16, bottleneck_dim=3, width=4)
        torch.nn.init.constant_(vae.decoder[0].bias, value)
        return vae

    caplog.set_level(logging.INFO, "idaa_lightly")
    keys: list[dict[str, object]] = [{"beta": 0.1, "size": (16, 16)}, {"beta": 1.0}]
    cached_vae(keys[0], Path("cache"), lambda: fit(2.0))
    (path,) = Path("cache").glob("*.pt")
    cached_vae(keys[1], Path("cache"), lambda: fit(2.0))
    (other,) = {*Path("cache").glob("*.pt")} - {path}
    cached_vae(keys[0], Path("cache"), lambda: fit(3.0))
    assert len(fitted) == 2
    if number:  # another VAE, which loads without an error
        path.write_bytes(other.read_bytes())
        path.with_suffix(".json").write_bytes(other.with_suffix(".json").read_bytes())
    else:
        flip(path)
    vae = cached_vae(keys[0], Path("cache"), lambda: fit(4.0))
    assert vae.decoder[0].bias[0] == 4.0
    reason = ("its checksum is wrong", f"{path.stem}.json beside it names other settings")[number]
    assert f"The cached VAE {path} is not used, because {reason}. It is fitted again and replaced." in caplog.text
    assert cached_vae(keys[0], Path("cache"), lambda: fit(5.0)).decoder[0].bias[0] == 4.0


def test_the_cache_is_cleared_when_it_is_used() -> None:
    cached_vae({}, Path("cache"), lambda: VAE(16, bottleneck_dim=3, width=4))
    killed_while_writing("cache/new.pt")
    cached_vae({}, Path("cache"), lambda: pytest.fail("it is cached"))
    assert {path.suffix for path in Path("cache").iterdir()} == {".pt", ".json"}  # neither temporary files nor locks
