"""`python -m idaa_lightly.cli`."""

from __future__ import annotations

import sys

from idaa_lightly.cli import main

sys.exit(main())
