"""Identity-disentangled adversarial views for self-supervised learning with Lightly.

The public names are listed in `__init__.pyi` and imported when they are first used, so that `idaa-bench --help` does
not wait for torch.
"""

from __future__ import annotations

import lazy_loader

_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name, or read `__version__` from the installed distribution, on first use."""
    if name != "__version__":
        return _public_name(name)
    from importlib.metadata import version

    return version("idaa-lightly")
