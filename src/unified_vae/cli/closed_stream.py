"""What to do with stdout or stderr when the program that read it (`head`, `tee`) has gone."""

from __future__ import annotations

import os
from typing import TextIO


def discard(stream: TextIO) -> None:
    """Let what is still to be written to a stream go nowhere.

    What it holds back would otherwise fail when Python flushes it at its end, and make another exit code of ours.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
