"""Check a GPU: that training is right on it (--correct) and how fast a step is (--speed).

    uv run benchmarks/gpu_check.py                       both, in under five minutes
    PYTHONPATH=src python benchmarks/gpu_check.py ...    from a plain source tree, without uv and network
    ... --device cpu --quick                             shows that the script itself works

Each check runs by itself: one that fails does not stop the next. A JSON line per result is printed as it is known,
all of them are written to benchmarks/results/gpu_check.json, and the exit code is 1 where a correctness check failed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from machine import write_result
from unified_vae.config.loss import (
    Capacity,
    Geco,
    KLConfig,
    L1Config,
    LossConfig,
    MSEConfig,
    MSSSIMConfig,
    Unconstrained,
)
from unified_vae.config.model import ConvConfig, ResidualConfig, SpatialConfig
from unified_vae.config.optim import AdamConfig, AdamWConfig, SGDConfig
from unified_vae.config.presets import PresetBook
from unified_vae.config.training import CheckpointConfig
from unified_vae.core.checkpoint_format import load
from unified_vae.core.events import Observer
from unified_vae.data.batches import TrainBatch
from unified_vae.losses.build import build_objective
from unified_vae.models.build import build_model
from unified_vae.optim.build import build_optimizers
from unified_vae.training import train_step as train_step_module
from unified_vae.training.checkpointer import Checkpointer
from unified_vae.training.distributed import Runtime, open_runtime
from unified_vae.training.ema import EMA
from unified_vae.training.state import TrainState
from unified_vae.training.train_step import VAEStep, scale_learning_rates, to_unit_range

SMALL = {
    "residual": ResidualConfig(image_size=64, latents=64, base_channels=16, channels=3),
    "conv": ConvConfig(image_size=64, latents=64, base_channels=16, channels=3),
    "spatial": SpatialConfig(image_size=64, base_channels=32, channels=3),
}
PIXEL_LOSS = LossConfig(mse=MSEConfig(weight=1.0), l1=L1Config(weight=0.2), kl=KLConfig(weight=2.0))
GRAY_ZONE = 1e-4  # relative: what TF32 would exceed by far


def make_step(
    model: Any, runtime: Runtime, loss: LossConfig = PIXEL_LOSS, optimizer: Any = None, batch: int = 8, **settings: Any
) -> tuple[VAEStep, TrainBatch]:
    """A step with untrained weights and a calibrated scale, and one batch of random images, on the device."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (batch, 3, model.image_size, model.image_size), dtype=torch.uint8, generator=generator
    )
    network = build_model(model, seed=0).to(runtime.device).to(memory_format=runtime.memory_format)
    objective = build_objective(loss, 3, model.image_size).to(runtime.device)
    pixels = to_unit_range(images[:2].to(runtime.device), runtime.memory_format)
    with torch.no_grad(), runtime.autocast():
        output = network(pixels, torch.zeros(2, network.latents, device=runtime.device))
        objective.observe(objective.measure(output, pixels))
    optimizers = build_optimizers(optimizer or AdamWConfig(lr=1e-3), network, runtime.fused)
    settings = {"seed": 0, "total_steps": 1000, "max_grad_norm": 1.0, **settings}
    step = VAEStep(runtime, network, EMA(network, 0.99), objective, optimizers, **settings)
    scale_learning_rates(optimizers.values(), 1.0)
    return step, TrainBatch(np.arange(batch), 0, images.to(runtime.device))


def weights(step: VAEStep) -> torch.Tensor:
    """All parameters, one after the other, on the CPU."""
    return torch.cat([parameter.detach().float().flatten().cpu() for parameter in step.model.parameters()])


def everything(step: VAEStep) -> dict[str, torch.Tensor]:
    """All tensors that a step may change."""
    state = {
        f"{name}/{key}": value for name, entry in step.stateful.items() for key, value in entry.state_dict().items()
    }
    return {key: value.detach().clone() for key, value in state.items() if isinstance(value, torch.Tensor)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[key].nan_to_num(7.0), b[key].nan_to_num(7.0)) for key in a)


# --- correctness -----------------------------------------------------------------------------------------


def tf32_is_off(runtime: Runtime) -> dict[str, float]:
    """fp32 convolutions and products inside of a runtime, against float64 on the CPU."""
    x, w = torch.randn(4, 32, 32, 32), torch.randn(32, 32, 3, 3)
    a, b = torch.randn(256, 512), torch.randn(512, 256)
    exact = torch.conv2d(x.double(), w.double(), padding=1), a.double() @ b.double()
    x, w, a, b = (t.to(runtime.device) for t in (x, w, a, b))
    found = torch.conv2d(x, w, padding=1).cpu().double(), (a @ b).cpu().double()
    errors = [float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, exact, strict=True)]
    assert max(errors) < 2e-6, f"relative errors {errors}: this is not fp32"
    return {"conv": errors[0], "matmul": errors[1]}


def cpu_equals_device(runtime: Runtime) -> dict[str, float]:
    """Three steps with the same weights, images and noise on the CPU and on the device."""
    cpu, noise, results = Runtime(torch.device("cpu"), torch.float32), torch.randn(8, 64), {}
    draw = train_step_module.latent_noise
    train_step_module.latent_noise = lambda *args: noise.to(args[-1])  # type: ignore[assignment]
    try:
        for where in (cpu, replace(runtime, dtype=torch.float32)):
            step, batch = make_step(SMALL["residual"], where)
            metrics = [step(batch, number).cpu() for number in range(3)]
            results[len(results)] = torch.stack(metrics)[:, :3], weights(step)
        half, batch = make_step(SMALL["residual"], replace(runtime, dtype=torch.bfloat16))
        loss = float(half(batch, 0)[0])
    finally:
        train_step_module.latent_noise = draw
    (metrics_a, weights_a), (metrics_b, weights_b) = results[0], results[1]
    of_metrics = float(((metrics_a - metrics_b) / metrics_a).abs().max())
    of_weights = float((weights_a - weights_b).abs().max())
    of_bf16 = abs(loss / float(metrics_a[0, 0]) - 1)
    assert of_metrics < GRAY_ZONE and of_weights < GRAY_ZONE, f"metrics {of_metrics:.1e}, weights {of_weights:.1e}"
    assert of_bf16 < 0.02, f"bf16 loss differs by {of_bf16:.1%}"
    return {"metrics": of_metrics, "weights": of_weights, "bf16_loss": of_bf16}


def steps_do_not_wait(runtime: Runtime) -> dict[str, float]:
    """No step reads a number back from the device."""
    checked = 0
    for optimizer in (AdamWConfig(), AdamConfig(), SGDConfig()):
        for constraint in (Unconstrained(), Geco(), Capacity()):
            loss = PIXEL_LOSS.replace(**{"kl.constraint": constraint.model_dump()})
            step, batch = make_step(SMALL["conv"], runtime, loss, optimizer)
            step(batch, 0)
            if runtime.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                for number in range(1, 4):
                    step(batch, number)
            finally:
                if runtime.device.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            checked += 1
    return {"combinations": checked}


def non_finite_steps_are_skipped(runtime: Runtime) -> dict[str, float]:
    """A NaN image changes nothing; the next step is finite again."""
    for optimizer in (AdamWConfig(), AdamConfig(), SGDConfig()):
        step, batch = make_step(SMALL["conv"], runtime, optimizer=optimizer)
        step(batch, 0)
        before = everything(step)
        spoiled = to_unit_range(batch.images).clone()
        spoiled[3, 0, 2, 2] = float("nan")
        metrics = step(TrainBatch(batch.indices, 0, spoiled), 1)
        assert not torch.isfinite(metrics).all() and equal(before, everything(step)), "a skipped step changed something"
        assert torch.isfinite(step(batch, 1)).all(), "the step after it is not finite"
    return {"optimizers": 3}


def fp16_overflow_is_skipped(runtime: Runtime) -> dict[str, float]:
    """An overflow of the loss scale is skipped, the scale halves, and training continues."""
    if runtime.device.type == "cpu":
        return {"skipped": 1.0}
    step, batch = make_step(SMALL["conv"], replace(runtime, dtype=torch.float16))
    step(batch, 0)
    before, scaler = weights(step), step.updater.scaler
    scaler._scale.fill_(2.0**40)  # type: ignore[union-attr]
    step(batch, 1)
    assert torch.equal(before, weights(step)) and scaler.get_scale() == 2.0**39
    while scaler.get_scale() > 2.0**16:
        step(batch, 2)
    losses = [float(step(batch, number)[0]) for number in range(3, 60)]
    assert np.isfinite(losses).all()
    return {"scale": scaler.get_scale()}


def memory_formats_agree(runtime: Runtime) -> dict[str, float]:
    """channels_last and contiguous give the same losses in bf16."""
    losses = []
    for name in ("contiguous", "channels_last"):
        step, batch = make_step(SMALL["residual"], replace(runtime.with_memory_format(name), dtype=torch.bfloat16))
        losses.append([float(step(batch, number)[0]) for number in range(5)])
    difference = float(np.abs(np.array(losses[0]) / np.array(losses[1]) - 1).max())
    assert difference < 1e-2, f"losses differ by {difference:.1%}"
    return {"loss": difference}


def compiled_equals_eager(runtime: Runtime) -> dict[str, float]:
    """torch.compile changes a loss by rounding only."""
    losses = []
    for compiled in (False, True):
        step, batch = make_step(SMALL["residual"], runtime, compile=compiled)
        losses.append([float(step(batch, number)[0]) for number in range(5)])
    difference = float(np.abs(np.array(losses[0]) / np.array(losses[1]) - 1).max())
    assert difference < 1e-2, f"losses differ by {difference:.1%}"
    return {"loss": difference}


def out_of_memory_shrinks_micro_batches(runtime: Runtime) -> dict[str, float]:
    """Where a batch does not fit, micro-batches give the result of the whole one, and the memory is freed."""
    if runtime.device.type != "cuda":
        return {"skipped": 1.0}
    whole, batch = make_step(SMALL["residual"], runtime, batch=256)
    expected = float(whole(batch, 0)[0])
    used = torch.cuda.max_memory_allocated()
    del whole
    runtime.empty_cache()
    step, batch = make_step(SMALL["residual"], runtime, batch=256)
    total = torch.cuda.get_device_properties(runtime.device).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * used / total)
    try:
        loss = float(step(batch, 0)[0])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert step.micro_batches.count > 1, "it fitted"
    assert abs(loss / expected - 1) < 1e-3, f"loss {loss} instead of {expected}"
    return {"micro_batches": step.micro_batches.count}


def saves_beside_training(runtime: Runtime) -> dict[str, float]:
    """A checkpoint holds the weights of its step, though training goes on while it is written."""
    step, batch = make_step(SMALL["residual"], runtime)
    step(batch, 0)
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(
            Path(folder) / "checkpoints",
            CheckpointConfig(),
            step.stateful,
            steps_per_epoch=10,
            runtime=runtime,
            observer=Observer(),
            record={},
        )
        checkpointer.prepare()
        before = everything(step)
        begun = time.perf_counter()
        checkpointer.save(TrainState(step=1))
        stalled = time.perf_counter() - begun
        for number in range(1, 20):
            step(batch, number)
        checkpointer.wait()
        saved = load(Path(folder) / "checkpoints", 1)
    state = {f"{name}/{key}": value for name, group in saved.groups.items() for key, value in group.items()}
    assert equal({key: value.cpu() for key, value in before.items()}, state), "the checkpoint is of another step"
    return {"stalled_ms": 1e3 * stalled}


def deterministic_runs_repeat(runtime: Runtime) -> dict[str, float]:
    """With deterministic kernels two runs give the same bits, for each family."""
    with open_runtime(str(runtime.device), "auto", deterministic=True) as strict:
        for name, model in SMALL.items():
            states = []
            for _ in range(2):
                step, batch = make_step(model, strict)
                for number in range(5):
                    step(batch, number)
                states.append(everything(step))
            assert equal(*states), f"{name}: two runs differ"
    return {"families": len(SMALL)}


CORRECT: tuple[Callable[[Runtime], dict[str, float]], ...] = (
    tf32_is_off,
    cpu_equals_device,
    steps_do_not_wait,
    non_finite_steps_are_skipped,
    fp16_overflow_is_skipped,
    memory_formats_agree,
    out_of_memory_shrinks_micro_batches,
    saves_beside_training,
    deterministic_runs_repeat,
    compiled_equals_eager,
)


# --- speed -----------------------------------------------------------------------------------------------

MIX = PIXEL_LOSS.replace(ms_ssim=MSSSIMConfig(weight=0.1).model_dump())


def measured(runtime: Runtime, model: Any, loss: LossConfig, batch: int, steps: int) -> dict[str, float]:
    """Host and device milliseconds per step, kernel launches and peak memory, of steps on one batch."""
    step, images = make_step(model, runtime, loss, batch=batch)
    for number in range(3):
        step(images, number)
    runtime.synchronize()
    runtime.reset_peak_memory()
    host, begun = [], time.perf_counter()
    for number in range(3, 3 + steps):
        started = time.perf_counter()
        step(images, number)
        host.append(time.perf_counter() - started)  # time to issue, where the device does not hold the host up
    runtime.synchronize()
    seconds = (time.perf_counter() - begun) / steps
    result = {"ms": 1e3 * seconds, "host_ms": 1e3 * statistics.median(host), "images_per_second": batch / seconds}
    if runtime.device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            step(images, 3 + steps)
            runtime.synchronize()
        events = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        result |= {"launches": len(events), "peak_gib": torch.cuda.max_memory_allocated() / 2**30}
    return result


def speed_cases(quick: bool) -> dict[str, tuple[Any, LossConfig, int]]:
    """Name -> (model, loss, batch)."""
    if quick:
        return {"conv, MSE+L1, batch 4": (SMALL["conv"], PIXEL_LOSS, 4)}
    book = PresetBook.load()

    def preset(name: str) -> Any:
        return book.compose({"model": name}, _no_settings()).config.model.replace(channels=3)

    return {
        "small, MSE+L1, batch 16": (preset("small"), PIXEL_LOSS, 16),
        "small, MSE+L1, batch 64": (preset("small"), PIXEL_LOSS, 64),
        "conv_64, MSE+L1, batch 64": (preset("conv_64"), PIXEL_LOSS, 64),
        "fast_high_quality, MSE+L1, batch 64": (preset("fast_high_quality"), PIXEL_LOSS, 64),
        "fast_high_quality, with MS-SSIM, batch 64": (preset("fast_high_quality"), MIX, 64),
        "ultra_high_quality, MSE+L1, batch 32": (preset("ultra_high_quality"), PIXEL_LOSS, 32),
        "spatial_f8, MSE+L1, batch 16": (preset("spatial_f8"), PIXEL_LOSS, 16),
    }


def _no_settings() -> Any:
    from unified_vae.config.settings import Settings

    return Settings()


# --- running them ----------------------------------------------------------------------------------------


def attempt(name: str, work: Callable[[], dict[str, float]], results: list[dict[str, Any]]) -> bool:
    """Run one check, print its line, and say whether it passed."""
    begun = time.perf_counter()
    line: dict[str, Any] = {"name": name, "ok": True}
    try:
        line |= {key: round(value, 6) if isinstance(value, float) else value for key, value in work().items()}
    except Exception as error:  # one check never stops the next
        line |= {"ok": False, "error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    line["seconds"] = round(time.perf_counter() - begun, 2)
    results.append(line)
    print(json.dumps(line), flush=True)
    return bool(line["ok"])


def main() -> int:
    """Run what the options ask for; the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    options.add_argument("--correct", action="store_true", help="the correctness checks only")
    options.add_argument("--speed", action="store_true", help="the speed table only")
    options.add_argument("--quick", action="store_true", help="few and small: shows that the script works")
    options.add_argument("--compile", action="store_true", help="check torch.compile too, which takes a minute")
    options.add_argument("--seconds", type=float, default=280.0, help="start no further check after so many")
    chosen = options.parse_args()
    begun, results, passed = time.monotonic(), [], True
    with open_runtime(chosen.device, "auto") as runtime:
        print(json.dumps({"device": runtime.describe(), "torch": torch.__version__}), flush=True)
        if chosen.correct or not chosen.speed:
            for check in CORRECT:
                if check is compiled_equals_eager and not chosen.compile:
                    continue
                if time.monotonic() - begun < chosen.seconds:
                    passed &= attempt(check.__name__, lambda check=check: check(runtime), results)
        if chosen.speed or not chosen.correct:
            steps = 2 if chosen.quick else 20
            formats = ("contiguous",) if chosen.quick else ("contiguous", "channels_last")
            for name, (model, loss, batch) in speed_cases(chosen.quick).items():
                for memory_format in formats:
                    if time.monotonic() - begun > chosen.seconds:
                        break
                    where = runtime.with_memory_format(memory_format)
                    work = lambda where=where, m=model, ls=loss, b=batch: measured(where, m, ls, b, steps)  # noqa: E731
                    attempt(f"{name}, {memory_format}", work, results)
                    runtime.empty_cache()
        device = runtime.describe()
    if not chosen.quick:
        print(f"wrote {write_result('gpu_check', {'device': device, 'results': results})}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
