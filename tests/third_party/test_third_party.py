from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import idaa_lightly
from idaa_lightly import registry

STRANGER = Path(__file__).parent / "stranger"


def python(*arguments, **env):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", **env},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which the stranger's distribution is installed, from a copy and without a network."""
    source, target = tmp_path_factory.mktemp("source") / "stranger", tmp_path_factory.mktemp("target")
    shutil.copytree(STRANGER, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable, "--target", target]
    python("-m", "uv", "pip", "install", *options, source)
    return target


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
def test_is_listed_and_shown(installed):
    listing = python("-m", "idaa_lightly.cli", "plugins", PYTHONPATH=str(installed))
    for target in ("Barlow", "Nudge"):
        (line,) = [line for line in listing.splitlines() if f"idaa_stranger:{target}" in line]
        assert "theirs" in line
        assert "idaa-stranger 1.2.3" in line
    shown = python("-m", "idaa_lightly.cli", "plugins", "show", "theirs", PYTHONPATH=str(installed))
    for text in ("method theirs: Barlow Twins", "method.dim", "augmentation theirs: Some", "aug.steps", "aug.weight"):
        assert text in shown


@pytest.mark.slow
def test_runs(installed, tmp_path):
    out = tmp_path / "run"
    command = "run --method theirs --aug theirs --data digits --limit-train 64 --backbone resnet9-w2 --epochs 1"
    options = "--batch-size 16 --accelerator cpu --set aug.steps=3 --set method.dim=8 --out"
    env = {"PYTHONPATH": str(installed), "IDAA_LIGHTLY_CACHE": str(tmp_path / "cache")}
    python("-m", "idaa_lightly.cli", *f"{command} {options}".split(), out, **env)
    record = json.loads((out / "record.json").read_text())
    config = record["config"]
    assert (config["method"], config["aug"]) == ("theirs", "theirs")
    assert config["set"] == {"method": {"dim": 8}, "aug": {"eps": 0.02, "steps": 3, "weight": 1.0}}
    assert 0 <= record["last"]["knn"] <= 1
    assert {"backbone.pt", "config.toml", "metrics.csv", "views.png"} <= {path.name for path in out.iterdir()}
