"""Cases of options, of extreme but allowed settings, and of surroundings such as a missing TMPDIR."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

from attacks.arena import Case
from attacks.fixture import NONE, RUN, difference
from idaa_lightly.registry import entries

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NUMBERS = (
    "0", "-0", "1", "-1", "2", "3", "0.5", "1e-3", "nan", "inf", "-inf", "1e300", "-1e300", "1e-300", "1e400", "9" * 30,
    str(2**31), str(2**63), str(2**64), str(-(2**63) - 1), "1_0", "٣", "0x10", "1e", " 1 ", "1,2", "0,0", "1%,200%",
    "nan%",
)  # fmt: skip
WORDS = (
    "", " ", "-", "--", "é", "日本語", "🦉", "a" * 300, "a/" * 600, "a/b", "../x", "..", ".", "~", "~x", "x\ny",
    "x\ty", "\udcff", "%s", "{}", "[red]x[/red]", "'", '"', "$HOME", "*", "true", "None", "digits", "folder:",
    "folder:images", "folder:..", "folder:images/train/digit 0", "folder:\udcff", "none", "idaa", "clae",
    "clae,clae", "simclr", "random", "auto", "cpu", "gpu", "ddp", "finished", "finished/config.toml",
    "finished/backbone.pt", "finished/record.json", "features.npz", "images", "vae.pt", "fifo", "loop",
    "dangling", "null", "missing", "missing/x.svg", "x.png", "x.csv", "x.npz", "x.tex", "/proc/x", "/sys/x",
    "/proc/self/mem", "finished/x.png", "features.npz/x.png", "x" * 240 + ".png",
)  # fmt: skip
METHODS, AUGMENTATIONS = ([entry.name for entry in entries(kind)] for kind in ("method", "augmentation"))
EXTREMES = {
    bool: ("true", "false"),
    int: ("0", "1", "2", "3", "7", "33"),
    float: ("0", "1e-300", "1e-30", "1e-9", "0.5", "1", "10", "1e6", "1e30", "1e38", "1e300"),
}
COMMANDS: dict[str, tuple[list[str], bool]] = {
    "run": (["--dry-run"], False),
    "sweep": (["--print-jobs", *NONE[1:]], False),
    "ablate": (["--dry-run", *NONE[1:]], True),
    "semi": (["--dry-run"], True),
    "detect": (["finished", "--dry-run"], False),
    "compare": (["finished"], True),
    "report": (["finished"], True),
    "knn": (["features.npz"], True),
    "linear": (["features.npz"], True),
    "finetune": (["finished", "--epochs", "1", "--labels", "50%"], True),
    "identity": (["finished", "--aug", "clae", "--samples", "4"], True),
    "transfer": (["finished", "--to", "x=folder:images"], True),
    "embed": (["finished", "--out", "x.npz"], True),
    "export": (["finished", "--out", "x.pth"], True),
    "vae": (
        ["--epochs", "1", "--out", "x.pt", *RUN[1:3], "--set", "aug.width=4", "--set", "aug.bottleneck_dim=4"],
        True,
    ),
    "table": (["--render"], True),
    "plugins": ([], False),
}
"""Arguments to begin with, and whether the command may write."""
RESOLVED = ("run", "sweep", "ablate", "semi", "detect")
"""Commands that resolve their configurations here, and train nothing."""
WORK = {"epochs", "samples", "minutes", "labels", "to", "data_dir"}
"""Options that a valid huge value would make slow, or that would download a data set."""
SCOPES = (
    "method.lr", "method.temperature", "method.jitter", "method.projection_dim", "method.weight_decay", "method.epz",
    "aug.eps", "aug.weight", "aug.beta", "aug.width", "aug.bottleneck_dim", "aug.vae_epochs", "aug.vae", "aug.norm",
    "aug.random", "aug.mode", "aug.steps", "backbone.width", "aug", "aug.", ".eps", "data.eps",
)  # fmt: skip


def options(case: Case) -> None:
    """Call a command with one to four random options or arguments. Settings of training are only resolved."""
    random = case.random
    name = random.choice(["run"] * 6 + ["sweep", "ablate", "semi", "detect"] * 3 + list(COMMANDS))
    given, writes = COMMANDS[name]
    for item in ("images", "finished", "features.npz", "vae.pt"):
        if any(item in text for text in given) or random.randrange(4) == 0:
            case.take(item)
    os.mkfifo("fifo")
    for link, target in (("loop", "loop"), ("dangling", "nowhere"), ("null", "/dev/null")):
        Path(link).symlink_to(target)
    arguments = list(given)
    for _ in range(random.randint(1, 4)):
        arguments += _option(random, name)
    if random.randrange(12) == 0:
        random.shuffle(arguments)
    case.outcome.tried = ascii(" ".join([name, *arguments]))
    kept = ("images", "features.npz", "vae.pt", "fifo", "null", "finished/record.json", "finished/backbone.pt")
    asked = " ".join(arguments)  # A command overwrites the file that it is told to write.
    case.bench(name, *arguments, kept=tuple(path for path in kept if f"out {path}" not in asked), writes=writes)


def _option(random: Random, command: str) -> list[str]:
    """Return an option that the command has, with a value from the pools, or a stray argument."""
    from idaa_lightly.cli import main

    known: list[Any] = [option for option in main.commands[command].params if option.opts[0].startswith("-")]
    if not known or random.randrange(15) == 0:
        return [random.choice(NUMBERS + WORDS)]
    option = random.choice(known)
    if option.is_flag:
        return [random.choice([*option.opts, *option.secondary_opts])]
    value = random.choice(random.choice([NUMBERS, WORDS]))
    work = option.name in WORK and command not in RESOLVED
    if option.name == "method":
        value = random.choice([value, *METHODS])
    elif option.name in ("aug", "against"):
        value = random.choice([value, *AUGMENTATIONS])
    elif option.name in ("settings", "set"):
        scope = random.choice(SCOPES)  # `vae` would train for a huge number of epochs.
        value = f"{scope}={1 if (command, scope) == ('vae', 'aug.vae_epochs') else value}"
    elif option.name == "data" and command in ("run", "ablate"):
        value = random.choice([value, "cifar10", "folder:images"])
    elif work and value not in ("0", "-1", "nan", "inf", "1e", "x", "", "missing"):
        value = "1"
    return [option.opts[-1], value] if random.randrange(20) else [f"{option.opts[-1]}={value}"]


def settings(case: Case) -> None:
    """Train an epoch with extreme values of the options of a method and an augmentation, all within their types."""
    random = case.random
    method, aug = random.choice(METHODS), random.choice(AUGMENTATIONS)
    base = [*RUN, "--epochs", str(random.choice([1, 2])), "--method", method, "--aug", aug]
    if aug in ("idaa", "random"):
        base += ["--set", "aug.width=4", "--set", "aug.bottleneck_dim=4", "--set", "aug.vae_epochs=1"]
    case.take("images")
    dry = case.bench(*base, "--dry-run", writes=False)
    case.outcome.tried = f"{method} {aug}, which do not go together"
    if dry.exit_code:
        return
    given = tomllib.loads(dry.stdout)["set"]
    known = [(f"{scope}.{key}", value) for scope, items in given.items() for key, value in items.items()]
    chosen = []
    for key, value in random.sample(known, min(len(known), random.randint(1, 2))):
        pool = EXTREMES.get(type(value), (str(value),))
        chosen += ["--set", f"{key}={random.choice(pool)}"]
    if random.randrange(5) == 0:
        chosen += ["--precision", random.choice(["bf16-mixed", "16-mixed"])]
    if random.randrange(5) == 0:
        chosen += ["--views", "device"]
    case.outcome.tried = " ".join([method, aug, *chosen])
    case.bench(*base, *chosen, "--out", "out", kept=("images",))


def surroundings(case: Case) -> None:
    """Run in an environment that lacks something, as a process of its own."""
    random = case.random
    case.take("images")
    Path("a file").touch()
    name = random.choice(["TMPDIR", "HOME", "IDAA_LIGHTLY_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR", "LANG", "COLUMNS"])
    value = random.choice([None, "", "missing/folder", "a file", "/proc/x", "x" * 300, "C", "POSIX", "1"])
    case.outcome.tried = f"{name}={value}"
    environment = dict(os.environ) | ({} if value is None else {name: value})
    if value is None:
        environment.pop(name, None)
    out = random.choice(["out", "é☃", "x y"])
    ran = subprocess.run(
        [sys.executable, "-m", "idaa_lightly.cli", *NONE, "--out", out],
        env=environment, capture_output=True, text=True, errors="replace", timeout=170, check=False,
    )  # fmt: skip
    case.expect("Traceback" not in ran.stderr, f"traceback: {ran.stderr[-300:]!a}")
    case.expect(ran.returncode in (0, 1, 2), f"exit code {ran.returncode}")
    if ran.returncode:
        case.expect(ran.stderr.startswith("Error: "), f"not one sentence: {ran.stderr[-300:]!a}")
    else:
        changed = difference(case.fixture / "whole", Path(out))
        case.expect(changed is None, f"{changed} with {name}={value}")
    written = {path.name for path in Path().iterdir()} - {"images", "a file", out}
    asked = {Path(value).parts[0]} if value else set()  # Libraries create the directory that a variable names.
    case.expect(written <= asked, f"wrote {written}")
