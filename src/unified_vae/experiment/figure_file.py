"""A matplotlib figure as a PNG that is there whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from unified_vae.core.durable import STAGE_PREFIX

if TYPE_CHECKING:  # matplotlib is imported by those who draw
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Draw the figure into a file; raises OSError where it cannot be written."""
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the name of a run may be in any script
        figure.savefig(stage, format="png")
    stage.replace(path)
