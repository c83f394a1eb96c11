"""Input that is refused at the door: images that would fill the memory, seeds, paths and machines without space."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from test_bad_input import SMALL_VAE, TINY, arrays, bench, done, refused, run
from torch import Tensor, nn

from idaa_lightly import AdversarialLoss, Viewmaker
from idaa_lightly.bench.run.fitting import fit
from idaa_lightly.errors import DataError, ModelError, PluginError, UsageError
from idaa_lightly.image_files import decode
from idaa_lightly.plugin import PairMethod
from idaa_lightly.training import SelfSupervised
from idaa_lightly_plugins.augmentations.none import NoAugmentation


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((1, 1_000_000), ["1 × 1000000 px, but expected an aspect ratio of 50 or less", "MAX_ASPECT=1000000"]),
        ((102, 2), ["102 × 2 px, but expected an aspect ratio of 50 or less", "IDAA_LIGHTLY_MAX_ASPECT=51"]),
        ((8_000, 8_000), ["8000 × 8000 px, but expected a number of pixels of 5e+07 or less", "MAX_PIXELS=64000000"]),
    ],
)
def test_small_files_of_huge_images_are_refused(own_folder: Path, size: tuple[int, int], words: list[str]) -> None:
    path = sorted((own_folder / "train/red").iterdir())[-1]
    Image.new("1", size).save(path)
    assert path.stat().st_size < 20_000
    for options in ((), ("--image-size", 16)):
        refused(run(own_folder, *options, "--out", "out"), 1, f"the image {path} has ", *words)
    assert not Path("out").exists()


def test_the_bounds_of_images_can_be_raised(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sorted((own_folder / "train/red").iterdir())[-1]
    Image.new("1", (102, 2)).save(path)
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_ASPECT", "51")
    done(run(own_folder, "--image-size", 16, "--out", "out"))
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_PIXELS", "203")
    with pytest.raises(DataError, match="number of pixels of 203 or less"):
        decode(path)
    monkeypatch.setenv("IDAA_LIGHTLY_MAX_PIXELS", "many")
    with pytest.raises(UsageError, match="IDAA_LIGHTLY_MAX_PIXELS is 'many', but expected float, above 0"):
        decode(path)


# Losses without a gradient


def test_a_batch_of_one_is_refused(folder: Path) -> None:
    for options in ((), ("--dry-run",)):
        refused(
            run(folder, "--batch-size", 1, "--out", "out", *options), 2, "batch_size is 1", "expected int, 2 or more"
        )
    assert not Path("out").exists()


@pytest.mark.parametrize("aug", ["none", "clae"])
def test_a_gradient_of_zero_is_refused(folder: Path, aug: str) -> None:
    result = run(folder, "--set", "method.temperature=1e60", "--out", "out", aug=aug)
    refused(result, 2, "the gradient of the first step is exactly zero", "temperature too large")
    assert not Path("out/record.json").exists()


class Detached(PairMethod):
    """Method whose loss forgets its gradient."""

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__(backbone, num_features)
        self.head, self.criterion = nn.Identity(), nn.MSELoss()

    def loss(self, anchor: Tensor, positive: Tensor, *others: Tensor) -> Tensor:
        return super().loss(anchor, positive).detach()

    transform = optimizer = None  # type: ignore[assignment]


def test_a_loss_without_a_gradient_is_refused() -> None:
    method = Detached(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), 4)
    module = SelfSupervised(method, NoAugmentation(), epochs=1, steps_per_epoch=1, seed=0)
    with pytest.raises(ModelError, match=r"^the loss of Detached with \w+ has no gradient, but expected one"):
        module.losses(torch.rand(3, 3, 2, 2), torch.rand(3, 3, 2, 2))


class Wayward(PairMethod):
    """Method that trains a network of its own, by an optimiser of its own."""

    def __init__(self, backbone: nn.Module, num_features: int) -> None:
        super().__init__(backbone, num_features)
        self.head, self.criterion = nn.Identity(), nn.MSELoss()
        self.other = copy.deepcopy(backbone)

    def embed(self, images: Tensor) -> Tensor:
        return self.other(images)

    def optimizer(self, parameters: Any, epochs: int, steps_per_epoch: int) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1), None

    transform = None  # type: ignore[assignment]


def test_a_method_that_does_not_train_what_it_should_is_refused() -> None:
    method = Wayward(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), 4)
    normalize = {"mean": [0.5] * 3, "std": [0.25] * 3}
    module = SelfSupervised(method, NoAugmentation(), epochs=1, steps_per_epoch=1, seed=0)
    module.objective = AdversarialLoss(method.loss, Viewmaker(normalize))
    text = "the optimizer of Wayward leaves out parameters of AdversarialLoss, but expected all groups that"
    with pytest.raises(ModelError, match=f"^{re.escape(text)}"):
        module.configure_optimizers()
    module.losses(*torch.rand(2, 3, 3, 16, 16)).total.backward()
    with pytest.raises(
        ModelError, match=r"^no parameter of the backbone has a gradient, but expected Wayward to train"
    ):
        module.on_after_backward()


@pytest.mark.parametrize("facts", [{"mean": {"value": torch.tensor(3.0)}}, {"flops": 10}])
def test_facts_of_the_fitting_are_checked_before_the_training(facts: Any) -> None:
    class Fitted(NoAugmentation):
        def fitted(self) -> dict[str, Any]:
            return facts

    with pytest.raises(PluginError, match=r"^fitted\(\) of Fitted returned .*, but expected a dict of dicts of JSON"):
        fit(Fitted(), SimpleNamespace(device=torch.device("cpu")), "32-true")  # type: ignore[arg-type]


# Values that only the construction refuses, seeds and sizes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "method.jitter=3"], ["jitter is 3.0, but expected float, 0 to 2.5"]),
        (["--set", "method.temperature=nan"], ["temperature is nan, but expected float, above 0"]),
        (["--set", "method.projection_dim=1000000000000"], ["the memory does not suffice (tried to allocate 32000000"]),
        (["--seed", 2**63], [f"seed is {2**63}, but expected int, 0 to below {2**63}"]),
        (["--seed", -1], ["seed is -1, but expected int, 0 to below"]),
        (["--image-size", 3 * 10**9], ["image_size is 3000000000, but expected int, 8 to 16384"]),
        (["--backbone", "resnet81"], ["no backbone 'resnet81'", "Did you mean 'resnet18'?"]),
    ],
)
def test_a_rehearsal_refuses_what_the_run_would_refuse(folder: Path, arguments: list[object], words: list[str]) -> None:
    for result in (run(folder, *arguments, "--dry-run"), run(folder, *arguments, "--out", "out")):
        assert result.exit_code in (1, 2)
        refused(result, result.exit_code, words[0].partition("(")[0], *words[1:])
    refused(run(folder, *arguments, "--dry-run"), result.exit_code, *words)
    assert not list(Path().iterdir())


def test_a_sweep_rehearses_its_runs(folder: Path) -> None:
    sweep = ("sweep", "--print-jobs", "--data", f"folder:{folder}", *TINY)
    refused(
        bench(*sweep, "--aug", "none", "--set", "method.jitter=0.1,3"), 2, "jitter is 3.0, but expected float, 0 to"
    )
    refused(bench(*sweep, "--aug", "none", "--set", "method.projection_dim=1000000000000"), 1, "the memory does not")
    refused(bench(*sweep, "--seeds", "0-99999999999999"), 2, "of up to 10000 seeds")


@pytest.mark.parametrize("command", [["linear", "x.npz"], ["finetune", "x"]])
def test_seeds_of_evaluations(command: list[str]) -> None:
    result = bench(*command, "--seed", 2**64)
    assert result.exit_code == 2
    assert f"Error: Invalid value for '--seed': {2**64} is not in the range" in result.stderr


def test_the_settings_of_an_index_are_tried_before_the_search() -> None:
    pytest.importorskip("faiss")
    arrays()(Path("x.npz"))
    sentence = refused(bench("knn", "x.npz", "--index", "IVF1,Flat;nprobe=-1"), 2, "'IVF1,Flat;nprobe=-1'", "FAISS")
    assert ".cpp" not in sentence


def test_labels_that_would_fill_the_memory() -> None:
    arrays(train_labels=torch.arange(9).numpy() * 2**40)(Path("x.npz"))
    for command in ("knn", "linear"):
        refused(bench(command, "x.npz"), 1, "x.npz: train_labels has 8796093022208, but expected less than 10000000")


def test_a_number_beyond_32_bits(folder: Path) -> None:
    result = run(folder, "--set", "method.lr=1e300", "--out", "out", aug="clae")
    refused(result, 2, "an option is too large for numbers of 32 bits", "lower the learning rate, eps or a weight")
    assert not Path("out/record.json").exists()
    result = run(folder, "--set", "aug.eps=1e300", "--out", "kept", aug="clae")
    assert "Warning: the attack became NaN or infinite for 32 samples" in done(result).stdout


def test_a_size_beyond_64_bits() -> None:
    result = bench("run", "--dry-run", "--set", f"method.projection_dim={2**63}")
    refused(result, 2, "a size is too large for numbers of 64 bits: lower the options that set one")


# Files and folders that the operating system refuses


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y"])
def test_a_place_where_nothing_can_be_written(folder: Path, place: str) -> None:
    refused(
        run(folder, "--out", place),
        1,
        f"{place} cannot be written (",
        "No such file",
        "choose another output directory",
    )


LONG = "x" * 300


@pytest.mark.parametrize(
    "command",
    [
        ["run", "--aug", "none", "--out", LONG],
        ["run", "--aug", "idaa", "--vae", LONG],
        ["compare", LONG],
        ["knn", LONG],
        ["linear", f"{LONG}.npz"],
        ["report", LONG],
        ["transfer", "x", "--to", f"x=folder:{LONG}"],
    ],
    ids=lambda command: command[0],
)
def test_names_that_are_too_long(folder: Path, command: list[str]) -> None:
    options = ("--data", f"folder:{folder}", *TINY) if command[0] == "run" else ()
    result = bench(*command, *options)
    refused(result, result.exit_code or 1, "xxx" if command[0] != "transfer" else "x")


def test_a_loop_of_links() -> None:
    Path("loop").symlink_to("loop")
    refused(bench("knn", "x.npz", "--plugin", "loop"), 1, "cannot be read or written (", "loop", "check the path")


def test_a_file_in_place_of_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("cache").write_text("")
    result = run(folder, *SMALL_VAE, "--out", "out", aug="idaa")
    refused(result, 1, f"{Path.cwd() / 'cache'}", "cannot be read or written (", "check the path, its permissions")


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "idaa_lightly.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


OTHER = {"user": 54321, "group": 54321}


def others_may_run() -> bool:
    try:
        subprocess.run([sys.executable, "-c", ""], check=True, capture_output=True, cwd="/", **OTHER)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not others_may_run(), reason="needs root, and a Python that another user may run")
@pytest.mark.parametrize(
    ("aug", "mode", "words"),
    [
        ("idaa", 0o777, "there is no home directory: set HOME or IDAA_LIGHTLY_CACHE to a directory"),
        ("none", 0o755, "cannot be written ([Errno 13] Permission denied"),
    ],
)
def test_a_user_without_a_home_or_without_rights(aug: str, mode: int, words: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "IDAA_LIGHTLY_CACHE")}
    with tempfile.TemporaryDirectory() as place:  # pytest's own directories are closed to other users
        Path(place).chmod(mode)
        result = process(
            "run", "--aug", aug, "--epochs", 1, "--limit-train", 256, "--backbone", "resnet9-w2", "--out", "out",
            **OTHER, cwd=place, env=environment | {"MPLCONFIGDIR": tempfile.gettempdir()},
        )  # fmt: skip
    assert result.stderr.startswith("Error: "), result.stderr
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


# Damaged checkpoints and logs of a run


DAMAGES = {
    "numbers as names": lambda state: {1: torch.ones(1)} | state,
    "a number as weights": lambda state: dict.fromkeys(state, 3),
    "words as weights": lambda state: dict.fromkeys(state, "x"),
    "other shapes": lambda state: {name: value.reshape(-1)[:1] for name, value in state.items()},
    "a missing part": lambda state: dict(list(state.items())[1:]),
    "another architecture": lambda state: {f"layer9.{name}": value for name, value in state.items()},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_weights(trained: Path, damage: Any) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    path, checkpoint = finished / "backbone.pt", finished / "checkpoints/last.ckpt"
    torch.save(damage(torch.load(path, weights_only=True)), path)
    whole = torch.load(checkpoint, weights_only=True)
    torch.save(whole | {"state_dict": damage(whole["state_dict"])}, checkpoint)
    for command in (["knn", finished], ["export", finished, "--out", "x.pth"], ["identity", finished, "--aug", "clae"]):
        refused(bench(*command), 1, "Error: finished", "does not fit the ")


@pytest.mark.parametrize("state", [3, None, [], {}])
def test_a_checkpoint_without_a_state_dict(trained: Path, state: Any) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    torch.save({"state_dict": state}, finished / "checkpoints/last.ckpt")
    refused(
        bench("identity", finished, "--aug", "clae"),
        1,
        "last.ckpt is not a checkpoint of this run: it holds something else",
    )


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "step,epoch,loss/total\nx,0,1\n", "step,epoch,knn\n1,0,x\n", "step\n1,2\n"]
)
def test_a_damaged_log_is_not_resumed(folder: Path, trained: Path, text: str) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    (finished / "record.json").unlink()
    (finished / "metrics.csv").write_text(text)
    refused(run(folder, "--out", finished, "--resume"), 1, "finished/metrics.csv is damaged (", "delete it to resume")
