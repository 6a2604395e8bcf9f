"""Events of a run, and the observers that receive them: screen, log files, TensorBoard.

Observers return nothing, and the numbers of a run are the same with or without them. Importing this does not import
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unified_vae.core.errors import EnvironmentProblem, reason


@dataclass(frozen=True)
class TermRow:
    """One weighted term of the objective, as shown at start and on resume.

    Attributes:
        name: dotted path, e.g. `loss.kl`.
        weight: the configured weight; for `loss.kl` this is beta.
        schedule: in words.
        factor: the schedule's factor at this moment; weight * factor is what counts now.
        note: e.g. what the term replaces, or its calibrated mean.
    """

    name: str
    weight: float
    schedule: str
    factor: float
    note: str = ""


@dataclass(frozen=True)
class Difference:
    """A setting that differs between the checkpoint and this start."""

    path: str
    before: object
    now: object


@dataclass(frozen=True)
class RunStarted:
    """A run is about to take its first step (or its first after a resume).

    Attributes:
        facts: (label, text) pairs of what was resolved: device, precision, data counts, parameters, sigma, ...
        terms: the objective, beta among them.
        differences: on resume, what changed since the checkpoint.
    """

    run_dir: Path
    start_step: int
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    resumed: bool
    facts: Sequence[tuple[str, str]]
    terms: Sequence[TermRow]
    differences: Sequence[Difference] = ()


@dataclass(frozen=True)
class Memory:
    """Bytes. The device fields are None on the CPU."""

    process: int
    device_allocated: int | None = None
    device_reserved: int | None = None
    device_peak: int | None = None
    device_total: int | None = None


@dataclass(frozen=True)
class StepDone:
    """One optimizer step was taken. No number here waits for the device."""

    step: int
    total_steps: int
    steps_per_epoch: int
    batch_size: int


@dataclass(frozen=True)
class LossesLogged:
    """Means of the training numbers since the last such entry: losses, rate, bits per dimension, lr, beta, ...

    Attributes:
        values: deterministic numbers, dotted names (`loss.total`, `loss.mse`, `rate.nats`, `lr`, ...).
        images_per_second: over the same steps.
        data_share: part of their time for which the host waited for images, 0 to 1.
    """

    step: int
    values: Mapping[str, float]
    images_per_second: float
    memory: Memory
    data_share: float = 0.0


@dataclass(frozen=True)
class Validated:
    """The validation set was passed through the averaged weights.

    Attributes:
        values: deterministic numbers (`psnr`, `rate.nats`, `active_units`, `loss.total`, ...).
        kl_per_unit: mean KL of each latent unit, nats.
        best: whether this is the best so far.
        selecting: whether the selection of the best weights has started (warm-ups over).
        num_bad_epochs: validations without gain.
        patience: how many of them end the run; None for never.
    """

    step: int
    epoch: int
    values: Mapping[str, float]
    kl_per_unit: Sequence[float]
    best: bool
    selecting: bool
    num_bad_epochs: int
    patience: int | None
    seconds: float


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete on disk.

    Attributes:
        seconds: of writing, beside the training.
        stalled: seconds for which the training waited.
    """

    step: int
    path: Path
    seconds: float
    stalled: float


@dataclass(frozen=True)
class StepSkipped:
    """A step changed nothing, because a metric of it was NaN/Inf.

    Attributes:
        step: counted from 1.
        epoch: pass over the images, from 0.
        rollbacks: how often the run was rolled back before.
        metrics: names of those that were NaN/Inf.
        images: names of all images of the batch.
    """

    step: int
    epoch: int
    rollbacks: int
    metrics: Sequence[str]
    images: Sequence[str]


@dataclass(frozen=True)
class RolledBack:
    """The run returned to an earlier checkpoint; the steps after `step` are taken again."""

    step: int


@dataclass(frozen=True)
class ImagesWritten:
    """A file of sample images was written."""

    step: int
    tag: str
    path: Path


@dataclass(frozen=True)
class RunFinished:
    """The run is over.

    Attributes:
        outcome: `finished`, `stopped early`, `already finished`, or `interrupted`.
        signal: name of the signal, or the reason, that interrupted it, else "".
        values: the figures of the best weights (`psnr`, ...); empty where nothing was validated.
        best_step: step of those weights.
        seconds: from the start of this process's work to its end, what comes before and after the steps included.
        model_dir: the exported model, None where there is none yet.
        exit_code: what the process should return.
        advice: lines to print: what to do next.
    """

    outcome: str
    run_dir: Path
    step: int
    values: Mapping[str, float]
    best_step: int | None
    seconds: float
    model_dir: Path | None = None
    signal: str = ""
    exit_code: int = 0
    advice: Sequence[str] = field(default_factory=tuple)


class Observer:
    """Receives events; every method does nothing unless overridden.

    Attributes:
        writes: what it writes, for the line that says that it cannot.
    """

    writes: str = "the screen"

    def phase(self, text: str, done: int, total: int | None) -> None:
        """Long preparation is under way (reading images, packing, calibrating): `done` of `total`."""

    def notice(self, text: str) -> None:
        """A line the user should read."""

    def run_started(self, event: RunStarted) -> None: ...

    def step_done(self, event: StepDone) -> None: ...

    def losses_logged(self, event: LossesLogged) -> None: ...

    def validated(self, event: Validated) -> None: ...

    def checkpoint_saved(self, event: CheckpointSaved) -> None: ...

    def step_skipped(self, event: StepSkipped) -> None: ...

    def rolled_back(self, event: RolledBack) -> None: ...

    def images_written(self, event: ImagesWritten) -> None: ...

    def run_finished(self, event: RunFinished) -> None: ...


class Observers(Observer):
    """Hands each event to several observers, in order.

    One whose file cannot be written ends no run: it is named once, and tried again with each event.
    """

    def __init__(self, members: Sequence[Observer]) -> None:
        self.members = list(members)
        self._failed: list[Observer] = []  # those that were reported


def _forward(name: str) -> Callable[..., None]:
    """A method of `Observers` that calls the method `name` of each member."""

    def method(self: Observers, *args: object) -> None:
        for member in self.members:
            try:
                getattr(member, name)(*args)
            except (OSError, EnvironmentProblem) as error:
                if member not in self._failed:
                    self._failed.append(member)
                    self.notice(f"{member.writes} cannot be written ({reason(error)}): training continues without it")

    return method


for _name, _value in list(vars(Observer).items()):
    if callable(_value) and not _name.startswith("_"):
        setattr(Observers, _name, _forward(_name))
