"""Installation without extras: the features that work, and the messages about missing extras."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from records import a_record

import idaa_lightly
from idaa_lightly import AffineSpace, JitterSpace
from idaa_lightly.backbones import create_backbone
from idaa_lightly.bench.evaluate.export import export
from idaa_lightly.cli import main
from idaa_lightly.errors import MissingExtraError, UsageError, require_extra

ROOT = Path(__file__).parents[1]
TINY = ["--limit-train", "64", "--backbone", "resnet9-w2", "--batch-size", "32", "--epochs", "1"]
NORMALIZE = {"mean": [0.5] * 3, "std": [0.5] * 3}
TIMM = 'timm is not installed: pip install "idaa-lightly[vision]" to use '
KORNIA = 'kornia is not installed: pip install "idaa-lightly[vision]" to use '
SUBMITIT = 'submitit is not installed: pip install "idaa-lightly[slurm]" to use '
EXTRAS = {"braceexpand", "faiss-cpu", "faiss-gpu", "kornia", "submitit", "timm"}

EXAMPLE = """
import sys, warnings
import pytorch_lightning as pl, torch
from torch.utils.data import DataLoader
from idaa_lightly import VAE

VAE(32, bottleneck_dim=8, width=8).save("vae.pt")
exec(sys.stdin.read())
views = torch.randn(16, 2, 3, 32, 32)
loader = DataLoader([([first, second], 0) for first, second in views], batch_size=8)
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(SimCLR(), loader)
print("steps:", trainer.global_step)
"""


@pytest.fixture
def core_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the packages of all extras."""
    for name in ("timm", "kornia", "submitit", "braceexpand"):
        monkeypatch.setitem(sys.modules, name, None)


def refused(*arguments: str, text: str) -> None:
    """Check that `idaa-bench` exits with this error message and leaves no file."""
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stderr) == (2, f"Error: {text}\n"), result.output
    assert not list(Path().iterdir())


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", idaa_lightly.__version__)
    assert f'version = "{idaa_lightly.__version__}"' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {idaa_lightly.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.usefixtures("core_only")
def test_timm_is_missing() -> None:
    refused(
        "run", "--aug", "none", *TINY, "--backbone", "resnet26d",
        text=TIMM + "backbone 'resnet26d', which torchvision does not have",
    )  # fmt: skip
    with pytest.raises(MissingExtraError, match="to use backbone 'timm/resnet18'"):
        create_backbone("timm/resnet18", 32)
    with pytest.raises(MissingExtraError, match=re.escape(TIMM + "--format timm")):
        export(Path("run"), Path("x.pth"), "timm")
    for name in ("resnet18", "resnet9-w2"):
        assert create_backbone(name, 32)[0](torch.zeros(2, 3, 32, 32)).ndim == 2


def folder_of_a_run(name: str) -> Path:
    """Write the files of a run that `export` reads, and return their directory."""
    torch.save(create_backbone(name, 32)[0].state_dict(), "backbone.pt")
    record = a_record(config={"backbone": name}, data={"normalize": NORMALIZE})
    Path("record.json").write_text(json.dumps(record))
    return Path()


@pytest.mark.usefixtures("core_only")
def test_export_without_timm() -> None:
    assert "torchvision.models.resnet18()" in export(folder_of_a_run("resnet18"), Path("x.pth"))
    narrow = folder_of_a_run("resnet9-w2")
    assert "create_backbone" in export(narrow, Path("x.pth"))
    with pytest.raises(UsageError, match="torchvision has no resnet9-w2 with these weights: leave --format out"):
        export(narrow, Path("x.pth"), "torchvision")


@pytest.mark.usefixtures("core_only")
@pytest.mark.parametrize(
    ("name", "make"), [("AffineSpace", AffineSpace), ("JitterSpace", lambda: JitterSpace(NORMALIZE))]
)
def test_kornia_is_missing(name: str, make: Callable[[], object]) -> None:
    with pytest.raises(MissingExtraError, match=re.escape(KORNIA + name)):
        make()
    refused("run", "--aug", name.removesuffix("Space").lower(), *TINY, text=KORNIA + name)


@pytest.mark.usefixtures("core_only")
def test_submitit_is_missing() -> None:
    arguments = ["sweep", "--aug", "none", *TINY, "--cluster", "slurm"]
    refused(*arguments, text=SUBMITIT + "--cluster slurm")
    printed = CliRunner().invoke(main, [*arguments, "--print-jobs"])
    assert printed.exit_code == 0
    assert printed.stdout.startswith("idaa-bench run ")


@pytest.mark.usefixtures("core_only")
def test_braceexpand_is_missing() -> None:
    refused(
        "run", "--aug", "none", "--data", "wds:x-{0..9}.tar",
        text='braceexpand is not installed: pip install "idaa-lightly[webdataset]" to use --data wds: with braces',
    )  # fmt: skip


def test_a_broken_package_is_not_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("half_installed.py").write_text("import a_module_that_nobody_has")
    monkeypatch.syspath_prepend(Path.cwd())
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has") as caught:
        require_extra("half_installed", "vision", "this test")
    assert not isinstance(caught.value, MissingExtraError)


Bare = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """Function that runs a command of a fresh venv, which holds only our wheel and its core dependencies."""
    place = tmp_path_factory.mktemp("bare")
    python = place / "venv" / "bin" / "python"
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "IDAA_LIGHTLY_CACHE": str(place / "cache"),
        "COLUMNS": "200",
    }
    environment.pop("PYTHONPATH", None)

    def call(program: str, *arguments: str, code: int = 0, text: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [python.with_name(program), *arguments], input=text, env=environment, cwd=place,
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place], cwd=ROOT, check=True)
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--python", sys.executable, place / "venv"], check=True)
    subprocess.run([*uv, "pip", "install", "--python", python, next(place.glob("*.whl"))], check=True)
    yield call
    shutil.rmtree(place)  # The venv holds torch, which is large.


@pytest.mark.slow
def test_the_core_has_no_extras(bare: Bare) -> None:
    listing = "import importlib.metadata as m; print(*sorted(d.metadata['Name'].lower() for d in m.distributions()))"
    names = bare("python", "-c", listing).stdout.split()
    assert "idaa-lightly" in names
    assert not EXTRAS & set(names)


@pytest.mark.slow
def test_the_readmes_example_needs_the_core_only(bare: Bare) -> None:
    diff = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    code = "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))
    assert "AdversarialLoss" in code
    assert bare("python", "-c", EXAMPLE, text=code).stdout.endswith("steps: 2\n")


@pytest.mark.slow
def test_the_main_job_needs_the_core_only(bare: Bare) -> None:
    place = Path(bare("python", "-c", "import os; print(os.getcwd())").stdout.strip())
    bare("idaa-bench", "run", "--aug", "idaa", "--epochs", "1", "--set", "aug.vae_epochs=1", "--out", "run")
    record = json.loads((place / "run" / "record.json").read_text())
    assert record["last"]["epoch"] == 1
    assert record["last"]["knn"] > 0.5
    assert record["versions"]["idaa-lightly"] == idaa_lightly.__version__
    assert not EXTRAS & set(record["versions"])
    bare("idaa-bench", "sweep", "--aug", "none", *TINY, "--out", "all")
    assert len(list((place / "all").rglob("record.json"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "--aug", "none", *TINY, "--backbone", "resnet26d"], TIMM + "backbone 'resnet26d'"),
        (["run", "--aug", "jitter", *TINY], KORNIA + "JitterSpace"),
        (["run", "--aug", "affine", *TINY], KORNIA + "AffineSpace"),
        (["sweep", "--aug", "none", *TINY, "--cluster", "slurm"], SUBMITIT + "--cluster slurm"),
    ],
)
def test_the_core_says_what_to_install(bare: Bare, arguments: list[str], text: str) -> None:
    done = bare("idaa-bench", *arguments, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {text}")
