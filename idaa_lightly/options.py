"""Options of plugins, and the annotations that give an argument its range.

The options of a plugin are the keyword-only arguments of its constructor. The signature holds their types and defaults,
and `Args:` in the docstring of the class describes them. A constructor that takes `**options` also has the options of
its base class. A range is part of the type: `eps: Annotated[float, Ge(0)] = 0.1`. It is checked when the plugin is
constructed, and `idaa-bench plugins show` prints it.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval

from idaa_lightly.errors import PluginError, UsageError, suggestion

F = TypeVar("F", bound=Callable[..., Any])
Count = Annotated[int, Ge(1)]
"""A number of things, 1 or more."""
ImageSize = Annotated[int, Interval(ge=8, le=16384)]
"""Height and width in pixels."""
NonNegativeInt = Annotated[int, Ge(0)]
"""A number of things, 0 or more."""
Seed = Annotated[int, Interval(ge=0, lt=2**63)]
"""Seed of a run, which torch's generators accept."""
NonNegative = Annotated[float, Ge(0)]
"""A finite number, 0 or more."""
Positive = Annotated[float, Gt(0)]
"""A finite number above 0."""
Fraction = Annotated[float, Interval(ge=0, le=1)]
"""A number from 0 to 1."""
BelowOne = Annotated[float, Interval(ge=0, lt=1)]
"""A number from 0 to 1, 1 excluded."""
Share = Annotated[float, Interval(gt=0, lt=1)]
"""A number between 0 and 1, both excluded."""
_BOUNDS = {"ge": "{} or more", "gt": "above {}", "le": "{} or less", "lt": "below {}"}


@dataclass(frozen=True)
class Option:
    """Option of a plugin: a named value with a type, a default and a description."""

    name: str
    annotation: Any
    default: Any = None
    help: str = ""

    @property
    def type_name(self) -> str:
        """Return a readable form of the type with its range, such as "float, 0 or more"."""
        origin, parts = get_origin(self.annotation), get_args(self.annotation)
        if origin is Annotated:
            return f"{Option('', parts[0]).type_name}, {_range(parts[1:])}"
        if origin is Literal:
            return " or ".join(map(str, parts))
        if origin in (Union, types.UnionType):
            return " | ".join(Option("", part).type_name for part in parts)
        return getattr(self.annotation, "__name__", str(self.annotation)).replace("NoneType", "None")

    def parse(self, value: Any) -> Any:
        """Convert a string or TOML value to the option's type.

        Args:
            value: Value to convert.

        Raises:
            UsageError: The value cannot be converted to the type, or is out of range.
        """
        text = str(value).strip()
        for kind in self._kinds:
            if get_origin(kind) is Literal and text in map(str, get_args(kind)):
                return next(choice for choice in get_args(kind) if str(choice) == text)
            if kind is types.NoneType and text.lower() in ("none", ""):
                return None
            if kind is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if kind in (int, float, str):
                try:
                    converted = kind(text)
                except ValueError:
                    continue
                return self.check(converted)
        raise self._refusal(text)

    def check(self, value: Any) -> Any:
        """Return the value if it has the option's type and is within its range.

        Args:
            value: Value to check.

        Raises:
            UsageError: The value has another type or is out of range.
        """
        from pydantic import ValidationError  # Imported here to keep `idaa-bench --help` fast.

        try:
            return _adapter(self.annotation).validate_python(value, strict=True)
        except ValidationError as error:
            raise self._refusal(value) from error

    @property
    def _kinds(self) -> list[Any]:
        """Return the types of a union without their ranges, None first."""
        union = get_origin(self.annotation) in (Union, types.UnionType)
        parts = get_args(self.annotation) if union else (self.annotation,)
        kinds = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts]
        return sorted(kinds, key=lambda kind: kind is not types.NoneType)

    def _refusal(self, value: Any) -> UsageError:
        finite = "a finite number: " if isinstance(value, float) and math.isinf(value) else ""
        return UsageError(f"{self.name} is {value!r}, but expected {finite}{self.type_name}")


def options_of(plugin: type) -> dict[str, Option]:
    """Return the options of a plugin class by name, with its own options before those of its bases.

    Args:
        plugin: Class of the plugin.

    Raises:
        PluginError: An option has no type or no default.
    """
    options: dict[str, Option] = {}
    for cls in plugin.__mro__:
        if "__init__" not in vars(cls):
            continue
        constructor = vars(cls)["__init__"]
        signature, hints = inspect.signature(constructor), get_type_hints(constructor, include_extras=True)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY and name not in options:
                if name not in hints or parameter.default is parameter.empty:
                    raise PluginError(f"option {name!r} of {cls.__qualname__} needs a type and a default")
                options[name] = Option(name, hints[name], parameter.default, _described(plugin, name))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return options


def parse_options(plugin: type, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of all options of a plugin. Options that are not given have their default.

    Args:
        plugin: Class of the plugin.
        name: Name of the plugin, for the error message.
        given: Values by option, as strings or TOML values.

    Raises:
        UsageError: An option is unknown, has a wrong type or is out of range.
    """
    options = options_of(plugin)
    for key in given:
        if key not in options:
            raise UsageError(
                f"{name!r} has no option {key!r}; it has: {', '.join(options) or 'none'}.{suggestion(key, options)}"
            )
    return {key: option.parse(given[key]) if key in given else option.default for key, option in options.items()}


def checked(function: F) -> F:
    """Make a function or constructor check its arguments that have a range or choices in their annotation.

    Args:
        function: Function to decorate.

    Raises:
        UsageError: The decorated function got an argument that is out of range or not among the choices.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        limited = _limited(call)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # The call below raises it with the name of the function.
            given = {}
        for name, value in given.items():
            if name in limited:
                # .item() converts scalars of NumPy and torch.
                limited[name].check(value.item() if hasattr(value, "item") else value)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def check_at_construction(plugin: type) -> None:
    """Apply `checked` to the constructor of a class, if the class itself defines one.

    Args:
        plugin: Class to change in place.
    """
    constructor = vars(plugin).get("__init__")
    if constructor is not None:
        plugin.__init__ = checked(constructor)  # type: ignore[misc]


@cache
def _limited(function: Callable[..., Any]) -> dict[str, Option]:
    """Return the arguments of a function that have a range or choices."""
    hints = get_type_hints(function, include_extras=True)
    kinds = {name: {get_origin(part) for part in (hint, *get_args(hint))} for name, hint in hints.items()}
    return {name: Option(name, hints[name]) for name, found in kinds.items() if found & {Annotated, Literal}}


@cache
def _adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def _range(metadata: tuple[Any, ...]) -> str:
    """Return a readable form of a range, such as "0 to below 1"."""
    bounds = {name: value for part in metadata for name in _BOUNDS if (value := getattr(part, name, None)) is not None}
    if len(bounds) == 1:
        return next(_BOUNDS[name].format(value) for name, value in bounds.items())
    low, high = bounds.values()
    if "ge" in bounds:
        return f"{low} to {high}" if "le" in bounds else f"{low} to below {high}"
    return f"above {low} to {high}" if "le" in bounds else f"between {low} and {high}"


def _described(plugin: type, name: str) -> str:
    """Return an option's description under `Args:` in the docstring of the class or of one of its bases."""
    for cls in plugin.__mro__:
        found = re.search(rf"^( +){name}: (.*(?:\n\1 +.*)*)", cls.__doc__ or "", re.MULTILINE)
        if found:
            return " ".join(found[2].split())
    return ""
