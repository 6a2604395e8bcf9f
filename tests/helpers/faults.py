"""Faults of numbers and of memory, put into a run: batches with NaN/Inf, and a device with little memory."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.runs import Recorder, finalizers_without_report, server, train
from unified_vae.core.errors import UserError
from unified_vae.data.batches import TrainBatch
from unified_vae.models.vae import VAE
from unified_vae.pipeline.plan import RunRequest
from unified_vae.training.distributed import Runtime
from unified_vae.training.train_step import VAEStep, to_unit_range
from unified_vae.training.trainer import Trainer


@dataclass(frozen=True)
class Poison:
    """Pixels of some steps are NaN/Inf.

    Attributes:
        steps: numbers of the steps, counted from 1.
        above: only where the learning rate is higher than this, so that rolling back helps.
        value: of the pixel.
        rank: of the process whose share is poisoned.
        lazily: metrics are read late, as on a GPU.
    """

    steps: tuple[int, ...]
    above: float = 0.0
    value: float = float("nan")
    rank: int = 0
    lazily: bool = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        call = VAEStep.__call__

        def poisoned(train_step: VAEStep, batch: TrainBatch, step: int) -> Tensor:
            lr = train_step.optimizers["main"].param_groups[0]["lr"]
            if step + 1 not in self.steps or lr <= self.above or train_step.runtime.rank != self.rank:
                return call(train_step, batch, step)
            images, noise = train_step.inputs(batch, step)
            images = to_unit_range(images).clone()
            images[len(images) // 2, 0, 3, 3] = self.value
            with pytest.MonkeyPatch.context() as inputs:
                inputs.setattr(train_step, "inputs", lambda *_: (images, noise))
                return call(train_step, batch, step)

        patch.setattr(VAEStep, "__call__", poisoned)
        if self.lazily:
            patch.setattr(Runtime, "is_async", property(lambda runtime: True))


@dataclass(frozen=True)
class SmallMemory:
    """A device on which only so many images fit at once.

    Attributes:
        training: images that fit while gradients are taken.
        evaluation: images that fit elsewhere; None for any number.
        backward: memory is short in the backward pass, when some gradients are there already.
        rank: of the process whose device is small; None for all.
    """

    training: int
    evaluation: int | None = None
    backward: bool = False
    rank: int | None = None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        encode, decode = VAE.encode, VAE.decode

        def full(model: VAE, count: int) -> bool:
            if self.rank is not None and int(os.environ.get("RANK", 0)) != self.rank:
                return False
            limit = self.training if model.training else self.evaluation
            return limit is not None and count > limit

        def encoded(model: VAE, images: Tensor) -> object:
            if full(model, len(images)) and not (self.backward and torch.is_grad_enabled()):
                raise torch.OutOfMemoryError(f"there is no room for {len(images)} images")
            return encode(model, images)

        def decoded(model: VAE, latents: Tensor) -> Tensor:
            pictures = decode(model, latents)
            if self.backward and full(model, len(latents)) and pictures.requires_grad:
                latents.register_hook(_no_room)  # by then the decoder's gradients are there
            return pictures

        patch.setattr(VAE, "encode", encoded)
        patch.setattr(VAE, "decode", decoded)


@dataclass(frozen=True)
class SignalInside:
    """A signal that comes between two micro-batches.

    Attributes:
        step: counted from 1.
        micro_batch: after which micro-batch of it, counted from 1.
        number: of the signal.
    """

    step: int
    micro_batch: int
    number: int

    def install(self, patch: pytest.MonkeyPatch) -> None:
        call, forward = VAEStep.__call__, VAE.forward
        place = [0, 0]  # step, micro-batches of it that were begun

        def called(train_step: VAEStep, batch: TrainBatch, step: int) -> Tensor:
            place[:] = [step + 1, 0]
            metrics = call(train_step, batch, step)
            place[0] = 0
            return metrics

        def passed(model: VAE, *given: Tensor) -> object:
            if place == [self.step, self.micro_batch]:
                os.kill(os.getpid(), self.number)
            place[1] += 1
            return forward(model, *given)

        patch.setattr(VAEStep, "__call__", called)
        patch.setattr(VAE, "forward", passed)


@dataclass(frozen=True)
class SlowDisk:
    """A disk that takes its time to keep a file.

    Attributes:
        seconds: for each file and folder.
    """

    seconds: float

    def install(self, patch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync

        def slow(descriptor: int) -> None:
            time.sleep(self.seconds)
            fsync(descriptor)

        patch.setattr(os, "fsync", slow)


@dataclass(frozen=True)
class Halt:
    """The main process stands still after a step until SIGCONT comes, so that no run is over before a slow test acts.

    Attributes:
        step: counted from 1.
    """

    step: int

    def install(self, patch: pytest.MonkeyPatch) -> None:
        count = Trainer.count

        def counted(trainer: Trainer, metrics: Tensor) -> None:
            count(trainer, metrics)
            if trainer.state.step == self.step and trainer.runtime.is_main:
                os.kill(os.getpid(), signal.SIGSTOP)

        patch.setattr(Trainer, "count", counted)


@dataclass(frozen=True)
class NoReport:
    """No fault: a command leaves out the page of the report, whose charts take longer than a tiny run."""

    def install(self, patch: pytest.MonkeyPatch) -> None:
        from unified_vae.pipeline.fit import fit

        patch.setitem(fit.__kwdefaults__, "finalizers", finalizers_without_report())


def _no_room(gradient: Tensor) -> None:
    raise torch.OutOfMemoryError(f"there is no room for the gradient of {len(gradient)} images")


Fault = Poison | SmallMemory | SignalInside | SlowDisk | Halt | NoReport


@contextmanager
def injected(*faults: Fault) -> Iterator[None]:
    """The faults, while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for fault in faults:
            fault.install(patch)
        yield


def run_with_faults(
    run_request: RunRequest, faults: tuple[Fault, ...], answer_file: Path | None, world: dict[str, str]
) -> None:
    """Run in this process, and write what it said to `answer_file`."""

    torch.set_num_threads(1)
    os.environ.update(world)
    recorder, answer = Recorder(), {}
    with injected(*faults):
        try:
            answer["exit_code"] = train(run_request, [recorder]).exit_code
        except UserError as error:
            answer |= {"exit_code": error.exit_code, "error": str(error)}
    if answer_file:
        answer_file.write_text(json.dumps({**answer, "notices": recorder.notices}))
    raise SystemExit(answer["exit_code"])


def ranks(run_request: RunRequest, faults: tuple[Fault, ...], folder: Path, count: int = 2) -> list[dict]:
    """A run of several processes; what each of them told."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    answer_files = [folder / f"answer-{rank}.json" for rank in range(count)]
    processes = [
        server().Process(
            target=run_with_faults, args=(run_request, faults, answer_files[rank], {**world, "RANK": str(rank)})
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [json.loads(path.read_text()) for path in answer_files]


def rows(run_dir: Path, split: str = "train") -> list[dict]:
    """Rows of the metrics file."""
    result = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in result if row["split"] == split]


def with_command(run_request: RunRequest, **changes: object) -> RunRequest:
    """The same request, changed."""
    return dataclasses.replace(run_request, **changes)  # type: ignore[arg-type]
