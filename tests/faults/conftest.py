"""What other tests have serves here too: runs in processes of their own that can be killed, images, a sound book."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("runs", "data", "cli", "config", "training")]
