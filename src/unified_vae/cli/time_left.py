"""Time left, from the pace of the last minutes. The clock is monotonic: changing the date fools nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SPACING_SECONDS = 5.0
MARKS = 120  # at 5 seconds a mark, the pace is that of the last ten minutes


class TimeLeft:
    """Estimates seconds until a step; validation and saving count into the pace, as they will come again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)
        self._last = (0.0, 0)

    def step(self, step: int) -> None:
        """Step number `step` was just taken. The first one, which also warms up, only starts the clock."""
        self._last = (self._clock(), step)
        if not self._marks or self._last[0] - self._marks[-1][0] >= SPACING_SECONDS:
            self._marks.append(self._last)

    def seconds_to(self, step: int) -> float | None:
        """Seconds until `step` has been taken, never negative; None before there is a pace."""
        if not self._marks:
            return None
        (start, first), (now, last) = self._marks[0], self._last
        if last <= first:
            return None
        return max(0.0, (step - last) * (now - start) / (last - first))


def clock_text(seconds: float | None) -> str:
    """Seconds as h:mm:ss, with days where there are some; `--:--` where unknown."""
    if seconds is None:
        return "--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02}:{second:02}"
    return f"{days}d {text}" if days else text
