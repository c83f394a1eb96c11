"""Identity-disentangled adversarial views for self-supervised learning with Lightly.

The public names are listed in `__init__.pyi` and imported when they are first used, so that `idaa-bench --help` does
not wait for torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
