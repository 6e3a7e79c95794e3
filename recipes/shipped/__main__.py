"""`python -m sdk.recipes.shipped RUN`: take in a finished run."""

from __future__ import annotations

import sys
from pathlib import Path

from sdk.recipes.shipped import take_in

take_in(Path(sys.argv[1]))
