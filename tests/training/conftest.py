"""Whole runs are described by the helpers of tests/runs."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "runs"))
