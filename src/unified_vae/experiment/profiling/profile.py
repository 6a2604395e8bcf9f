"""The verb `profile`: take some steps of a planned run, and say where their time goes. Nothing is trained or saved."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torch.utils.flop_counter import FlopCounterMode

from unified_vae.config.run import ComposedRun
from unified_vae.core.device import to_device
from unified_vae.core.durable import write_text
from unified_vae.core.errors import ConfigError
from unified_vae.core.paths import sibling
from unified_vae.data.augment import augment
from unified_vae.data.batches import TrainBatch, train_batches
from unified_vae.data.dataset import DataSets
from unified_vae.experiment.diagnosis.preflight import fly
from unified_vae.experiment.fitting.assemble import Parts, build_parts, calibrate, first_batch, open_images, resolve
from unified_vae.experiment.fitting.batch_size import with_batch_size
from unified_vae.experiment.fitting.failures import failures_told
from unified_vae.experiment.fitting.residence import place
from unified_vae.experiment.fitting.tuning import tuned
from unified_vae.experiment.profiling.peak import peak_flops
from unified_vae.experiment.profiling.sections import Sections, watch
from unified_vae.training.ledger import Ledger
from unified_vae.training.observers import Memory, Observer
from unified_vae.training.runtime import Runtime, open_runtime
from unified_vae.training.state import TrainState

WARM_UP_STEPS, TRACED_STEPS = 3, 2
FEWEST_STEPS, MOST_STEPS, WANTED_SECONDS = 3, 50, 10.0
STEPS = WARM_UP_STEPS + 2 * MOST_STEPS + TRACED_STEPS + 1
SUFFIX = "-profile"  # of the folder: it holds neither config.json nor checkpoints, so nothing takes it for a run


@dataclass(frozen=True)
class Profile:
    """What a step of a run costs.

    Attributes:
        device: in words, with the precision.
        steps: measured, as a whole and in parts.
        step_seconds: median of a step as a run takes it.
        parts: name -> seconds of a step, where each part is waited for.
        step_flops: operations of a step, all networks of the loss included.
        peak_flops: of this machine a second, measured at products of matrices in the same precision.
    """

    device: str
    batch_size: int
    steps: int
    step_seconds: float
    parts: dict[str, float]
    step_flops: float
    peak_flops: float
    memory: Memory

    @property
    def flops(self) -> float:
        """Operations a second of a step."""
        return self.step_flops / self.step_seconds


def profile_folder(run_dir: Path) -> Path:
    """Where the profile of a run goes: a folder of its own beside the run's."""
    return sibling(run_dir, after=SUFFIX)


def profile(run: ComposedRun, folder: Path, observer: Observer) -> Profile:
    """Measure a planned run, and write `profile.json` and `trace.json` (chrome://tracing, ui.perfetto.dev) to `folder`.

    Raises:
        UserError: settings, data or environment that the user can mend.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--profile looks at one device: start it with python or uv run, without torchrun")
    training = run.config.training
    with failures_told(), open_runtime(run.config.device, training.precision, training.deterministic) as runtime:
        found, trace = _measured(run, runtime, observer)
        folder.mkdir(parents=True, exist_ok=True)
        trace(folder / "trace.json")
        write_text(folder / "profile.json", json.dumps(_to_json(found), indent=2) + "\n")
    return found


def _to_json(found: Profile) -> dict[str, object]:
    return {**dataclasses.asdict(found), "flops": found.flops}


def _measured(run: ComposedRun, runtime: Runtime, observer: Observer) -> tuple[Profile, Callable[[Path], None]]:
    data = open_images(run, runtime, observer)
    resident, _ = place(data.train, run.config.data, runtime)  # first, as in a run
    parts, runtime = _prepared(run, data, runtime, observer)
    with closing(_batches(parts, data, runtime, observer, resident)) as batches:
        steps = _Steps(parts, runtime, batches)
        observer.phase("warming up", 0, None)
        pace = [steps.timed() for _ in range(WARM_UP_STEPS)][-1]
        count = int(min(max(WANTED_SECONDS / max(pace, 1e-6), FEWEST_STEPS), MOST_STEPS))
        observer.phase(f"timing {count} steps as a whole, {count} in parts", 0, None)
        whole = statistics.median(steps.timed() for _ in range(count))
        memory = runtime.memory()
        flops = steps.flops()
        sections = Sections(runtime.wait)
        watch(parts, sections)
        steps.sections = sections
        for _ in range(count):
            steps.take()
        seconds = {name: taken / count for name, taken in sections.seconds.items()}
        trace = steps.traced()
    observer.phase("measuring the machine's best", 0, None)
    found = Profile(
        runtime.describe(), parts.plan.batch_size, count, whole, seconds, flops, peak_flops(runtime), memory
    )
    return found, trace


def _prepared(run: ComposedRun, data: DataSets, runtime: Runtime, observer: Observer) -> tuple[Parts, Runtime]:
    """The parts of the run as at its first step."""
    observer.phase("looking at the spectrum of the training images", 0, None)
    flight, _ = fly(run.config, data, runtime.device)
    resolved = with_batch_size(resolve(run, data, runtime, None, flight), data, runtime, None)
    resolved = tuned(resolved, data, runtime, None, observer)
    runtime = runtime.laid_out(resolved.config.training.memory_format)
    parts = build_parts(resolved.config, data, runtime)
    calibrate(parts, *first_batch(parts, data, runtime), runtime)
    return parts, runtime


def _batches(
    parts: Parts, data: DataSets, runtime: Runtime, observer: Observer, resident: Tensor | None
) -> Generator[TrainBatch, None, None]:
    return train_batches(
        data.train,
        seed=parts.plan.seed,
        start_step=0,
        end_step=STEPS,
        batch_size=parts.plan.batch_size,
        pin_memory=runtime.device.type == "cuda",
        cached_images=resident,
    )


class _Steps:
    """Takes steps as the training loop does, its validations, pictures and saves apart."""

    def __init__(self, parts: Parts, runtime: Runtime, batches: Iterator[TrainBatch]) -> None:
        self.parts = parts
        self.runtime = runtime
        self.batches = batches
        self.sections = Sections(lambda: None)
        self.state = TrainState()
        self.ledger = Ledger(parts.stepper.names, self.state, parts.plan.training.recovery, False)

    def take(self) -> None:
        plan, step = self.parts.plan, self.state.step
        with self.sections.of("data: images"):
            batch = next(self.batches)
            raw = to_device(batch.images, self.runtime.device)
        with self.sections.of("data: augmentation"):
            raw = augment(raw, batch.indices, config=plan.data.augment, seed=plan.seed, epoch=batch.epoch)
        measured = self.parts.stepper.take(raw, step, min(plan.progress(step), 1.0), 1e-6)
        self.state.step += 1
        with self.sections.of("logging"):
            self.ledger.note(measured)
            if not self.runtime.reading_waits or self.state.step % plan.training.log_every_steps == 0:
                self.ledger.settle()

    def timed(self) -> float:
        """Take a step; its seconds."""
        self.runtime.wait()
        begun = time.perf_counter()
        self.take()
        self.runtime.wait()
        return time.perf_counter() - begun

    def flops(self) -> float:
        """Take a step, and count its operations where the compiler does not hide them."""
        stepper = self.parts.stepper
        usual, stepper._compiled = stepper._compiled, None
        with FlopCounterMode(display=False) as counter:
            self.take()
        stepper._compiled = usual
        return float(counter.get_total_flops())

    def traced(self) -> Callable[[Path], None]:
        """Take some steps under torch's profiler; what writes down what it saw."""
        with torch_profile(activities=_activities(self.runtime)) as seen:
            for _ in range(TRACED_STEPS):
                self.take()
            self.runtime.wait()
        return lambda path: seen.export_chrome_trace(str(path))


def _activities(runtime: Runtime) -> Sequence[ProfilerActivity]:
    on_gpu = [ProfilerActivity.CUDA] if runtime.device.type == "cuda" else []
    return [ProfilerActivity.CPU, *on_gpu]
