"""What goes into a checkpoint and comes out of it, when it is due, and which ones are kept.

Training waits only for a copy of its tensors in host memory. A thread writes them to the disk while the next steps
are taken; the next save, and the end of the run, wait for it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from unified_vae.config.training import CheckpointConfig
from unified_vae.core.durable import reason, sync_folder
from unified_vae.core.errors import CheckpointError, EnvironmentProblem
from unified_vae.models.vae import VAE
from unified_vae.training import checkpoint, checkpoint_ring
from unified_vae.training.background import Background
from unified_vae.training.checkpoint import Checkpoint
from unified_vae.training.ema import EMA
from unified_vae.training.host_copy import HostCopy
from unified_vae.training.observers import CheckpointSaved, Observer
from unified_vae.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from unified_vae.training.runtime import Runtime
from unified_vae.training.state import TrainState
from unified_vae.training.step import Stepper


@dataclass
class _Outcome:
    """What became of a save.

    Attributes:
        wanted: the checkpoints to be written, oldest first.
        saved: the folders of those that were.
        problem: why one of them was not.
        remark: what else went wrong.
        seconds: of writing, beside the training.
    """

    wanted: Sequence[Checkpoint]
    saved: list[Path]
    problem: CheckpointError | None = None
    remark: str | None = None
    seconds: float = 0.0


class Saver:
    """Saves a run on the main process. Used as a context: leaving it waits for the last save.

    Args:
        root: folder of the checkpoints, which `started` makes.
        about: JSON facts saved with each: the config, the data's fingerprint. They are not changed during the run.

    Attributes:
        problem: why the newest save failed; None where it did not.
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
        self.problem: CheckpointError | None = None
        self._writing: Background[_Outcome] = Background()
        self._host = HostCopy()
        self._best_unsaved: Checkpoint | None = None
        self._best_step: int | None = None
        self._good_step = 0
        self._stalled = 0.0
        self._last = time.monotonic()
        self._begun = time.monotonic()
        self._seconds_before = 0.0

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def started(self) -> None:
        """The first step is about to be taken.

        Raises:
            EnvironmentProblem: there can be no checkpoints here.
        """
        if self.runtime.is_main:
            try:
                self.root.mkdir(exist_ok=True)
                sync_folder(self.root.parent)
                sync_folder(self.root.parent.parent)
            except OSError as problem:
                raise EnvironmentProblem(f"{self.root} cannot be made ({reason(problem)}).") from problem
            self._warn_of_little_room()
        self._last = self._begun = time.monotonic()

    def _warn_of_little_room(self) -> None:
        """Say before the first step what the first save may fail for: one is written before another is deleted."""
        sizes = {name: sum(value.nbytes for value in held.values()) for name, held in self._tensors().items()}
        each = sum(sizes.values()) + (0 if sizes["optimizer"] else 2 * sizes["model"])  # its moments come with step 1
        free = shutil.disk_usage(self.root).free
        if free < 2 * each:
            self.observer.notice(
                f"a checkpoint takes about {each / 1e6:,.0f} MB, and the disk of {self.root} has {free / 1e6:,.0f} MB "
                "free: make room, or saving will fail"
            )

    def time_is_up(self) -> bool:
        """Whether the last save is so long ago that another is due. Only the main process's clock counts."""
        return self.runtime.is_main and time.monotonic() - self._last > 60 * self.config.every_minutes

    # --- saving --------------------------------------------------------------------------------------

    def save(self, state: TrainState, first: Callable[[], None] | None = None) -> None:
        """Copy everything and begin to write it; prune when it is written. The other processes go on at once.

        Args:
            first: what has to be on the disk before the checkpoint is; an OSError of it is one of the save.
        """
        begun = self._last = time.monotonic()
        self.wait()  # never two at once
        if not self.runtime.is_main:
            return
        state.seconds = self._seconds_before + begun - self._begun
        values = {**self.about, "train": state.to_json(), "scaler": self.stepper.scaler.state_dict()}
        newest = Checkpoint(state.step, self._host.take(self._tensors()), values)
        late, self._best_step, self._good_step = self._best_unsaved, state.best_step, state.good_step
        wanted = [late, newest] if late and late.step == state.best_step != state.step else [newest]
        self._writing.begin(lambda: self._write(wanted, first))
        self._stalled = time.monotonic() - begun

    def _write(self, wanted: Sequence[Checkpoint], first: Callable[[], None] | None) -> _Outcome:
        """In the thread."""
        begun, outcome = time.monotonic(), _Outcome(wanted, [])
        try:
            checkpoint_ring.sweep(self.root)  # a folder that was read-only may have kept an earlier attempt
            if first:
                first()
            for content in wanted:
                outcome.saved.append(checkpoint.save(self.root, content))
        except CheckpointError as problem:
            outcome.problem = problem
        except OSError as problem:
            outcome.problem = CheckpointError(
                f"the checkpoint of step {wanted[-1].step:,} could not be saved: {problem.filename} cannot be written "
                f"({reason(problem)})"
            )
        else:
            outcome.remark = self._prune()
        outcome.seconds = time.monotonic() - begun
        return outcome

    def _prune(self) -> str | None:
        """Delete what is no longer kept; why not, in a sentence."""
        try:
            checkpoint_ring.prune(self.root, self.config.keep_last, self._kept)
        except (OSError, CheckpointError) as problem:
            return f"old checkpoints in {self.root} cannot be deleted ({reason(problem)})"
        return None

    def report(self) -> None:
        """Say what became of a save that has ended in the meantime. Cheap enough for every step."""
        if self._writing.ready():
            self.wait()

    def wait(self) -> None:
        """Wait for the save that is being written, if there is one, and say what became of it."""
        outcome = self._writing.collect()
        if outcome is None:
            return
        self.problem = outcome.problem
        for path, content in zip(outcome.saved, outcome.wanted, strict=False):
            self.observer.checkpoint_saved(CheckpointSaved(content.step, path, outcome.seconds, self._stalled))
        if outcome.remark:
            self.observer.notice(outcome.remark)
        self._keep_best(outcome)
        if outcome.problem:
            self.observer.notice(
                f"NOT SAVED: {outcome.problem}. {self._what_is_left()} Training goes on, and the next save tries again."
            )

    def _keep_best(self, outcome: _Outcome) -> None:
        """Hold on to the best weights that could not be written, so that the next save has them too."""
        missing = outcome.wanted[len(outcome.saved) :]
        held = [content for content in missing if content.step == self._best_step]
        if held and held[0] is not self._best_unsaved:
            self._host.release()
        self._best_unsaved = held[0] if held else None

    def finish(self, state: TrainState, first: Callable[[], None] | None = None) -> None:
        """The run is over: wait, and where its last state could not be saved, try once more."""
        self.wait()
        if self.problem is not None:
            self.save(state, first)
            self.wait()

    def what_is_left(self) -> str:
        """The checkpoint that a failed run can go on from, in a sentence."""
        self.wait()
        return self._what_is_left()

    def _what_is_left(self) -> str:
        try:
            steps = checkpoint_ring.saved_steps(self.root)
        except CheckpointError as problem:
            return f"{problem}."
        return f"The checkpoint of step {steps[0]:,} is kept." if steps else "There is no checkpoint."

    def refuse_unsaved(self) -> None:
        """Raise EnvironmentProblem where the run ends and its last state could not be saved."""
        if self.problem is not None:
            raise EnvironmentProblem(
                f"{self.problem}. {self.what_is_left()} Free space or mend the permissions, then run the same command."
            ) from self.problem

    def best_unsaved(self, step: int | None) -> Checkpoint | None:
        """The checkpoint of the best weights, where it could not be written and is held in memory."""
        held = self._best_unsaved
        return held if held is not None and held.step == step else None

    def is_keepsake(self, step: int) -> bool:
        """Whether the checkpoint of this step is one of those that are kept for good."""
        every = self.config.keep_every_epochs
        return every is not None and step % (every * self.steps_per_epoch) == 0

    def _kept(self, step: int) -> bool:
        return self.is_keepsake(step) or step in (self._best_step, self._good_step)

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {
            "model": self.stepper.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "objective": self.stepper.objective.state_dict(),
            "optimizer": optimizer_tensors(self.stepper.optimizer, self.stepper.model),
        }

    # --- restoring -----------------------------------------------------------------------------------

    def restore(self, saved: Checkpoint) -> TrainState:
        """Put a checkpoint's content back where it came from; returns the run's numbers.

        Raises:
            CheckpointError: it is of another model.
        """
        load_weights(self.stepper.model, saved.group("model"), "model")
        load_weights(self.ema.model, saved.group("ema"), "ema")
        load_weights(self.stepper.objective, saved.group("objective"), "objective")
        load_optimizer_tensors(self.stepper.optimizer, self.stepper.model, saved.group("optimizer"))
        self._keep_beta(saved.state.get("record"))
        if scaler := saved.part("scaler"):
            self._restore_scaler(scaler)
        state = run_state(saved)
        self._seconds_before = state.seconds
        return state

    def go_back(self, step: int) -> TrainState | None:
        """Restore the checkpoint of `step`, or the newest good one before it, and delete those after it.

        Where there is none so early, because a disk was full, the newest good one has to do.

        Returns:
            The run's numbers at that step, the same on every process; None where there is no checkpoint.
        """
        self.wait()
        found = (self._good(step) or self._good(None)) if self.runtime.is_main else None
        self.forget_after(max(step, found.step) if found else step)
        chosen = self.runtime.from_main(found.step if found else None)
        if chosen is None:
            return None
        now, spent = time.monotonic(), self._seconds_before + time.monotonic() - self._begun
        state = self.restore(found or checkpoint.load(self.root, chosen))
        self._seconds_before, self._begun = spent, now
        self.runtime.barrier()  # all have read it before it is written anew
        return state

    def _good(self, at_most: int | None) -> Checkpoint | None:
        try:
            return checkpoint_ring.newest_good(self.root, self.observer.notice, at_most=at_most)
        except CheckpointError as problem:
            self.observer.notice(str(problem))
            return None

    def forget_after(self, step: int) -> None:
        """Delete the checkpoints after `step`, which hold what led to numbers that were not finite, unless all do."""
        self.wait()
        if not self.runtime.is_main:
            return
        try:
            if min(checkpoint_ring.saved_steps(self.root), default=step) <= step:
                checkpoint_ring.delete_after(self.root, step)
        except (OSError, CheckpointError) as problem:
            self.observer.notice(f"checkpoints after step {step:,} cannot be deleted ({reason(problem)})")

    def _keep_beta(self, record: Mapping[str, Any] | None) -> None:
        """Where GECO moved beta from another `kl.weight`: the checkpoint has the factor, and it is beta that stays."""
        kl = record["config"]["loss"]["kl"] if record else {}
        if kl.get("constraint", {}).get("kind") == "geco":
            self.stepper.objective.started_from(kl["weight"])

    def _restore_scaler(self, values: Any) -> None:
        try:
            self.stepper.scaler.load_state_dict(values)
        except (KeyError, TypeError, RuntimeError, AttributeError, ValueError) as problem:
            raise CheckpointError(f"the checkpoint's gradient scaler cannot be read ({reason(problem)}).") from problem


def run_state(saved: Checkpoint) -> TrainState:
    """The numbers of a run that a checkpoint holds.

    Raises:
        CheckpointError: they are not there, or those of another step.
    """
    state = TrainState.from_json(saved.part("train"))
    if state.step != saved.step:
        raise CheckpointError(f"the checkpoint of step {saved.step:,} holds the numbers of step {state.step:,}.")
    return state


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict, exactly.

    Raises:
        CheckpointError: names or shapes differ; the sentence says how many and the first of them.
    """
    if isinstance(module, VAE):
        tensors = module.complete(tensors)
    wanted = {key: _form(value) for key, value in module.state_dict().items()}
    found = {key: _form(value) for key, value in tensors.items()}
    differing = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if differing:
        first = differing[0]
        raise CheckpointError(
            f"the checkpoint is of another {name}: {len(differing)} tensors differ, the first is {first} "
            f"(checkpoint {found.get(first, 'absent')}, now {wanted.get(first, 'absent')})."
        )
    with torch.no_grad():
        module.load_state_dict(dict(tensors))


def _form(value: Tensor) -> str:
    """`[8, 3] float32`."""
    return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
