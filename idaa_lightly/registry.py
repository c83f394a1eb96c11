"""Registry of plugins, found by name through entry points. Listing them does not import them."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from idaa_lightly.errors import PluginError, suggestion

Kind = Literal["method", "augmentation", "backbone"]


@dataclass(frozen=True)
class Entry:
    """Entry point of a plugin.

    Attributes:
        name: Name of the plugin.
        target: Class of the plugin, as "module:attribute".
        distribution: Name of the distribution that declares it, or "unknown".
        version: Version of that distribution, or an empty string.
    """

    name: str
    target: str
    distribution: str
    version: str


def entries(kind: Kind, name: str | None = None) -> list[Entry]:
    """Return the entry points of all installed plugins of a kind, sorted by name.

    Args:
        kind: Kind of the plugins.
        name: Restrict the result to plugins of this name. There are two if two distributions claim the name.
    """
    return [entry for entry in _scanned(kind, tuple(sys.path)) if name in (None, entry.name)]


@cache
def _scanned(kind: Kind, path: tuple[str, ...]) -> list[Entry]:
    """Read the entry points of a kind from disk, once per process and import path."""
    found = set()
    for point in importlib.metadata.entry_points(group=f"idaa_lightly.{kind}s"):
        facts = point.dist.metadata if point.dist else None
        distribution, version = ((facts and facts[key]) or "" for key in ("Name", "Version"))
        found.add(Entry(point.name, point.value, distribution or "unknown", version))
    return sorted(found, key=lambda entry: (entry.name, entry.distribution))


def load(kind: Kind, name: str) -> Any:
    """Import a plugin.

    Args:
        kind: Kind of the plugin.
        name: Name of the plugin.

    Returns:
        The plugin class.

    Raises:
        PluginError: No distribution provides the plugin, several do, its import fails, or it is not a plugin class.
    """
    found = entries(kind, name)
    if not found:
        installed = [entry.name for entry in entries(kind)]
        raise PluginError(f"no {kind} {name!r}; installed: {', '.join(installed)}.{suggestion(name, installed)}")
    if len(found) > 1:
        claims = " and ".join(f"{entry.distribution} {entry.version}" for entry in found)
        raise PluginError(f"{kind} {name!r} is claimed by {claims}: uninstall one of them")
    (entry,) = found
    try:
        plugin = importlib.metadata.EntryPoint(name, entry.target, "").load()
        from idaa_lightly.plugin import Augmentation, Backbone, Method

        bases: dict[Kind, type] = {"method": Method, "augmentation": Augmentation, "backbone": Backbone}
        base = bases[kind]
        if not (isinstance(plugin, type) and issubclass(plugin, base)):
            raise TypeError(f"expected a subclass of idaa_lightly.plugin.{base.__name__}, but got {plugin!r}")
        return plugin
    except (Exception, SystemExit) as error:  # A third-party module may raise anything.
        raise PluginError(
            f"{kind} {name!r} of {entry.distribution} {entry.version} cannot be imported from {entry.target}: "
            f"{type(error).__name__}: {error}"
        ) from error


def refusals() -> tuple[dict[tuple[str, str], str], list[str]]:
    """Load all installed plugins, and find the pairs of a method and an augmentation that cannot be combined.

    Returns:
        A dict from each pair (method, augmentation) to the reason why it is refused, empty if it is not, and a list of
        the error messages of plugins that cannot be loaded.
    """
    plugins: dict[Kind, dict[str, Any]] = {"method": {}, "augmentation": {}}
    broken = []
    for kind, found in plugins.items():
        for name in dict.fromkeys(entry.name for entry in entries(kind)):
            try:
                found[name] = load(kind, name)
            except PluginError as error:
                broken.append(str(error))
    pairs = {
        (name, aug): augmentation.refuses(method)
        for name, method in plugins["method"].items()
        for aug, augmentation in plugins["augmentation"].items()
    }
    return pairs, broken
