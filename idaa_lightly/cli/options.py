"""Command-line options made from the fields of `RunConfig`, for several commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import click

from idaa_lightly import registry
from idaa_lightly.bench.config import RunConfig, parse_set, read_recipe, read_toml
from idaa_lightly.errors import UsageError

SEED = click.IntRange(0, 2**63, max_open=True)


class _Installed(click.Option):
    """Option whose help lists the installed plugins of a kind. They are listed without importing them.

    Args:
        kind: Kind of the plugins.
        settings: Arguments of `click.Option`.
    """

    def __init__(self, *args: Any, kind: registry.Kind, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.kind = kind

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option and its help, with the names of the plugins."""
        if (record := super().get_help_record(ctx)) is None:
            return None
        names = dict.fromkeys(entry.name for entry in registry.entries(self.kind))
        return record[0], f"{record[1]}  [installed: {', '.join(names)}]"


KINDS: dict[str, registry.Kind] = {"method": "method", "aug": "augmentation"}


def config_options(*names: str, of: type[RunConfig] = RunConfig, **helps: str) -> Callable[[Any], Any]:
    """Return a decorator that adds a Click option for each of these fields of a configuration.

    Args:
        names: Names of fields. None given means all fields.
        of: Class of the configuration.
        helps: Help of a field in this command, if it differs from that of a run.
    """
    types, names = get_type_hints(of), names or tuple(of.names())

    def decorate(command: Any) -> Any:
        for item in reversed(fields(of)):
            if item.name not in names:
                continue
            kind = next((kind for kind in get_args(types[item.name]) if kind in (int, float)), types[item.name])
            extra: dict[str, Any] = (
                {"is_flag": True} if kind is bool else {"type": kind if kind in (int, float) else str}
            )
            flag = item.name.replace("_", "-")
            shown = (
                f"  [default: {item.default}]" if type(item.default) in (str, int, float) and item.default != "" else ""
            )
            plugin = KINDS.get(item.name) if types[item.name] is str else None
            extra |= {"cls": _Installed, "kind": plugin} if plugin else {}
            command = click.option(
                f"--{flag}/--no-{flag}" if kind is bool else f"--{flag}",
                item.name,
                default=None,
                help=helps.get(item.name, item.metadata["help"]) + shown,
                **(extra | item.metadata["click"]),
            )(command)
        return command

    return decorate


def numbers(kind: type[int] | type[float]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a parser of numbers separated by commas, for Click's `callback`.

    Args:
        kind: Type of the numbers.
    """

    def parse(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[Any, ...] | None:
        try:
            return None if text is None else tuple(kind(part) for part in text.split(","))
        except ValueError as error:
            expected = "whole numbers" if kind is int else "numbers"
            raise click.BadParameter(f"{text!r}; expected {expected}, separated by commas") from error

    return parse


def network_options(data_help: str) -> Callable[[Any], Any]:
    """Return a decorator that adds the options about a network and its images, the fields of `Given`.

    Args:
        data_help: Help of --data.
    """
    options: dict[str, dict[str, Any]] = {
        "--backbone": {"help": "Network that a state dict belongs to, as for `idaa-bench run --backbone`."},
        "--data": {"help": data_help},
        "--image-size": {
            "type": click.IntRange(8),
            "help": "Image size that a state dict was trained with, in pixels. Default: the data set's.",
        },
        "--mean": {
            "callback": numbers(float),
            "help": "Mean of red, green and blue that a state dict was trained with, such as 0.485,0.456,0.406. "
            "Default: the data set's.",
        },
        "--std": {
            "callback": numbers(float),
            "help": "Standard deviations that a state dict was trained with, such as 0.229,0.224,0.225. Default: the "
            "data set's.",
        },
        "--layer": {
            "metavar": "NAME",
            "help": "Evaluate the outputs of this layer instead of the features: the name of a module, such as layer3, "
            "or a pattern, such as 'encoders.*.layer3' for both encoders of cmc. Feature maps are averaged to at most "
            "9216 numbers for each image. Results are then not kept.",
        },
    }

    def decorate(command: Any) -> Any:
        for name, settings in reversed(options.items()):
            command = click.option(name, **settings)(command)
        return command

    return decorate


def configs(
    given: dict[str, Any], file: str | None, *, several: bool = True, of: type[RunConfig] = RunConfig
) -> list[RunConfig]:
    """Return the configurations that options and a TOML file ask for, one per seed. Options override the file.

    If the command line names another method, augmentation or backbone than the file, the file's options for it are
    dropped, with `lr` for the method and `vae` for the augmentation.

    Args:
        given: Values of the options by field. None means not given.
        file: TOML file, or None.
        several: Accept several seeds.
        of: Class of the configurations.

    Raises:
        FileFormatError: The file cannot be read.
        UsageError: A field or a value of `--set` has the wrong form, or seeds repeat or are too many.
    """
    values = _from_file(file, of) if file else {}
    kinds = ("method", "aug", "backbone")
    other = {kind for kind in kinds if kind in values and given.get(kind) not in (None, values[kind])}
    for kind, name in (("method", "lr"), ("aug", "vae")):
        if kind in other:
            values.pop(name, None)
    options = {kind: dict(items) for kind, items in values.pop("set", {}).items() if kind not in other}
    for kind, items in parse_set(given.pop("set", ())).items():
        options.setdefault(kind, {}).update(items)
    seeds = given.pop("seed", ()) or (values.pop("seed", 0),)
    values.pop("seed", None)
    given["logger"] = ",".join(given.pop("logger", None) or ()) or None
    values |= {name: value for name, value in given.items() if value is not None}
    if len(set(seeds)) < len(seeds) or (len(seeds) > 1 and not several):
        raise UsageError(
            f"--seed is {', '.join(map(str, seeds))}, but expected {'different ones' if several else 'one'}"
        )
    config = of(**values, set=options)
    return [replace(config, seed=seed) for seed in seeds]


def _from_file(place: str, of: type[RunConfig]) -> dict[str, Any]:
    """Return the fields that FILE or FILE:RECIPE sets."""
    path, colon, name = place.rpartition(":")
    if colon and path.endswith(".toml"):
        return read_recipe(path, name, of)
    return read_toml(place, of)
