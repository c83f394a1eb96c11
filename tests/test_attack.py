"""A few cases of tests/attack.py, and whether its judge can tell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click
import pytest
import torch
from attack import attack as program
from attacks.arena import Case, Command, attempt, faults_of
from attacks.files import OTHERS, records
from attacks.images import images
from attacks.inputs import options
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bad_input import bench, run

from idaa_lightly import VAE


@pytest.fixture(scope="module")
def fixture(
    folder: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory, made_once: Callable[..., Path]
) -> Path:
    """Directory with what the cases of `attacks` start from."""

    def fill(root: Path) -> None:
        shutil.copytree(folder, root / "fixture/images")
        for name, seed in (("finished", 0), ("other", 1)):
            shutil.copytree(trained / f"seed-{seed}", root / "fixture" / name)
        assert bench("embed", trained / "seed-0", "--out", root / "fixture/features.npz").exit_code == 0
        VAE(16, 3, 8, 8).save(root / "fixture/vae.pt")

    return made_once("attacked", fill) / "fixture"


@pytest.mark.parametrize(("attack", "examples"), [(options, 40), (records, 15), (images, 8)])
def test_cases(fixture: Path, tmp_path: Path, attack: Callable[[Case], None], examples: int) -> None:
    (tmp_path / "fixture").symlink_to(fixture)

    @settings(max_examples=examples)
    @given(st.integers(0, 2**32))
    def survives(seed: int) -> None:
        outcome = attempt(attack.__name__, 0, seed, tmp_path, attack)
        assert not outcome.faults, (outcome.tried, outcome.faults)

    survives()


@pytest.mark.parametrize("name", ["an exploit", "a pickled exploit"])
def test_no_file_executes_code(folder: Path, trained: Path, name: str) -> None:
    finished = Path(shutil.copytree(trained / "seed-0", "finished"))
    for path in (finished / "backbone.pt", finished / "checkpoints/last.ckpt", Path("x.npz"), Path("vae.pt")):
        OTHERS[name](path)
    commands = [
        ["knn", finished],
        ["knn", finished / "checkpoints/last.ckpt"],
        ["identity", finished],
        ["knn", "x.npz"],
    ]
    for result in (*(bench(*command) for command in commands), run(folder, "--vae", "vae.pt", aug="idaa")):
        assert result.exit_code == 1, result.output
    assert not Path("pwned").exists()
    with suppress(RuntimeError):
        torch.load(finished / "backbone.pt", weights_only=False)  # The exploit does work.
    assert Path("pwned").exists()


def end_by(error: Exception | int, *lines: str) -> list[str]:
    @click.command()
    def command() -> None:
        for line in lines:
            click.echo(line, err=True)
        if isinstance(error, Exception):
            raise error
        sys.exit(error)

    return list(faults_of(CliRunner().invoke(command)))


def test_the_judge_of_ends() -> None:
    for code, lines in ((0, ()), (1, ("Error: a",)), (2, ("Usage: x", "", "Error: a")), (143, ("Interrupted.",))):
        assert not end_by(code, *lines)
    assert "traceback (ValueError: no" in end_by(ValueError("no"))[0]
    assert end_by(1, "Traceback (most recent call last):", "Error: a") == ["traceback in the output"]
    assert end_by(3) == ["undocumented exit code 3"]
    for lines in ((), ("a",), ("Error: a", "Error: b"), ("Error: a", "b")):
        assert "not one sentence" in end_by(1, *lines)[0] if lines else True


def test_the_judge_of_files(fixture: Path, tmp_path: Path) -> None:
    def lose(case: Case) -> None:
        case.take("finished")
        case.bench("embed", "finished", "--out", "x.npz", writes=False)
        case.bench("export", "finished", "--out", "finished/record.json", kept=("finished/record.json",))

    (tmp_path / "fixture").symlink_to(fixture)
    wrote, changed = attempt("lose", 0, 0, tmp_path, lose).faults
    assert wrote == "wrote ['x.npz'] by 'embed finished --out x.npz'"
    assert changed == "changed ['finished/record.json'] by 'export finished --out finished/record.json'"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--case", "files"], "'files'; expected one of options, settings, files,"),
        (["--case", "fixture-0"], "'fixture-0'; expected one of options, settings, files,"),
        (["--case", "files-x"], "'files-x'; expected one of options, settings, files,"),
        (["--case", "files-1", "--kind", "options"], "leave --kind out, because each case names its own"),
    ],
)
def test_cases_that_cannot_be_run(arguments: list[str], text: str) -> None:
    refused = CliRunner().invoke(program, arguments)
    assert refused.exit_code == 2
    assert text in refused.stderr


@pytest.mark.slow
def test_a_command_is_killed_at_once() -> None:
    """The process has no session of its own yet when it is killed."""
    assert Command(["plugins"], Path("log")).kill()
    ended = Command(["plugins"], Path("log"))
    assert ended.end() is None
    assert not ended.kill()


@pytest.mark.slow
def test_the_program_and_its_failures() -> None:
    code = "import sys, attack, attacks.arena; attack.KINDS['records'] = attacks.arena.leftover; attack.attack()"
    arguments = ["--most", "2", "--kind", "options", "--kind", "records", "--seed", "4", "--out", "out.json"]
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "again: python tests/attack.py --seed 4 --case records-1" in ran.stderr
    result = json.loads(Path("out.json").read_text())
    assert result["kinds"] == {
        "options": {"tried": 2, "survived": 2, "killed": 0},
        "records": {"tried": 2, "survived": 0, "killed": 0},
    }
    assert [failure["case"] for failure in result["failures"]] == ["records-0", "records-1"]
