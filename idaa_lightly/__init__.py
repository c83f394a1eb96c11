"""Identity-disentangled adversarial views for self-supervised learning with Lightly.

Public names are listed in `__init__.pyi`. Each is imported on first use, so that `idaa-bench --help` does not wait for
torch.
"""

from __future__ import annotations

import lazy_loader

_public_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name on first use. `__version__` is read from the installed distribution."""
    if name != "__version__":
        return _public_name(name)
    from importlib.metadata import version

    return version("idaa-lightly")
