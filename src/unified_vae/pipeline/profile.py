"""Profile: take some steps of a planned run, and say where their time goes. Nothing is trained or saved."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from unified_vae.analysis.preflight import run_preflight
from unified_vae.config.run import ComposedRun
from unified_vae.core.errors import ConfigError
from unified_vae.core.events import Memory, Observer, Observers
from unified_vae.core.files import with_affixes, write_text
from unified_vae.data.batches import train_batches
from unified_vae.losses.perceptual import ARCHITECTURES, Backbone
from unified_vae.pipeline.build import build_vae_step, calibrate, make_schedule
from unified_vae.pipeline.errors import translate_runtime_errors
from unified_vae.pipeline.setup import cache_images, first_batch, open_images, resolve
from unified_vae.training.distributed import Runtime, open_runtime
from unified_vae.training.train_step import PARTS, scale_learning_rates

WARM_UP_STEPS, TRACED_STEPS = 3, 5
MIN_STEPS, MAX_STEPS, TIMED_SECONDS = 3, 50, 10.0
SUFFIX = "-profile"  # of the folder: it holds neither config.json nor checkpoints, so nothing takes it for a run
DATA, FORWARD, OTHER = "data: images", "forward", "noise, checks, and the rest"


@dataclass(frozen=True)
class Profile:
    """What a step of a run costs.

    Attributes:
        device: in words, with the precision.
        steps: measured, as a whole and in parts.
        step_seconds: median of a step as a run takes it.
        parts: name -> seconds per step, on the GPU where there is one.
    """

    device: str
    batch_size: int
    steps: int
    step_seconds: float
    parts: dict[str, float]
    memory: Memory


def profile_folder(run_dir: Path) -> Path:
    """Where the profile of a run goes: a folder of its own beside the run's."""
    return with_affixes(run_dir, after=SUFFIX)


def profile(run: ComposedRun, folder: Path, observer: Observer) -> Profile:
    """Measure a planned run, and write `profile.json` and `trace.json` (chrome://tracing, ui.perfetto.dev) to `folder`.

    Raises:
        UserError: settings, data or environment that the user can fix.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--profile looks at one device: start it with python or uv run, without torchrun")
    training = run.config.training
    with (
        translate_runtime_errors(),
        open_runtime(run.config.device, training.precision, training.deterministic) as runtime,
    ):
        result = _measure(run, folder, runtime, observer)
        write_text(folder / "profile.json", json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return result


def _measure(run: ComposedRun, folder: Path, runtime: Runtime, observer: Observer) -> Profile:
    # the step of the run as at its start
    data = open_images(run, runtime, Observers([observer]))
    observer.phase("computing the PCA of the training images", 0, None)
    theory, _ = run_preflight(run.config, data, runtime.device)
    cached, _ = cache_images(data.train, run.config.data, runtime)  # before anything is measured, as in a run
    resolved = resolve(run, data, runtime, observer, theory)
    runtime = runtime.with_memory_format(resolved.config.training.memory_format)
    step = build_vae_step(resolved.config, data, runtime)
    schedule = make_schedule(resolved.config, data, step.objective)
    calibrate(step, *first_batch(step, data, schedule))
    scale_learning_rates(step.optimizers.values(), 1e-6)

    batches = train_batches(
        data.train,
        seed=schedule.seed,
        start_step=0,
        end_step=WARM_UP_STEPS + MAX_STEPS + TRACED_STEPS,
        batch_size=schedule.batch_size,
        pin_memory=runtime.device.type == "cuda",
        cached_images=cached,
    )
    with closing(batches):
        number = 0

        def take_step() -> float:
            """Take a step as a run does, apart from validation, images and saves; returns its seconds."""
            nonlocal number
            runtime.synchronize()
            started = time.perf_counter()
            with record_function(DATA):
                batch = next(batches)
            step(batch, min(number, step.total_steps - 1))
            runtime.synchronize()
            number += 1
            return time.perf_counter() - started

        observer.phase("warming up", 0, None)
        pace = [take_step() for _ in range(WARM_UP_STEPS)][-1]
        count = int(min(max(TIMED_SECONDS / max(pace, 1e-6), MIN_STEPS), MAX_STEPS))
        observer.phase(f"timing {count} steps as a whole, {TRACED_STEPS} in parts", 0, None)
        seconds = statistics.median(take_step() for _ in range(count))
        memory = runtime.memory()
        # let the parts of the forward pass show up by name
        if not step.compiled:
            modules = {"forward: encoder": step.model.encoder, "forward: decoder": step.model.decoder}
            modules |= {f"loss: {name}": term for name, term in step.objective.terms.items()}
            backbones = [module for module in step.objective.modules() if isinstance(module, Backbone)]
            modules |= {f"loss: features of {ARCHITECTURES[backbone.net].title}": backbone for backbone in backbones}
            for name, module in modules.items():
                module.forward = record_function(name)(module.forward)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if runtime.device.type == "cuda" else [])]
        with torch_profile(activities=activities) as trace:
            total = sum(take_step() for _ in range(TRACED_STEPS))
        parts = _seconds_by_part(trace, total, TRACED_STEPS)
        folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(folder / "trace.json"))
    return Profile(
        device=runtime.describe(),
        batch_size=schedule.batch_size,
        steps=count,
        step_seconds=seconds,
        parts=parts,
        memory=memory,
    )


def _seconds_by_part(trace: Any, total: float, count: int) -> dict[str, float]:
    """Seconds per step of each named part, without the parts inside of it; what is left of `total` is the last."""
    seconds: dict[str, float] = {}
    for event in trace.key_averages():
        if event.key in PARTS or event.key == DATA or event.key.startswith(("forward: ", "loss: ")):
            on_device = getattr(event, "device_time_total", 0.0)
            seconds[event.key] = max(seconds.get(event.key, 0.0), 1e-6 * (on_device or event.cpu_time_total) / count)
    # the modules and loss terms of the forward pass; "loss: rate and calibration" comes after it
    nested = [name for name in seconds if name.startswith(("forward: ", "loss: ")) and name not in PARTS]
    inside = sum(seconds[name] for name in nested)
    if FORWARD in seconds and inside:
        seconds["forward: posterior and the rest"] = max(seconds.pop(FORWARD) - inside, 0.0)
    seconds[OTHER] = max(total / count - sum(seconds.values()), 0.0)
    return seconds
