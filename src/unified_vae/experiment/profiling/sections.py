"""Named parts of a step with their own time: what a part calls by another name is that one's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.profiler import record_function

from unified_vae.experiment.fitting.assemble import Parts

OTHER = "noise, checks, and the rest"


class Sections:
    """Adds up seconds by name.

    The device finishes one part before the next begins, so that its time is the part's. Between parts that
    would otherwise overlap this costs time, which is why a step is also timed as a whole.

    Attributes:
        seconds: name -> seconds, in the order in which the parts were first entered.
    """

    def __init__(self, wait: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._wait = wait
        self._clock = clock
        self._open: list[str] = []
        self._mark = 0.0

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Time until the end of the block is that of `name`, except inside of other parts."""
        self._pass()
        self._open.append(name)
        self.seconds.setdefault(name, 0.0)
        try:
            with record_function(name):
                yield
        finally:
            self._pass()
            self._open.pop()

    def wrap(self, owner: object, attribute: str, name: str) -> None:
        """Let each call of a method, or of a module's `forward`, be a part."""
        function = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, timed)

    def _pass(self) -> None:
        """The time since the last mark belongs to the part that is open."""
        self._wait()
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._mark
        self._mark = now


def watch(parts: Parts, sections: Sections) -> None:
    """Let the parts of a step be timed; they compute the same. They are not to be used for training after that."""
    stepper, model, objective = parts.stepper, parts.model, parts.objective
    if parts.plan.training.compile is True:
        sections.wrap(stepper, "_forward", "forward and distortions, compiled")
    else:
        sections.wrap(model.encoder, "forward", "forward: encoder")
        sections.wrap(model.decoder, "forward", "forward: decoder")
        if model.linear is not None:
            sections.wrap(model.encoder, "prepared", "forward: preparing images for the linear path")
            sections.wrap(model.linear, "encode", "forward: linear path")
            sections.wrap(model.linear, "decode", "forward: linear path")
        for name, term in objective.terms.items():
            sections.wrap(term, "forward", f"loss: {name}")
        sections.wrap(stepper, "_forward", "forward: posterior and the rest")
    sections.wrap(stepper, "_pixels", "pixels to [0, 1]")
    sections.wrap(objective, "forward", "loss: rate and calibration")
    sections.wrap(stepper, "_differentiate", "backward")
    sections.wrap(stepper, "_exchanged_norm", "norm of the gradient")
    sections.wrap(stepper, "_update", "clipping and optimizer")
    sections.wrap(parts.ema, "update", "averaged weights")
    sections.wrap(objective, "observe", "calibration's running means")
    sections.wrap(stepper, "take", OTHER)
