"""Options of a plugin: the keyword-only arguments of its constructor.

They are typed, with their default there and nowhere else, and described under `Args:` in the class's docstring. A
constructor that takes `**options` has those of its base, too.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from idaa_lightly.errors import PluginError, UsageError, suggestion


@dataclass(frozen=True)
class Option:
    """An option of a plugin."""

    name: str
    annotation: Any
    default: Any
    help: str

    @property
    def type_name(self) -> str:
        """The type as people write it."""
        origin, parts = get_origin(self.annotation), get_args(self.annotation)
        if origin is Literal:
            return " or ".join(map(str, parts))
        if origin in (Union, types.UnionType):
            return " | ".join(Option("", part, None, "").type_name for part in parts)
        return getattr(self.annotation, "__name__", str(self.annotation)).replace("NoneType", "None")

    def parse(self, value: Any) -> Any:
        """The value as its type, from a string or a TOML value.

        Raises:
            UsageError: it is not of that type.
        """
        text = str(value).strip()
        kinds: tuple[Any, ...] = (self.annotation,)
        if get_origin(self.annotation) in (Union, types.UnionType):
            kinds = get_args(self.annotation)
            if types.NoneType in kinds and text.lower() in ("none", ""):
                return None
        for kind in kinds:
            if get_origin(kind) is Literal and text in map(str, get_args(kind)):
                return next(choice for choice in get_args(kind) if str(choice) == text)
            if kind is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if kind in (int, float, str):
                try:
                    return kind(text)
                except ValueError:
                    continue
        raise UsageError(f"{self.name} is {text!r}, but expected {self.type_name}")


def options_of(plugin: type) -> dict[str, Option]:
    """The options of a plugin class by name, its own before its bases'."""
    options: dict[str, Option] = {}
    for cls in plugin.__mro__:
        if "__init__" not in vars(cls):
            continue
        constructor = vars(cls)["__init__"]
        signature, hints = inspect.signature(constructor), get_type_hints(constructor)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in options:
                if name not in hints or parameter.default is parameter.empty:
                    raise PluginError(f"option {name!r} of {cls.__qualname__} needs a type and a default")
                options[name] = Option(name, hints[name], parameter.default, _described(plugin, name))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return options


def parse_options(plugin: type, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All options of a plugin with their values, given or default.

    Raises:
        UsageError: an option is unknown or has a wrong type.
    """
    options = options_of(plugin)
    for key in given:
        if key not in options:
            raise UsageError(
                f"{name!r} has no option {key!r}; it has: {', '.join(options) or 'none'}.{suggestion(key, options)}"
            )
    return {key: option.parse(given[key]) if key in given else option.default for key, option in options.items()}


def _described(plugin: type, name: str) -> str:
    """The option's text under `Args:` in the docstring of the class or of one of its bases."""
    for cls in plugin.__mro__:
        found = re.search(rf"^( +){name}: (.*(?:\n\1 +.*)*)", cls.__doc__ or "", re.MULTILINE)
        if found:
            return " ".join(found[2].split())
    return ""


def require_at_least(least: float, **options: float) -> None:
    """Raises UsageError for the first option that is not a finite number, `least` or more."""
    for name, value in options.items():
        if not (math.isfinite(value) and value >= least):
            raise UsageError(f"{name} is {value}, but must be a finite number, {least} or more")


def require_between(least: float, most: float, **options: float) -> None:
    """Raises UsageError for the first option outside of [least, most]."""
    for name, value in options.items():
        if not least <= value <= most:
            raise UsageError(f"{name} is {value}, but expected {least} to {most}")
