"""Time left, from the pace of the last minutes. The clock is monotonic: changing the date fools nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SPACING_SECONDS = 5.0
SHORTEST_SECONDS = 2.0  # of a preparation whose speed is told
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
        pace = self.per_second()
        return None if pace is None else max(0.0, (step - self._last[1]) / pace)

    def per_second(self, at_least: float = 0.0) -> float | None:
        """Steps a second over the last minutes; None before `at_least` so many seconds."""
        if not self._marks:
            return None
        (start, first), (now, last) = self._marks[0], self._last
        return (last - first) / (now - start) if last > first and now - start > at_least else None


class PhasePace:
    """The speed of a preparation and the time it has left, for texts that stay the same while it lasts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._text = ""
        self._left = TimeLeft(clock)

    def words(self, text: str, done: int, total: int | None) -> list[str]:
        """E.g. ["812/s", "0:01:07 left"]; empty before there is a pace."""
        if text != self._text:
            self._text, self._left = text, TimeLeft(self._clock)
        self._left.step(done)
        pace = self._left.per_second(SHORTEST_SECONDS)
        if pace is None or not total:
            return []
        speed = f"{pace:,.0f}/s" if pace >= 10 else f"{pace:.2g}/s"
        return [speed] if done >= total else [speed, f"{clock_text(self._left.seconds_to(total))} left"]


def clock_text(seconds: float | None) -> str:
    """Seconds as h:mm:ss, with days where there are some; `--:--` where unknown."""
    if seconds is None:
        return "--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    text = f"{hour}:{minute:02}:{second:02}"
    return f"{days}d {text}" if days else text
