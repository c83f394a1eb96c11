from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import idaa_lightly
from idaa_lightly import registry

STRANGER = Path(__file__).parent / "stranger"
ROOT = Path(__file__).parents[2]


def call(*command, **env):
    done = subprocess.run(
        [*map(str, command)],
        env={**os.environ, "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", **env},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


COMMANDS = """
import json, sys
from contextlib import redirect_stdout
from idaa_lightly.cli import main
for name, arguments in json.loads(sys.argv[1]).items():
    with open(name, "w") as file, redirect_stdout(file):
        code = main(arguments.split(), standalone_mode=False)
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def fresh(made_once):
    """Directory with outputs of `idaa-bench` and a run directory, from a fresh venv.

    The venv holds our wheel and the third-party plugin. Their dependencies are those of this environment.
    """
    return made_once("fresh", install_and_run)


def install_and_run(place):
    shutil.copytree(STRANGER, place / "stranger", ignore=shutil.ignore_patterns("__pycache__"))
    uv = [sys.executable, "-m", "uv"]
    call(*uv, "venv", "--offline", "--python", sys.executable, place / "venv")
    python = place / "venv" / "bin" / "python"
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    (Path(site) / "environment.pth").write_text(sysconfig.get_path("purelib"))
    options = ["--offline", "--no-deps", "--no-build-isolation", "--python", python]
    call(*uv, "pip", "install", *options, ROOT, place / "stranger")
    assert call(python, "-I", "-c", "import idaa_lightly; print(idaa_lightly.__file__)").startswith(site)
    (place / "plugins").write_text(call(place / "venv" / "bin" / "idaa-bench", "plugins"))
    run = "run --method theirs --aug theirs --data digits --limit-train 64 --backbone resnet9-w2 --epochs 1"
    options = f"--batch-size 16 --accelerator cpu --set aug.steps=3 --set method.dim=8 --out {place / 'run'}"
    commands = {"shown": "plugins show theirs", "matrix": "plugins --matrix", "trained": f"{run} {options}"}
    commands = {str(place / name): arguments for name, arguments in commands.items()}
    call(python, "-I", "-c", COMMANDS, json.dumps(commands), IDAA_LIGHTLY_CACHE=str(place / "cache"))


def test_uses_public_names_only():
    for node in ast.walk(ast.parse((STRANGER / "idaa_stranger.py").read_text())):
        names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
        if isinstance(node, ast.ImportFrom) and node.module == "idaa_lightly":
            assert set(names) <= set(idaa_lightly.__all__)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("idaa_lightly"):
            assert node.module == "idaa_lightly.plugin"
            assert not any(name.startswith("_") for name in names)


@pytest.mark.parametrize("kind", ["method", "augmentation"])
def test_is_unknown_until_installed(kind):
    assert "theirs" not in {entry.name for entry in registry.entries(kind)}


@pytest.mark.slow
def test_is_listed_and_shown(fresh):
    listing = (fresh / "plugins").read_text()
    for target in ("Barlow", "Nudge"):
        (line,) = [line for line in listing.splitlines() if f"idaa_stranger:{target}" in line]
        assert "theirs" in line
        assert "idaa-stranger 1.2.3" in line
    shown = (fresh / "shown").read_text()
    for text in ("method theirs: Barlow Twins", "method.dim", "augmentation theirs: Some", "aug.steps", "aug.weight"):
        assert text in shown


@pytest.mark.slow
def test_is_in_the_matrix(fresh):
    matrix = [line.split() for line in (fresh / "matrix").read_text().splitlines()]
    (row,) = [line for line in matrix if line[0] == "theirs"]
    assert dict(zip(matrix[0], row, strict=True))["theirs"] == "✓"


@pytest.mark.slow
def test_runs(fresh):
    out = fresh / "run"
    record = json.loads((out / "record.json").read_text())
    config = record["config"]
    assert (config["method"], config["aug"]) == ("theirs", "theirs")
    assert config["set"] == {
        "method": {"dim": 8},
        "aug": {"eps": 0.02, "steps": 3, "weight": 1.0, "random": False, "mode": "exact", "place": "add"},
    }
    assert 0 <= record["last"]["knn"] <= 1
    assert {"backbone.pt", "config.toml", "metrics.csv", "views.png"} <= {path.name for path in out.iterdir()}
