"""Registry of plugins, found by name through entry points or in files. Listing entry points does not import them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from idaa_lightly.errors import PluginError, suggestion
from idaa_lightly.files import require_file

Kind = Literal["method", "augmentation", "backbone"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OWN = "idaa-lightly"
"""Distribution whose code a record names by its commit or version."""
_files: dict[Path, tuple[str, dict[Kind, list[Entry]]]] = {}
"""Hash and plugins of the files that `add_file` has imported."""
_modules: dict[str, str] = {}
"""Hashes of the modules that `load` has imported from other distributions, by distribution, version and module."""


@dataclass(frozen=True)
class Entry:
    """Entry point of a plugin.

    Attributes:
        name: Name of the plugin.
        target: Class of the plugin, as "module:attribute".
        distribution: Name of the distribution that declares it, or of the file that holds it, or "unknown".
        version: Version of that distribution, hash of that file, or an empty string.
    """

    name: str
    target: str
    distribution: str
    version: str


def entries(kind: Kind, name: str | None = None) -> list[Entry]:
    """Return the entry points of all installed plugins of a kind, sorted by name, and the plugins of added files.

    Args:
        kind: Kind of the plugins.
        name: Restrict the result to plugins of this name. There are two if two distributions claim the name.
    """
    found = _scanned(kind, tuple(sys.path)) + [entry for _, made in _files.values() for entry in made[kind]]
    return [entry for entry in found if name in (None, entry.name)]


def add_file(path: Path) -> None:
    """Import a Python file, and add the plugin classes that it defines.

    The code of the file is executed, so the path must come from the user and never from a run directory. The name of a
    plugin is its class name in lower case, with hyphens between words: `MyViews` becomes "my-views". Adding a file
    twice has no effect.

    Args:
        path: The file.

    Raises:
        FileFormatError: The path is no regular file.
        PluginError: The file is missing, cannot be imported, or defines no plugin class.
    """
    from idaa_lightly.plugin import Augmentation, Backbone, Method

    path = path.resolve()
    if path in _files:
        return
    require_file(path, "a Python file with plugins")
    digest, module = "", f"idaa_lightly_file_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{len(_files)}"
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        spec = importlib.util.spec_from_file_location(module, path)
        if spec is None or spec.loader is None:
            raise ImportError("its name does not end in .py")
        sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[module])
    except (Exception, SystemExit) as error:  # The file may raise anything.
        raise PluginError(f"the plugins of {path} cannot be imported: {type(error).__name__}: {error}") from error
    bases: dict[Kind, type] = {"method": Method, "augmentation": Augmentation, "backbone": Backbone}
    made: dict[Kind, list[Entry]] = {kind: [] for kind in KINDS}
    for name, found in inspect.getmembers(sys.modules[module], inspect.isclass):
        for kind, base in bases.items():
            if found.__module__ == module and issubclass(found, base) and not inspect.isabstract(found):
                made[kind].append(Entry(_hyphenated(name), f"{module}:{name}", path.name, digest[:9]))
    if not any(made.values()):
        wanted = ", ".join(base.__name__ for base in bases.values())
        raise PluginError(
            f"{path} defines no plugin, but expected a subclass of {wanted} from idaa_lightly.plugin with all its "
            "abstract methods"
        )
    _files[path] = digest, made


def added_files() -> dict[Path, str]:
    """Return the SHA-256 of the files that `add_file` has added."""
    return {path: digest for path, (digest, _) in _files.items()}


def sources() -> dict[str, str]:
    """Return the SHA-256 of the code of plugins that are not ours: added files, and modules that `load` imported."""
    return {path.name: digest for path, digest in added_files().items()} | _modules


def _hyphenated(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


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
        added = {path.name for path in added_files()} & {entry.distribution for entry in found}
        remedy = f"rename the class in {min(added)}" if added else "uninstall one of them"
        raise PluginError(f"{kind} {name!r} is claimed by {claims}: {remedy}")
    (entry,) = found
    try:
        plugin = importlib.metadata.EntryPoint(name, entry.target, "").load()
        from idaa_lightly.plugin import Augmentation, Backbone, Method

        bases: dict[Kind, type] = {"method": Method, "augmentation": Augmentation, "backbone": Backbone}
        base = bases[kind]
        if not (isinstance(plugin, type) and issubclass(plugin, base)):
            raise TypeError(f"expected a subclass of idaa_lightly.plugin.{base.__name__}, but got {plugin!r}")
        _note_module(entry)
        return plugin
    except (Exception, SystemExit) as error:  # A third-party module may raise anything.
        raise PluginError(
            f"{kind} {name!r} of {entry.distribution} {entry.version} cannot be imported from {entry.target}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _note_module(entry: Entry) -> None:
    """Keep the hash of the module of an entry point, unless it is ours or from an added file."""
    module = entry.target.partition(":")[0]
    file = getattr(sys.modules[module], "__file__", None)
    if file and entry.distribution not in (OWN, *(path.name for path in added_files())):
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        _modules.setdefault(f"{entry.distribution} {entry.version}, {module}", digest)


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
