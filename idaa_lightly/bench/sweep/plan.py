"""Planning of a sweep: the runs that it consists of, and their directories."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from idaa_lightly.bench.config import RunConfig, read_toml
from idaa_lightly.bench.run.plugins import rehearse
from idaa_lightly.bench.run.setup import read_data, resolve
from idaa_lightly.errors import IDAAError, UsageError, suggestion
from idaa_lightly.options import options_of
from idaa_lightly.registry import Kind, added_files, load

log = logging.getLogger(__name__)
KINDS: dict[str, Kind] = {"method": "method", "aug": "augmentation"}
Settings = Mapping[str, Mapping[str, Sequence[str]]]
"""Values to try for each option, by scope and option. The scope is "method", "aug" or the name of a plugin."""


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
        folder: The run directory.
        name: Name of the run in messages.
        options: Command-line options for `idaa-bench run`.
    """

    folder: Path
    name: str
    options: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """True if the record of the run is written."""
        return (self.folder / "record.json").exists()

    @property
    def arguments(self) -> list[str]:
        """Arguments for `idaa-bench`. They include --resume, so the command can be repeated at any time."""
        files = [f"--plugin={path}" for path in added_files()]
        return ["run", *self.options, *files, "--out", str(self.folder), "--resume"]


def plan(
    base: Callable[[str, str], RunConfig],
    methods: Sequence[str],
    augs: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    out: Path,
) -> list[Run]:
    """Return each combination of methods, augmentations, options and seeds once, ordered by seed.

    Pairs that do not go together and options that do not apply are left out and logged.

    Args:
        base: Function from a method's and an augmentation's name to the configuration that runs of the pair share.
        methods: Names of methods.
        augs: Names of augmentations.
        seeds: Seeds that each configuration is run with.
        settings: Values to try. Those of "method" and "aug" apply to all plugins that have the option. Those of a
            plugin override them.
        out: Directory of the runs. Existing runs in it are recognised by their configuration, not by their name.

    Raises:
        UsageError: An option belongs to no plugin of the sweep, a value cannot be used, or nothing is left to run.
        PluginError: There is no such method or augmentation.
    """
    if unknown := settings.keys() - {*KINDS, *methods, *augs}:
        raise UsageError(f"--set got {min(unknown)!r}, but this sweep has: {', '.join([*KINDS, *methods, *augs])}")
    pairs = []
    for method, aug in product(methods, augs):
        if reason := load("augmentation", aug).refuses(load("method", method)):
            log.info(f"Left out: {method} × {aug}: {reason}.")
        else:
            pairs.append((method, aug))
    if not pairs:
        raise UsageError("none of these methods goes with these augmentations: see `idaa-bench plugins --matrix`")
    _say_where_options_apply(pairs, settings)
    asked = [choice for pair in pairs for choice in _choices(base(*pair), settings)]
    runs = place([(replace(config, seed=seed), name) for seed, (config, name) in product(seeds, asked)], out)
    return list(dict.fromkeys(runs))


def place(asked: Sequence[tuple[RunConfig, str]], out: Path) -> list[Run]:
    """Return a run for each configuration, with its directory. Equal configurations share a run.

    Args:
        asked: Configurations of runs on the same data, and their names in messages.
        out: Directory of the runs. Existing runs in it are recognised by their configuration, not by their name.

    Raises:
        UsageError: A value cannot be used.
    """
    for config in {config.key(): config for config, _ in asked}.values():
        rehearse(resolve(config))  # so that a bad value is reported before any data is read
    size = read_data(asked[0][0], quiet=True).image_size
    there = _folders(out)
    runs: dict[str, Run] = {}
    placed = []
    for config, name in asked:
        full = replace(resolve(config), image_size=size).canonical()
        usual = out / f"{config.data.split(':')[0]}-{config.method}-{config.aug}-{full.key()}" / f"seed-{config.seed}"
        folder = there.get(_identity(full), usual)
        made = Run(folder, f"{name} seed {config.seed}", tuple(_options(config)))
        placed.append(runs.setdefault(_identity(full), made))
    return placed


def _say_where_options_apply(pairs: list[tuple[str, str]], settings: Settings) -> None:
    """Refuse options that no plugin of their kind has. Log the plugins that lack one of the other options."""
    for (scope, kind), column in zip(KINDS.items(), zip(*pairs, strict=True), strict=True):
        options = {name: options_of(load(kind, name)) for name in dict.fromkeys(column)}
        for key in settings.get(scope, {}):
            lacking = [name for name in options if key not in options[name]]
            if len(lacking) == len(options):
                known = {other for having in options.values() for other in having}
                raise UsageError(f"--set {scope}.{key}: {', '.join(lacking)} has no {key!r}.{suggestion(key, known)}")
            if lacking:
                log.info(f"Not applicable: {scope}.{key} to {', '.join(lacking)}, which runs without it.")


def _choices(config: RunConfig, settings: Settings) -> Iterator[tuple[RunConfig, str]]:
    """Yield a configuration with each combination of the settings that apply to it, and a name for messages."""
    axes: dict[tuple[str, str], Sequence[str]] = {}
    for scope, kind in KINDS.items():
        plugin = getattr(config, scope)
        options = options_of(load(kind, plugin))
        axes |= {(scope, key): values for key, values in settings.get(scope, {}).items() if key in options}
        axes |= {(scope, key): values for key, values in settings.get(plugin, {}).items()}
    for values in product(*axes.values()):
        chosen: dict[str, dict[str, Any]] = {scope: dict(config.set.get(scope, {})) for scope in KINDS}
        for (scope, key), value in zip(axes, values, strict=True):
            chosen[scope][key] = value
        texts = [f"{scope}.{key}={value}" for (scope, key), value in zip(axes, values, strict=True)]
        yield replace(config, set=chosen), " ".join([f"{config.method} × {config.aug}", *texts])


def _options(config: RunConfig) -> Iterator[str]:
    """Yield options of `idaa-bench run`: method, aug, data, seed, and all fields that differ from their defaults."""
    for item in fields(RunConfig):
        value, flag = getattr(config, item.name), f"--{item.name.replace('_', '-')}"
        if item.name == "set":
            for scope, options in value.items():
                for key, chosen in options.items():
                    yield from (flag, f"{scope}.{key}={chosen}")
        elif value is True:
            yield flag
        elif item.name in ("method", "aug", "data", "seed") or value != item.default:
            yield from (flag, str(value))


def _folders(out: Path) -> dict[str, Path]:
    """Return the run directories below `out` by configuration. Of equal ones, a finished run is preferred."""
    found = [path.parent for path in sorted(out.rglob("config.toml")) if path.is_file()]
    result = {}
    for folder in sorted(found, key=lambda folder: (folder / "record.json").exists()):
        try:
            result[_identity(RunConfig(**read_toml(folder / "config.toml")).canonical())] = folder
        except IDAAError:
            continue  # The directory is not a run of this version.
    return result


def _identity(config: RunConfig) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)
