"""Module that fork servers import first. It keeps wandb, which timm imports, from making temporary directories."""

from __future__ import annotations

import sys
from typing import Any, cast

cast(dict[str, Any], sys.modules)["wandb"] = None
