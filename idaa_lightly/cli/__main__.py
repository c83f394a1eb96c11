"""Entry point of `python -m idaa_lightly.cli`, equivalent to `idaa-bench`."""

from __future__ import annotations

import sys

from idaa_lightly.cli import main

sys.exit(main())
