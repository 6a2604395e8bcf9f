"""What goes into a checkpoint and comes out of it, when it is due, and which ones are kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unified_vae.core.errors import CheckpointError, EnvironmentProblem
from unified_vae.models.vae import VAE
from unified_vae.training import checkpoint
from unified_vae.training.checkpoint import Checkpoint
from unified_vae.training.config import CheckpointConfig
from unified_vae.training.ema import EMA
from unified_vae.training.observers import CheckpointSaved, Observer
from unified_vae.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from unified_vae.training.runtime import Runtime
from unified_vae.training.state import TrainState
from unified_vae.training.step import Stepper


class Saver:
    """Saves a run on the main process.

    Args:
        root: folder of the checkpoints.
        about: JSON facts saved with each: the config, the data's fingerprint.
    """

    def __init__(
        self,
        root: Path,
        config: CheckpointConfig,
        steps_per_epoch: int,
        stepper: Stepper,
        ema: EMA[VAE],
        runtime: Runtime,
        observer: Observer,
        about: Mapping[str, Any],
    ) -> None:
        self.root = root
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.stepper = stepper
        self.ema = ema
        self.runtime = runtime
        self.observer = observer
        self.about = dict(about)
        self._last = time.monotonic()
        self._begun = time.monotonic()
        self._seconds_before = 0.0

    def started(self) -> None:
        """The first step is about to be taken."""
        self._last = self._begun = time.monotonic()

    def time_is_up(self) -> bool:
        """Whether the last save is so long ago that another is due. Only the main process's clock counts."""
        return self.runtime.is_main and time.monotonic() - self._last > 60 * self.config.every_minutes

    def save(self, state: TrainState) -> None:
        """Write everything, then prune. The other processes go on at once."""
        begun = time.monotonic()
        if self.runtime.is_main:
            state.seconds = self._seconds_before + begun - self._begun
            values = {**self.about, "train": state.to_json(), "scaler": self.stepper.scaler.state_dict()}
            path = self._write(Checkpoint(state.step, self._tensors(), values))
            checkpoint.prune(self.root, self.config.keep_last, lambda step: self._kept(step, state))
            self.observer.checkpoint_saved(CheckpointSaved(state.step, path, time.monotonic() - begun))
        self._last = time.monotonic()

    def _write(self, content: Checkpoint) -> Path:
        try:
            return checkpoint.save(self.root, content)
        except CheckpointError as problem:
            raise EnvironmentProblem(
                f"{problem}. {self.what_is_left()} Free space or mend the permissions, then run the same command."
            ) from problem

    def what_is_left(self) -> str:
        """The checkpoint that a failed run can go on from, in a sentence."""
        steps = checkpoint.saved_steps(self.root)
        return f"The checkpoint of step {steps[0]:,} is kept." if steps else "Nothing had been saved yet."

    def is_keepsake(self, step: int) -> bool:
        """Whether the checkpoint of this step is one of those that are kept for good."""
        every = self.config.keep_every_epochs
        return every is not None and step % (every * self.steps_per_epoch) == 0

    def _kept(self, step: int, state: TrainState) -> bool:
        return self.is_keepsake(step) or step == state.best_step

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            "model": self.stepper.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "objective": self.stepper.objective.state_dict(),
            "optimizer": optimizer_tensors(self.stepper.optimizer, self.stepper.model),
        }

    def restore(self, saved: Checkpoint) -> TrainState:
        """Put a checkpoint's content back where it came from; returns the run's numbers.

        Raises:
            CheckpointError: it is of another model.
        """
        load_weights(self.stepper.model, saved.groups["model"], "model")
        load_weights(self.ema.model, saved.groups["ema"], "ema")
        load_weights(self.stepper.objective, saved.groups["objective"], "objective")
        load_optimizer_tensors(self.stepper.optimizer, self.stepper.model, saved.groups["optimizer"])
        if saved.state["scaler"]:
            self.stepper.scaler.load_state_dict(saved.state["scaler"])
        state = TrainState.from_json(saved.state["train"])
        self._seconds_before = state.seconds
        return state


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict, exactly.

    Raises:
        CheckpointError: names or shapes differ; the sentence says how many and the first of them.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differing:
        first = differing[0]
        raise CheckpointError(
            f"the checkpoint is of another {name}: {len(differing)} tensors differ, the first is {first} "
            f"(checkpoint {found.get(first, 'absent')}, now {wanted.get(first, 'absent')})."
        )
    with torch.no_grad():
        module.load_state_dict(dict(tensors))
