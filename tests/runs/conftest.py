"""Figures that the long forms find go to the table of faults."""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / room) for room in ("faults", "training")]
