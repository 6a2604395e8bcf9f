"""The speed of a training step against plain PyTorch and against other trainers, turn by turn.

    uv run --with pythae==0.1.2 --with lightning --with diffusers benchmarks/speed.py
    uv run benchmarks/speed.py --networks tiny --rounds 40       # the fixed cost of a step, in ms

Each contestant is a process of its own, so that what one of them settles for its process (allocator, kernels) is its
own merit. All train the same network from the same weights on the same batches, in the precision of the run. In each
round every contestant takes `--steps` steps while the others wait, in an order that changes from round to round; a
ratio is the median over rounds of our seconds by theirs. Seconds are those of the contestant's threads where it
computes on the CPU, as other programs share the machine, and those of the clock, with the device waited for, on a GPU.

- `ours`: training.train_step.VAEStep in the trainer's runtime, with what the loop does after a step: numbers counted,
  non-finite steps skipped.
- `bare`: forward, MSE + KL, backward, clipping, fused AdamW, averaged weights (a fused lerp): a loop by hand.
- `bare_kept`: the same in a process that keeps freed memory, as ours does: what is left is the loop's own cost.
- `bare_minimal`: `bare` without clipping and averaged weights.
- `pythae`, `lightning`: the same network in their trainers, which average and clip nothing unless asked: `lightning`
  with clipping and the usual callbacks. Start and end of their runs are not counted.
- `diffusers`, for the network `spatial` alone: its AutoencoderKL, which our family `spatial` equals, with the inner
  loop of its train_autoencoderkl example at MSE + KL and clipping, with averaged weights by its EMAModel. LPIPS and the
  discriminator of that example are left out, since their weights are not at hand; with them it is slower.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from script import parser, save, settle, start, table
from unified_vae.cli.app import keep_freed_memory
from unified_vae.config.loss import KLConfig, LossConfig, MSEConfig
from unified_vae.config.model import ConvConfig, ResidualConfig, SpatialConfig
from unified_vae.config.optim import AdamWConfig
from unified_vae.config.training import RecoveryConfig
from unified_vae.data.batches import TrainBatch
from unified_vae.losses.build import build_objective
from unified_vae.models.autoencoder_kl import norm_groups
from unified_vae.models.build import build_model
from unified_vae.models.vae import VAE
from unified_vae.optim.build import build_optimizers
from unified_vae.training.anomalies import MetricAccumulator
from unified_vae.training.distributed import Runtime, open_runtime
from unified_vae.training.ema import EMA
from unified_vae.training.state import TrainState
from unified_vae.training.train_step import VAEStep, scale_learning_rates, to_unit_range

NAME = "speed"
NETWORKS = {
    "issue": (ConvConfig(image_size=64, latents=512, base_channels=128, channels=3), 64),
    "middle": (ConvConfig(image_size=64, latents=128, base_channels=32, channels=3), 16),
    "small": (ResidualConfig(latents=256, max_multiplier=2, pre_encoder_blocks=1, refine_blocks=2, channels=3), 32),
    "narrow_64": (ResidualConfig(latents=256, base_channels=32, max_multiplier=2, channels=3), 32),
    "narrow_128": (ResidualConfig(image_size=128, latents=512, base_channels=32, max_multiplier=2, channels=3), 16),
    "spatial": (SpatialConfig(image_size=64, base_channels=32, latent_channels=4, channels=3), 8),
    "tiny": (ConvConfig(image_size=16, latents=16, base_channels=4, channels=3), 8),
}
CONTESTANTS = ("ours", "bare", "bare_kept", "bare_minimal", "pythae", "lightning", "diffusers")
FOREIGN = ("pythae", "lightning", "diffusers")
LR, DECAY, CLIP, BATCHES, EPOCH = 1e-4, 0.999, 1.0, 4, 500
FEWEST_ROUNDS, LEAVING_SECONDS = 3, 20.0
TARGETS = {"cpu": 1.03, "cuda": 1.05}
Step = Callable[[], None]
Pause = Callable[[], None]
"""To be called after each step: it comes back when the next one is due."""


@dataclass(frozen=True)
class Course:
    """What all run on.

    Attributes:
        batches: uint8 [batch, 3, size, size] on the device, channels last, as the pack gives them.
    """

    runtime: Runtime
    config: ConvConfig | ResidualConfig | SpatialConfig
    batches: list[Tensor]

    def model(self) -> VAE:
        return build_model(self.config, seed=0).to(self.runtime.device).to(memory_format=self.runtime.memory_format)

    def endless(self) -> Iterator[Tensor]:
        while True:
            yield from self.batches

    def noise(self, count: int) -> Tensor:
        return torch.randn(count, self.config.latents, device=self.runtime.device)

    def clock(self) -> float:
        if self.runtime.device.type == "cpu":
            return time.process_time()
        self.runtime.synchronize()
        return time.perf_counter()


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=["issue", "spatial", "tiny"])
    options.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    options.add_argument("--rounds", type=int, default=15, help="at most")
    options.add_argument("--seconds", type=float, default=170.0, help="for the rounds of a network; 3 are the least")
    options.add_argument("--steps", type=int, default=1, help="of each contestant in a round")
    options.add_argument("--batch-size", type=int, help="instead of the network's own")
    options.add_argument("--device", default="auto")
    options.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    given = settle(options.parse_args())
    if given.quick:
        given.networks, given.rounds = ["tiny"], 3
    return given


def ours(course: Course) -> Step:
    objective = build_objective(
        LossConfig(mse=MSEConfig(weight=1.0), kl=KLConfig(weight=1.0)), 3, course.config.image_size
    ).to(course.runtime.device)
    model, images = course.model(), to_unit_range(course.batches[0], course.runtime.memory_format)
    with torch.no_grad():
        objective.observe(objective.measure(model(images, course.noise(len(images))), images))
    optimizers = build_optimizers(AdamWConfig(lr=LR), model, fused=course.runtime.fused)
    ema, total = EMA(model, DECAY), 1_000_000
    train_step = VAEStep(
        course.runtime, model, ema, objective, optimizers, seed=0, total_steps=total, max_grad_norm=CLIP
    )
    state, batches, indices = TrainState(), course.endless(), np.arange(len(images))
    accumulator = MetricAccumulator(train_step.names, state, RecoveryConfig(), False)

    def step() -> None:
        scale_learning_rates(optimizers.values(), 1.0)
        metrics = train_step(TrainBatch(indices, 0, next(batches)), state.step)
        state.step += 1
        accumulator.add(metrics)
        if not course.runtime.is_async or len(accumulator) >= 20:
            accumulator.flush()

    return step


def loss_of(model: VAE, images: Tensor, noise: Tensor) -> Tensor:
    """MSE + KL as everybody writes it, a mean per pixel value."""
    output = model(images, noise)
    error = torch.nn.functional.mse_loss(output.reconstruction.float(), images)
    mean, logvar = output.posterior.mean, output.posterior.logvar
    kl = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1).mean()
    return error + kl / images[0].numel()


def bare(course: Course, whole: bool = True) -> Step:
    model, batches = course.model(), course.endless()
    averaged = copy.deepcopy(model).requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    followers = [p for p, q in zip(averaged.parameters(), model.parameters(), strict=True) if q.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def step() -> None:
        images = to_unit_range(next(batches), course.runtime.memory_format)
        optimizer.zero_grad(set_to_none=True)
        with course.runtime.autocast():
            loss = loss_of(model, images, course.noise(len(images)))
        loss.backward()
        if whole:
            torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        if whole:
            with torch.no_grad():
                torch._foreach_lerp_(followers, trained, 1 - DECAY)

    return step


def _long(images: Any) -> Any:
    """The images again and again: the end of an epoch, where trainers validate and save, is not what is measured."""
    return torch.utils.data.Subset(images, [*range(len(images))] * EPOCH)


def pythae(course: Course, pause: Pause) -> None:
    """Its BaseTrainer on our network and the plain loss, behind its interface."""
    from pythae.data.datasets import BaseDataset
    from pythae.models.base.base_config import BaseAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    class Wrapped(torch.nn.Module):
        model_name = "VAE"

        def __init__(self) -> None:
            super().__init__()
            self.network, self.model_config = course.model(), BaseAEConfig()

        def forward(self, inputs: Any, **_: Any) -> ModelOutput:
            images = inputs["data"]
            return ModelOutput(loss=loss_of(self.network, images, course.noise(len(images))))

        def update(self) -> None: ...

    class AfterStep(TrainingCallback):
        def on_train_step_end(self, training_config: Any, **_: Any) -> None:
            pause()

    images = torch.cat([to_unit_range(batch) for batch in course.batches]).cpu()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # its bars
        settings = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1_000_000,
            per_device_train_batch_size=len(course.batches[0]),
            learning_rate=LR,
            optimizer_cls="AdamW",
            no_cuda=course.runtime.device.type != "cuda",
            amp=course.runtime.dtype != torch.float32,
        )
        dataset = _long(BaseDataset(images, torch.zeros(len(images))))
        BaseTrainer(Wrapped(), dataset, None, settings, [AfterStep()]).train()


def lightning(course: Course, pause: Pause) -> None:
    """Trainer with checkpoints, a monitor of the rate, a progress bar and a logger of files."""
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.loggers import CSVLogger

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = course.model()

        def training_step(self, batch: Any, index: int) -> Tensor:
            images = batch[0]
            loss = loss_of(self.network, images, course.noise(len(images)))
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=LR, fused=True)

    class AfterStep(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            pause()

    images = torch.cat([to_unit_range(batch) for batch in course.batches]).cpu()
    loader = torch.utils.data.DataLoader(
        _long(torch.utils.data.TensorDataset(images)), batch_size=len(course.batches[0]), shuffle=True
    )
    half = {torch.bfloat16: "bf16-mixed", torch.float16: "16-mixed"}
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            accelerator="gpu" if course.runtime.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=-1,
            precision=half.get(course.runtime.dtype, "32-true"),
            gradient_clip_val=None if course.runtime.fused and half.get(course.runtime.dtype) == "16-mixed" else CLIP,
            callbacks=[ModelCheckpoint(folder), LearningRateMonitor(), TQDMProgressBar(), AfterStep()],
            logger=CSVLogger(folder),
            num_sanity_val_steps=0,
            enable_model_summary=False,
        ).fit(Module(), loader)


def diffusers(course: Course) -> Step:
    """AutoencoderKL of the same shape as our network."""
    from diffusers import AutoencoderKL
    from diffusers.training_utils import EMAModel

    config = course.config
    assert isinstance(config, SpatialConfig)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(config.widths),
        up_block_types=("UpDecoderBlock2D",) * len(config.widths),
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=norm_groups(config.base_channels),
        sample_size=config.image_size,
    ).to(course.runtime.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR)
    averaged = EMAModel(trained, decay=DECAY)
    batches = course.endless()

    def step() -> None:
        targets = to_unit_range(next(batches), course.runtime.memory_format) * 2 - 1
        with course.runtime.autocast():
            posterior = model.encode(targets).latent_dist
            reconstructions = model.decode(posterior.sample()).sample
        error = torch.nn.functional.mse_loss(reconstructions.float(), targets, reduction="none")
        kl = posterior.kl()
        loss = error.sum() / error.numel() + 1e-6 * kl.sum() / kl.shape[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        averaged.step(trained)
        loss.detach().item()  # its example logs the loss of each step

    return step


TAKERS: dict[str, Callable[[Course], Step]] = {
    "ours": ours,
    "bare": bare,
    "bare_kept": bare,
    "bare_minimal": lambda course: bare(course, whole=False),
    "diffusers": diffusers,
}
TRAINERS: dict[str, Callable[[Course, Pause], None]] = {"pythae": pythae, "lightning": lightning}


@dataclass(frozen=True)
class Entry:
    """What a contestant's process is told.

    Attributes:
        device, precision: as the trainer's own options.
    """

    who: str
    network: str
    batch_size: int
    threads: int
    device: str
    precision: str


class Turns:
    """In a contestant's process: waits for its turn, and says how long it took."""

    def __init__(self, pipe: Connection, clock: Callable[[], float]) -> None:
        self._pipe, self._clock = pipe, clock
        self._left, self._begun = 0, 0.0
        self._counter: FlopCounterMode | None = None
        self._wait()

    def __call__(self) -> None:
        self._left -= 1
        if self._left:
            return
        seconds = self._clock() - self._begun
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
        self._pipe.send((seconds, self._counter and self._counter.get_total_flops()))
        self._wait()

    def _wait(self) -> None:
        self._left, counted = self._pipe.recv()
        if not self._left:
            raise SystemExit
        self._counter = FlopCounterMode(display=False) if counted else None
        if self._counter is not None:
            self._counter.__enter__()
        self._begun = self._clock()


def compete(entry: Entry, pipe: Connection) -> None:
    """The life of a contestant's process: steps for ever."""
    _quiet()
    torch.set_num_threads(entry.threads)
    is_ours = entry.who == "ours"
    opened = open_runtime(entry.device, entry.precision) if is_ours else contextlib.nullcontext(_plain_runtime(entry))
    with opened as runtime:
        course = _course(entry, runtime)
        if is_ours or entry.who == "bare_kept":  # as the training commands do
            keep_freed_memory()
        if entry.who in TRAINERS:
            TRAINERS[entry.who](course, Turns(pipe, course.clock))
        else:
            step = TAKERS[entry.who](course)
            pause = Turns(pipe, course.clock)
            while True:
                step()
                pause()


def _quiet() -> None:
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # bars and banners of trainers


def _plain_runtime(entry: Entry) -> Runtime:
    """Device and precision alone; the choice of cuDNN's kernels and fp32 without TF32, as in our trainer, are both."""
    device = torch.device(entry.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = True, False
    return Runtime(device, torch.bfloat16 if entry.precision == "bf16" else torch.float32)


def _course(entry: Entry, runtime: Runtime) -> Course:
    config, _ = NETWORKS[entry.network]
    shape = (entry.batch_size, config.image_size, config.image_size, 3)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(BATCHES)]
    return Course(runtime, config, [batch.permute(0, 3, 1, 2).to(runtime.device) for batch in batches])


class Contestant:
    """A contestant's process, seen from outside."""

    def __init__(self, entry: Entry) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=compete, args=(entry, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def take(self, steps: int, counted: bool = False) -> tuple[float, int | None]:
        """Let it take so many steps; its seconds, and their operations where they are to be counted."""
        self._pipe.send((steps, counted))
        found: tuple[float, int | None] = self._pipe.recv()
        return found

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send((0, False))
        self._process.join(LEAVING_SECONDS)
        self._process.kill()
        self._process.join()


def measured(options: argparse.Namespace, name: str, device: str, precision: str) -> dict[str, Any]:
    config, batch_size = NETWORKS[name]
    batch_size = options.batch_size or batch_size
    wanted = [who for who in options.contestants if who != "diffusers" or isinstance(config, SpatialConfig)]
    absent = [who for who in wanted if who in FOREIGN and not importlib.util.find_spec(who)]
    present = [who for who in wanted if who not in absent]
    contestants = {who: Contestant(Entry(who, name, batch_size, options.threads, device, precision)) for who in present}
    try:
        seconds = _rounds(options, contestants)
        counted = {who: contestant.take(1, counted=True)[1] or 0 for who, contestant in contestants.items()}
    finally:
        for contestant in contestants.values():
            contestant.leave()
    return {
        "network": config.model_dump(),
        "batch_size": batch_size,
        "device": f"{device}, {precision}",
        "versions": {who: version(who) for who in present if who in FOREIGN},
        "absent": absent,
        "gflop_of_a_step": {who: round(count / 1e9, 2) for who, count in counted.items()},
        "milliseconds_of_a_step": {who: [round(1e3 * each, 3) for each in found] for who, found in seconds.items()},
        "against": {who: _against(seconds["ours"], found) for who, found in seconds.items() if who != "ours"},
    }


def _rounds(options: argparse.Namespace, contestants: dict[str, Contestant]) -> dict[str, list[float]]:
    """Seconds of a step, by contestant and round. The first round warms up."""
    seconds: dict[str, list[float]] = {who: [] for who in contestants}
    for contestant in contestants.values():
        contestant.take(1)  # the start, in which a trainer prepares its run
    begun_all = time.monotonic()
    for number in range(options.rounds + 1):
        if number > FEWEST_ROUNDS and time.monotonic() - begun_all > options.seconds:
            break
        order = list(contestants)
        turn = number % len(order)
        for who in order[turn:] + order[:turn]:
            taken, _ = contestants[who].take(options.steps)
            if number:
                seconds[who].append(taken / options.steps)
    return seconds


def _against(mine: list[float], theirs: list[float]) -> dict[str, Any]:
    """Our seconds by theirs and minus theirs: median over rounds, and the quartiles of the ratio."""
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    more = statistics.median(1e3 * (a - b) for a, b in zip(mine, theirs, strict=True))
    return {
        "milliseconds": round(1e3 * statistics.median(theirs), 3),
        "ratio": round(statistics.median(ratios), 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "milliseconds_more": round(more, 3),
        "milliseconds_more_at_best": round(1e3 * (min(mine) - min(theirs)), 3),
    }


def main() -> None:
    options = read_options()
    found = {}
    with open_runtime(options.device, options.precision) as runtime:
        device, said = str(runtime.device), runtime.describe()
        precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[runtime.dtype]
    for name in options.networks:
        found[name] = measured(options, name, device, precision)
        rows = [
            [
                who,
                entry["milliseconds"],
                entry["ratio"],
                *entry["quartiles"],
                entry["milliseconds_more"],
                entry["milliseconds_more_at_best"],
            ]
            for who, entry in found[name]["against"].items()
        ]
        own = statistics.median(found[name]["milliseconds_of_a_step"]["ours"])
        print(f"\n{name}: ours {own:.2f} ms a step of {found[name]['batch_size']} images, {said}")
        table(["ours against", "its ms", "ratio", "quartile", "quartile", "ms more", "at best"], rows)
        if found[name]["absent"]:
            print(f"not installed: {', '.join(found[name]['absent'])} (uv run --with ...)")
    save(options, NAME, {"target": TARGETS, "results": found})


if __name__ == "__main__":
    start(main)
