"""Sweeps through the command line, on digits with a tiny network."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacks.arena import Command
from click.testing import CliRunner, Result
from records import a_record

from idaa_lightly.bench.record import write_json
from idaa_lightly.bench.sweep import executors
from idaa_lightly.bench.sweep.executors import LocalJob
from idaa_lightly.cli import main
from idaa_lightly.errors import BusyError
from idaa_lightly.files import claim

TINY = [
    "--limit-train", "64", "--backbone", "resnet9-w2", "--batch-size", "32", "--epochs", "1", "--accelerator", "cpu",
]  # fmt: skip


def sweep(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["sweep", *TINY, *arguments])
    assert result.exit_code == code, result.output
    return result


def jobs(*arguments: str) -> list[dict[str, Any]]:
    """Return the options of each printed command, with the values of `--set` as a list."""
    result = []
    for line in sweep(*arguments, "--print-jobs").stdout.splitlines():
        program, run, *words = shlex.split(line)
        assert (program, run, words.pop()) == ("idaa-bench", "run", "--resume")
        pairs = list(zip(words[::2], words[1::2], strict=True))
        result.append(dict(pairs) | {"set": [value for name, value in pairs if name == "--set"]})
    return result


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "idaa_lightly.cli", "sweep", *TINY, *arguments]


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def records(out: str) -> dict[str, str]:
    return {str(path.parent): path.read_text() for path in sorted(Path(out).rglob("record.json"))}


def trained(out: str) -> list[str]:
    """Return the run directories in which training took place, one entry per training, from the logs of the jobs."""
    lines = [line for path in Path(out).glob(".jobs/*/*_log.out") for line in path.read_text().splitlines()]
    return sorted(line.partition("Run directory: ")[2] for line in lines if line.startswith("Takes about"))


def test_every_combination_once_and_options_where_they_exist() -> None:
    arguments = [
        "--method",
        "simclr,simsiam",
        "--aug",
        "none,clae",
        "--seeds",
        "0-1,4",
        "--set",
        "aug.eps=0.05,0.03,.05",
    ]
    printed = jobs(*arguments)
    wanted = [
        (seed, method, aug, options)
        for seed in ("0", "1", "4")
        for method in ("simclr", "simsiam")
        for aug, options in (("none", []), ("clae", ["aug.eps=0.05"]), ("clae", ["aug.eps=0.03"]))
    ]
    assert [(job["--seed"], job["--method"], job["--aug"], job["set"]) for job in printed] == wanted
    assert len({str(job["--out"]) for job in printed}) == len(printed)
    assert {(job["--epochs"], job["--limit-train"], job["--accelerator"]) for job in printed} == {("1", "64", "cpu")}
    assert sweep(*arguments, "--print-jobs").stderr == "Not applicable: aug.eps to none, which runs without it.\n"


def test_printed_jobs_add_the_files_of_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("idaa_lightly.registry._files", {})
    Path("own.py").write_text(
        'from idaa_lightly_plugins.augmentations.clae import CLAE\n\n\nclass Printed(CLAE):\n    """Views."""\n'
    )
    (line,) = sweep("--aug", "printed", "--plugin", "own.py", "--print-jobs").stdout.splitlines()
    monkeypatch.setattr("idaa_lightly.registry._files", {})  # As in a new process.
    result = CliRunner().invoke(main, [*shlex.split(line)[1:], "--dry-run"])
    assert 'aug = "printed"' in result.output


def test_a_job_of_a_sweep_in_the_background_is_interrupted() -> None:
    """A shell without job control starts it with Ctrl-C ignored, and so does its child."""
    program = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    job = LocalJob(executors.Command([sys.executable, "-c", program], dict(os.environ)), Path(), 0)
    while not Path("0_log.out").read_text():
        time.sleep(0.05)
    job.cancel()
    assert job.process.wait(30) == -signal.SIGTERM


def test_a_default_and_its_value_are_one_run() -> None:
    printed = jobs("--aug", "clae", "--set", "aug.eps=0.03", "--set", "clae.weight=1.0,1,2")
    assert [job["set"] for job in printed] == [["aug.eps=0.03", f"aug.weight={weight}"] for weight in ("1.0", "2")]


def test_a_name_goes_before_its_kind() -> None:
    arguments = [
        "--aug",
        "clae,pgd",
        "--set",
        "aug.eps=0.1",
        "--set",
        "pgd.eps=0.2,0.3",
        "--set",
        "simclr.temperature=1",
    ]
    assert [(job["--aug"], sorted(job["set"])) for job in jobs(*arguments)] == [
        ("clae", ["aug.eps=0.1", "method.temperature=1"]),
        ("pgd", ["aug.eps=0.2", "method.temperature=1"]),
        ("pgd", ["aug.eps=0.3", "method.temperature=1"]),
    ]


def test_lr_and_vae_go_where_they_exist() -> None:
    arguments = ["--aug", "none,random", "--lr", "0.1", "--vae", "v.pt"]
    assert [job["set"] for job in jobs(*arguments)] == [["method.lr=0.1"], ["method.lr=0.1", "aug.vae=v.pt"]]
    assert "Not applicable: aug.vae to none" in sweep(*arguments, "--print-jobs").stderr


def test_refused_pairs_are_left_out_and_named() -> None:
    arguments = ["--method", "simclr,swav", "--aug", "none,metaug"]
    assert [(job["--method"], job["--aug"]) for job in jobs(*arguments)] == [
        ("simclr", "none"), ("simclr", "metaug"), ("swav", "none"),
    ]  # fmt: skip
    assert sweep(*arguments, "--print-jobs").stderr.startswith("Left out: swav × metaug: ")
    nothing = sweep("--method", "swav", "--aug", "metaug", code=2)
    assert "none of these methods goes with these augmentations" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--seeds", "4-0"], "--seeds got '4-0', but expected numbers and ranges such as 0-4"),
        (["--seeds", "a"], "--seeds got 'a', but expected"),
        (["--aug", "none,"], "--aug got 'none,', but expected values separated by commas"),
        (["--aug", "nonne"], "no augmentation 'nonne'"),
        (["--aug", "none,clae", "--set", "aug.epps=1"], "none, clae has no 'epps'. Did you mean 'eps'?"),
        (["--aug", "none", "--set", "clae.eps=1"], "--set got 'clae', but this sweep has: method, aug, simclr, none"),
        (["--aug", "clae", "--set", "clae.epps=1"], "'clae' has no option 'epps'"),
        (["--aug", "clae", "--set", "aug.eps=0.1,-1"], "eps is -1"),
        (["--set", "eps=1"], "--set got 'eps=1', but expected aug.KEY=VALUES"),
        (["--set", "aug.eps="], "--set got 'aug.eps=', but expected KEY=VALUE"),
        (["--slurm", "partition=x"], "--cluster is local: add --cluster slurm"),
        (["--aug", "none", "--data", "folder:gone"], "gone is not a folder"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments: list[str], text: str) -> None:
    assert text in sweep(*arguments, code=2 if "--data" not in arguments else 1).stderr
    assert not Path("runs").exists()


def test_without_a_cluster() -> None:
    text = sweep("--aug", "none", "--cluster", "slurm", code=2).stderr
    assert "--cluster slurm cannot be used: " in text


def test_runs_are_recognised_by_their_configuration() -> None:
    arguments = ["--aug", "none", "--seeds", "0,1", "--out", "all"]
    first, second = (line.split() for line in sweep(*arguments, "--print-jobs").stdout.splitlines())
    assert CliRunner().invoke(main, first[1:]).exit_code == 0
    where = Path(first[first.index("--out") + 1])
    Path("all/moved").mkdir()
    where.rename("all/moved/here")
    assert [line.split() for line in sweep(*arguments, "--print-jobs").stdout.splitlines()] == [second]
    assert len(jobs(*arguments, "--workers", "1")) == 1  # Workers do not change the run.
    assert len(jobs(*arguments, "--set", "method.temperature=0.3")) == 2
    Path("all/moved/here/record.json").unlink()
    assert jobs(*arguments)[0]["--out"] == "all/moved/here"  # The run is resumed there.


def test_a_folder_that_another_process_runs_in_is_refused() -> None:
    arguments = ["run", "--aug", "none", *TINY, "--out", "run"]
    with claim(Path("run")):
        done = CliRunner().invoke(main, arguments)
    assert (done.exit_code, done.stderr) == (
        75, "Error: run is being run by another process: wait for it, or choose another output directory\n",
    )  # fmt: skip
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert [path.name for path in Path().iterdir()] == ["run"]


def test_a_claim_is_for_one_of_many_at_a_time() -> None:
    """Concurrent processes that increment a counter lose no count, although each deletes the lock file at its end."""
    code = """
        from pathlib import Path
        from idaa_lightly.files import claim
        count = Path("count")
        for _ in range(50):
            with claim(Path("run"), timeout=120):
                count.write_text(str(int(count.read_text()) + 1))
    """.replace("\n        ", "\n")
    Path("count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert Path("count").read_text() == "150"


def test_the_claim_of_a_killed_process_is_free() -> None:
    code = "import time; from pathlib import Path; from idaa_lightly.files import claim\n"
    code += "with claim(Path('run')):\n    print('held', flush=True)\n    time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="run is being run by another process"), claim(Path("run"), timeout=0):
        pass
    process.kill()
    process.communicate()
    with claim(Path("run"), timeout=0):
        assert Path(".run.lock").exists()
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["sweep", "compare"])
def test_help_imports_no_torch(name: str) -> None:
    code = f"import sys; from idaa_lightly.cli import main; main(['{name}', '--help'], standalone_mode=False)"
    check = "; print([n for n in ('torch', 'lightly', 'submitit', 'scipy', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


SLURM = {
    "sbatch": 'script="${@: -1}"; SLURM_JOB_ID=7 nohup bash "$script" > sbatch.txt 2>&1 & echo Submitted batch job 7',
    "srun": """while [ ! -x "$1" ]; do shift; done
        export SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
        export SLURM_JOB_NODELIST=here; exec "$@" """,
    "sacct": "echo 'JobID|State|NodeList'; echo '7|RUNNING|here'",
}
"""Fake commands of a cluster with one machine, as submitit calls them."""


def import_everything() -> None:
    """Import everything that a sweep needs, so that it starts at once even on a busy machine."""
    importlib.import_module("idaa_lightly.bench.sweep.jobs")
    jobs("--aug", "none,clae")


def test_a_preempted_job_is_queued_again() -> None:
    """Two processes stand for the jobs of a cluster: the first ends by SIGTERM, the second writes the record."""
    from rich.console import Console

    from idaa_lightly.bench.sweep.command import Command
    from idaa_lightly.bench.sweep.executors import LocalJob
    from idaa_lightly.bench.sweep.jobs import Jobs
    from idaa_lightly.bench.sweep.plan import Run

    Path("whole").mkdir()
    write_json(Path("whole/record.json"), a_record())
    ends = iter(["exit 143", "cp -r whole all/run"])
    jobs = Jobs([Run(Path("all/run"), "the run", ())], Path("all"), Console(), limit=1, cluster="local", options={})
    jobs.local = False
    jobs.submit = lambda _: LocalJob(Command(["sh", "-c", next(ends)], {}), Path("all"), 1)
    jobs.execute()
    assert next(ends, None) is None


@pytest.mark.slow
def test_on_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in SLURM.items():
        Path("bin").mkdir(exist_ok=True)
        Path("bin", name).write_text(f"#!/bin/bash\n{script}\n")
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path('bin').resolve()}:{os.environ['PATH']}")
    arguments = ["--aug", "none", "--cluster", "slurm", "--slurm", "partition=gpu", "--slurm", "cpus_per_task=2"]
    output = sweep(*arguments, "--out", "all").stdout
    assert "simclr × none seed 0: started as job 7" in output
    assert len(records("all")) == 1
    (script,) = Path("all").glob(".jobs/*/7_submission.sh")
    for line in ("#SBATCH --partition=gpu", "#SBATCH --cpus-per-task=2", "#SBATCH --time=1440"):
        assert line in script.read_text().splitlines()


@pytest.mark.slow
def test_a_failing_run_among_good_ones() -> None:
    """The failing run starts first. It stops neither the run at the same time nor a later one."""
    options = ["--set", "idaa.vae=gone.pt", "--out", "all"]
    first = sweep("--aug", "idaa,none", "--jobs", "2", *options, code=1)
    assert [Path(folder).parent.name.split("-")[2] for folder in records("all")] == ["none"]
    assert "Error: 1 of 2 runs failed: simclr × idaa aug.vae=gone.pt seed 0." in first.stderr
    assert "simclr × idaa aug.vae=gone.pt seed 0: failed: gone.pt does not exist" in first.stdout
    before = records("all")
    second = sweep("--aug", "idaa,none,clae", *options, code=1)
    assert "3 runs in all, 1 of them finished already." in second.stdout
    assert second.stdout.count("started as job") == 2
    after = records("all")
    assert [Path(folder).parent.name.split("-")[2] for folder in after] == ["clae", "none"]
    assert before.items() <= after.items()


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again() -> None:
    """The first sweep is killed with its jobs, the second alone. Its job then goes on, and is not run twice."""
    arguments = ["--aug", "none", "--seeds", "0-1", "--epochs", "8", "--out", "all"]

    def start_and_kill(group: bool, when: Callable[[], bool]) -> None:
        started = Command(["sweep", *TINY, *arguments], Path("log.txt"))
        while not when():
            assert started.process.is_alive(), Path("log.txt").read_text()
            time.sleep(0.05)
        assert started.kill(group=group)

    import_everything()
    start_and_kill(True, lambda: bool(list(Path("all").rglob("last.ckpt"))))
    assert not records("all")
    start_and_kill(False, lambda: len(list(Path("all").rglob("config.toml"))) == 2)
    before = records("all")
    assert len(before) == 1
    output = sweep(*arguments).stdout
    after = records("all")
    assert len(after) == 2
    assert before.items() <= after.items()
    assert "1 of them finished already" in output
    assert "by another process" in output
    assert "started as job" not in output
    assert "All runs are finished. Compare them: idaa-bench compare all" in output
    assert all(len(json.loads(record)["history"]) == 9 for record in after.values())
    assert json.loads(*before.values())["time"]["resumed_at_epoch"] is not None
    assert trained("all") == sorted(after)  # The first run was resumed, not started again.


@pytest.mark.slow
def test_two_at_the_same_time_on_one_folder() -> None:
    arguments = ["--aug", "none,clae", "--epochs", "8", "--out", "all"]
    import_everything()
    other = start(*arguments)
    assert other.stdout is not None
    first = other.stdout.readline()
    outputs = [sweep(*arguments).stdout, first + other.communicate()[0]]
    assert other.returncode == 0, outputs
    assert len(records("all")) == 2
    assert trained("all") == sorted(records("all"))
    assert not any("Resuming after" in path.read_text() for path in Path("all").glob(".jobs/*/*_log.out"))
    for output in outputs:
        assert "2 runs in all, 0 of them finished already." in output
        assert "All runs are finished" in output
    table = CliRunner().invoke(main, ["compare", "all", "--format", "markdown"])
    assert "| simclr | clae | 1 |" in table.output, table.output
