"""Isolation of attacks, so that they leave no trace in a model or criterion."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from idaa_lightly.errors import ModelError


def module_of(function: Any) -> nn.Module:
    """Return the nn.Module behind a callable: itself, a bound method's owner, or the modules that a function refers to.

    The search follows functions, objects, dicts and lists in the callable's closure, in its own file, in the
    attributes that it names, and in a `functools.partial`. It does not follow properties and `getattr`.

    Args:
        function: Any callable.

    Returns:
        The module. If several or none are found, an nn.ModuleList of them.
    """
    modules = list(_modules_in(function, set()))
    return modules[0] if len(modules) == 1 else nn.ModuleList(modules)


def _modules_in(value: Any, seen: set[Any]) -> Iterator[nn.Module]:
    """Yield the modules that a callable is or refers to, once each. `seen` collects what was visited."""
    key = (id(value.__self__), id(value.__func__)) if isinstance(value, MethodType) else id(value)
    if key in seen:
        return
    seen.add(key)
    parts: list[Any] = []
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        owner, function = value.__self__, inspect.unwrap(value.__func__)
        parts = [owner] if isinstance(owner, nn.Module) else [function, *_attributes_in(function, owner)]
    elif isinstance(value, FunctionType):
        used = [value.__globals__.get(name) for name in _names(value.__code__)[0]]
        followed = (nn.Module, partial, dict, list, tuple, SimpleNamespace)
        parts = [
            part for part in used if isinstance(part, followed) or getattr(part, "__module__", None) == value.__module__
        ] + [cell.cell_contents for cell in value.__closure__ or ()]
        owners = [part for part in parts if not isinstance(part, nn.Module | partial | FunctionType | type)]
        parts += [attribute for owner in owners for attribute in _attributes_in(value, owner)]
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    elif isinstance(inspect.getattr_static(type(value), "__call__", None), FunctionType):
        parts = [value.__call__]
    for part in parts:
        yield from _modules_in(part, seen)


@cache
def _names(code: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of globals, and of all globals and attributes, in code and the functions that it makes."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    loaded = frozenset(part.argval for part in dis.get_instructions(code) if part.opname == "LOAD_GLOBAL")
    return loaded.union(*(names for names, _ in inner)), frozenset(code.co_names).union(*(names for _, names in inner))


def _attributes_in(function: Any, owner: Any) -> Iterator[Any]:
    """Yield the attributes of an object that a function names. Properties are left out, since they run code."""
    for name in sorted(_names(function.__code__)[1]) if isinstance(function, FunctionType) else ():
        attribute = inspect.getattr_static(owner, name, None)
        yield MethodType(attribute, owner) if isinstance(attribute, FunctionType) else attribute


@contextmanager
def require_found(model: Any) -> Iterator[None]:
    """Check that `module_of(model)` has every BatchNorm that is called inside the with-block in training mode.

    Args:
        model: Any callable. An nn.Module and its methods are not checked, since they have what they call. A function
            that calls compiled modules is not either, since the hook would have them compiled again each time.

    Raises:
        ModelError: A BatchNorm was called that is not among them.
    """
    found = module_of(model)
    known = set(map(id, found.modules()))

    def check(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, _BatchNorm) and module.training and id(module) not in known:
            raise ModelError(
                f"the model is {getattr(model, '__qualname__', type(model).__name__)!r}, which calls a network that "
                "could not be found, so an attack would change its BatchNorms: pass the nn.Module or a method of one, "
                "or a function that names it"
            )

    compiled = any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in found.modules())
    if compiled or found is model or found is getattr(model, "__self__", None):
        yield
        return
    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def preserved_buffers(*modules: nn.Module, norms: bool = False) -> Iterator[None]:
    """Replace all buffers (memory banks, queues, centres) with clones, and restore the originals on exit.

    Tensors in plain attributes are replaced as well, because some of Lightly's losses, such as TiCoLoss, keep their
    state there. The originals are never written to, so graphs that saved them stay valid.

    Args:
        modules: Modules whose buffers are replaced, including those of their submodules.
        norms: Include BatchNorms. They are skipped by default, because their adversarial branch has no buffers.
    """
    lent = [
        (store, name, value)
        for part in nn.ModuleList(modules).modules()
        if norms or not isinstance(part, _BatchNorm)
        for store in (part._buffers, vars(part))
        for name, value in store.items()
        if value is None or isinstance(value, Tensor)
    ]
    try:
        for store, name, value in lent:
            store[name] = None if value is None else value.clone()
        yield
    finally:
        for store, name, value in lent:
            if value is not None or isinstance(store.get(name), Tensor):
                store[name] = value
