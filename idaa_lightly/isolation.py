"""Isolation of attacks, so that they leave no trace in a model or criterion."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def module_of(function: Any) -> nn.Module:
    """Return the nn.Module behind a callable: itself, a bound method's owner, or the modules that a function refers to.

    Args:
        function: Any callable. A `functools.partial` counts as the function inside it.

    Returns:
        The module. If several or none are found, an nn.ModuleList of them.
    """
    if isinstance(function, nn.Module):
        return function
    if isinstance(function, partial):
        return module_of(function.func)
    found = [getattr(function, "__self__", None)]
    if isinstance(function, FunctionType):
        variables = inspect.getclosurevars(function)
        found += [*variables.nonlocals.values(), *variables.globals.values()]
    modules = [value for value in found if isinstance(value, nn.Module)]
    return modules[0] if len(modules) == 1 else nn.ModuleList(modules)


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
