"""The lives of tests/runs serve here too: runs in processes of their own that can be killed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "runs"))
