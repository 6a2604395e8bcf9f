"""Saving and restoring a run: a registry of named state, written in the background, with a retention policy.

Training waits only for a copy of its tensors in host memory. A thread writes them to the disk while the next steps are
taken; the next save, and the end of the run, wait for it.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unified_vae.config.training import CheckpointConfig
from unified_vae.core import checkpoint_format, retention
from unified_vae.core.checkpoint_format import Checkpoint, TensorGroups
from unified_vae.core.errors import CheckpointError, EnvironmentProblem, reason
from unified_vae.core.events import CheckpointSaved, Observer
from unified_vae.core.files import sync_folder
from unified_vae.training.distributed import Runtime
from unified_vae.training.state import TrainState


class Stateful(Protocol):
    """What a checkpoint can hold: a module, or anything with tensors by name (a `JsonState`: with JSON values)."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class JsonState:
    """State of plain JSON values, such as a gradient scaler's; it is kept in the checkpoint's `state.json`."""

    def __init__(self, holder: Stateful) -> None:
        self.holder = holder

    def state_dict(self) -> Mapping[str, Any]:
        return self.holder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if not state:  # e.g. a scaler that was switched off
            return
        try:
            self.holder.load_state_dict(state)
        except (KeyError, TypeError, RuntimeError, AttributeError, ValueError) as error:
            kind = type(self.holder).__name__
            raise CheckpointError(f"the checkpoint's state of {kind} cannot be read ({reason(error)}).") from error


class OptimizerState:
    """The state of some optimizers as named tensors, `parameter/slot`, e.g. `encoder.head.weight/exp_avg`.

    Each parameter may have slots of its own, of any shape; Python numbers come back as such. What the parameter groups
    say (rates, betas) is not part of it.
    """

    def __init__(self, optimizers: Iterable[Optimizer], module: nn.Module) -> None:
        self.optimizers = list(optimizers)
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        tensors = {}
        for optimizer in self.optimizers:
            for parameter, slots in optimizer.state.items():
                for slot, value in slots.items():
                    kind = f"#{type(value).__name__}" if isinstance(value, bool | int | float) else ""
                    if value is not None:
                        dtype = torch.float64 if isinstance(value, float) else None
                        tensors[f"{names[id(parameter)]}/{slot}{kind}"] = torch.as_tensor(value, dtype=dtype)
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Put saved state back; a module with `upgrade_names` first renames the parameters of an earlier version.

        Raises:
            CheckpointError: it names a parameter that the optimizers do not have, or is of other shapes.
        """
        upgrade = getattr(self.module, "upgrade_names", None)
        tensors = upgrade(tensors) if upgrade else tensors
        parameters = dict(self.module.named_parameters())
        slots: dict[str, dict[str, Any]] = {}
        for key, value in tensors.items():
            name, _, slot = key.rpartition("/")
            slot, _, kind = slot.partition("#")
            if name not in parameters:
                raise CheckpointError(f"the checkpoint's optimizer state is of another model: it names {name or key}.")
            if kind:
                slots.setdefault(name, {})[slot] = value.item()
                continue
            if slot in ("exp_avg", "exp_avg_sq", "momentum_buffer") and value.shape != parameters[name].shape:
                raise CheckpointError(f"the checkpoint's optimizer state of {name} is of another shape.")
            if value.ndim > 0 and value.shape == parameters[name].shape:
                # fused kernels take the values in the order in which they lie in memory: it has to be the weights' own
                value = torch.empty_like(parameters[name], dtype=value.dtype, requires_grad=False).copy_(value)
            slots.setdefault(name, {})[slot] = value
        names = {id(parameter): name for name, parameter in parameters.items()}
        known = set()
        for optimizer in self.optimizers:
            updated = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {n: slots[names[id(p)]] for n, p in enumerate(updated) if names[id(p)] in slots}
            known |= {names[id(p)] for p in updated}
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            for number, saved in state.items():
                for slot, value in saved.items():
                    loaded = optimizer.state[updated[number]]
                    if isinstance(value, Tensor) and loaded[slot].dtype != value.dtype:  # torch gives it the weights'
                        loaded[slot] = value.to(loaded[slot].device)
        if unknown := sorted(slots.keys() - known):
            raise CheckpointError(
                f"the checkpoint's optimizer state is of another model: {unknown[0]} is not trained here."
            )


class PinnedStaging:
    """Host memory that is used again for each copy: taking new memory would cost several times the copying."""

    def __init__(self) -> None:
        self._staged: dict[str, dict[str, Tensor]] = {}

    def copy_(self, groups: TensorGroups) -> TensorGroups:
        """The values at this moment. What an earlier call returned is overwritten."""
        previous, self._staged = self._staged, {}
        for name, tensors in groups.items():
            self._staged[name] = {}
            for key, value in tensors.items():
                buffer = previous.get(name, {}).get(key)
                if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
                    buffer = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
                self._staged[name][key] = buffer.copy_(value.detach(), non_blocking=value.is_cuda)
        if any(value.is_cuda for tensors in groups.values() for value in tensors.values()):
            torch.cuda.current_stream().synchronize()
        return self._staged

    def release(self) -> None:
        """Leave what the last call returned to its holder."""
        self._staged = {}


@dataclass
class _Save:
    """A save in the background, and what became of it.

    Attributes:
        checkpoints: those to write, oldest first.
        saved: the folders of those that were written.
        seconds: of writing.
    """

    checkpoints: list[Checkpoint]
    saved: list[Path]
    problem: CheckpointError | None = None
    remark: str | None = None
    seconds: float = 0.0
    error: BaseException | None = None


class Checkpointer:
    """Saves and restores the registered state on the main process. As a context: leaving it waits for the last save.

    Args:
        root: folder of the checkpoints, which `prepare` makes.
        policy: what is kept, and how often it is saved.
        stateful: name -> what is saved; a file or an entry of the checkpoint each.
        record: JSON facts saved with each: the config, the data's fingerprint. They do not change during the run.
        after_restore: called with the record of a checkpoint that was restored.

    Attributes:
        problem: why the newest save failed; None where it did not.
    """

    def __init__(
        self,
        root: Path,
        policy: CheckpointConfig,
        stateful: Mapping[str, Stateful],
        *,
        steps_per_epoch: int,
        runtime: Runtime,
        observer: Observer,
        record: Mapping[str, Any],
        after_restore: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.root = root
        self.policy = policy
        self.stateful = dict(stateful)
        self.steps_per_epoch = steps_per_epoch
        self.runtime = runtime
        self.observer = observer
        self.record = dict(record)
        self.after_restore = after_restore
        self.problem: CheckpointError | None = None
        self._thread: threading.Thread | None = None
        self._running: _Save | None = None
        self._staging = PinnedStaging()
        self._best_unsaved: Checkpoint | None = None
        self._best_step: int | None = None
        self._good_step = 0
        self._stalled = 0.0
        self._last_save = self._started = time.monotonic()
        self._seconds_before = 0.0

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()

    def prepare(self) -> None:
        """Make the folder, and warn of little free space, before the first step.

        Raises:
            EnvironmentProblem: there can be no checkpoints here.
        """
        if self.runtime.is_main:
            try:
                self.root.mkdir(exist_ok=True)
                sync_folder(self.root.parent)
                sync_folder(self.root.parent.parent)
            except OSError as error:
                raise EnvironmentProblem(f"{self.root} cannot be made ({reason(error)}).") from error
            sizes = {name: sum(t.nbytes for t in tensors.values()) for name, tensors in self._tensors().items()}
            moments = 0 if sizes.get("optimizer") else 2 * sizes.get("model", 0)  # they come with the first step
            size, free = sum(sizes.values()) + moments, shutil.disk_usage(self.root).free
            if free < 2 * size:  # one is written before another is deleted
                self.observer.notice(
                    f"a checkpoint takes about {size / 1e6:,.0f} MB, and the disk of {self.root} has "
                    f"{free / 1e6:,.0f} MB free: make room, or saving will fail"
                )
        self._last_save = self._started = time.monotonic()

    @property
    def time_is_up(self) -> bool:
        """Whether the last save is `every_minutes` ago. Only the main process's clock counts."""
        return self.runtime.is_main and time.monotonic() - self._last_save > 60 * self.policy.every_minutes

    def is_permanent(self, step: int) -> bool:
        """Whether the checkpoint of this step is one of those that are kept for good."""
        every = self.policy.keep_every_epochs
        return every is not None and step % (every * self.steps_per_epoch) == 0

    def _tensors(self) -> dict[str, Mapping[str, Tensor]]:
        return {name: entry.state_dict() for name, entry in self.stateful.items() if not isinstance(entry, JsonState)}

    # --- saving --------------------------------------------------------------------------------------

    def save(self, state: TrainState, before_write: Callable[[], None] | None = None) -> None:
        """Copy everything and begin to write it; prune when it is written. The other ranks go on at once.

        Args:
            before_write: makes durable what the checkpoint counts on; an OSError of it is one of the save.
        """
        begun = self._last_save = time.monotonic()
        self.wait()  # never two at once
        if not self.runtime.is_main:
            return
        state.seconds = self._seconds_before + begun - self._started
        values = {name: entry.state_dict() for name, entry in self.stateful.items() if isinstance(entry, JsonState)}
        values = {"record": self.record, "train": state.to_json(), **values}
        newest = Checkpoint(state.step, self._staging.copy_(self._tensors()), values)
        best, self._best_step, self._good_step = self._best_unsaved, state.best_step, state.good_step
        self._running = _Save([best, newest] if best and best.step == state.best_step != state.step else [newest], [])
        # no daemon: a process that ends in any ordinary way finishes the save first
        self._thread = threading.Thread(target=self._write, args=(self._running, before_write), name="saving")
        self._thread.start()
        self._stalled = time.monotonic() - begun

    def _write(self, save: _Save, before_write: Callable[[], None] | None) -> None:
        """In the thread."""
        begun = time.monotonic()
        try:
            retention.sweep(self.root)  # a folder that was read-only may have kept an earlier attempt
            if before_write:
                before_write()
            for checkpoint in save.checkpoints:
                save.saved.append(checkpoint_format.save(self.root, checkpoint))
            kept = (self._best_step, self._good_step)
            try:
                retention.prune(self.root, self.policy.keep_last, lambda s: self.is_permanent(s) or s in kept)
            except (OSError, CheckpointError) as error:
                save.remark = f"old checkpoints in {self.root} cannot be deleted ({reason(error)})"
        except CheckpointError as error:
            save.problem = error
        except OSError as error:
            save.problem = CheckpointError(
                f"the checkpoint of step {save.checkpoints[-1].step:,} could not be saved: {error.filename} cannot be "
                f"written ({reason(error)})"
            )
        except BaseException as error:  # raised again by `wait`
            save.error = error
        save.seconds = time.monotonic() - begun

    def report(self) -> None:
        """Report a save that has ended in the meantime. Cheap enough for every step."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait for the save that is being written, if there is one, and report it."""
        if self._thread is None or self._running is None:
            return
        self._thread.join()  # interrupted by signals, whose handlers run here
        save, self._thread, self._running = self._running, None, None
        if save.error is not None:
            raise save.error
        self.problem = save.problem
        for path, checkpoint in zip(save.saved, save.checkpoints, strict=False):
            self.observer.checkpoint_saved(CheckpointSaved(checkpoint.step, path, save.seconds, self._stalled))
        if save.remark:
            self.observer.notice(save.remark)
        # hold on to the best weights that could not be written, so that the next save has them too
        missing = [c for c in save.checkpoints[len(save.saved) :] if c.step == self._best_step]
        if missing and missing[0] is not self._best_unsaved:
            self._staging.release()
        self._best_unsaved = missing[0] if missing else None
        if save.problem:
            self.observer.notice(
                f"NOT SAVED: {save.problem}. {self.describe_last_checkpoint()} Training goes on, and the next save "
                "tries again."
            )

    def finish(self, state: TrainState, before_write: Callable[[], None] | None = None) -> None:
        """Wait at the end of a run, and try once more where its last state could not be saved."""
        self.wait()
        if self.problem is not None:
            self.save(state, before_write)
            self.wait()

    def describe_last_checkpoint(self) -> str:
        """The checkpoint that a failed run can be resumed from, in a sentence."""
        self.wait()
        try:
            steps = retention.saved_steps(self.root)
        except CheckpointError as error:
            return f"{error}."
        return f"The checkpoint of step {steps[0]:,} is kept." if steps else "There is no checkpoint."

    def raise_if_unsaved(self) -> None:
        """Raise EnvironmentProblem where the run ends and its last state could not be saved."""
        if self.problem is not None:
            raise EnvironmentProblem(
                f"{self.problem}. {self.describe_last_checkpoint()} Free space or fix the permissions, then run the "
                "same command."
            ) from self.problem

    def best_unsaved(self, step: int | None) -> Checkpoint | None:
        """The checkpoint of the best weights, where it could not be written and is held in memory."""
        held = self._best_unsaved
        return held if held is not None and held.step == step else None

    # --- restoring -----------------------------------------------------------------------------------

    def restore(self, checkpoint: Checkpoint) -> TrainState:
        """Load every registered entry; returns the run's training state.

        Raises:
            CheckpointError: it is of another model, or holds no training state of its step.
        """
        for name, entry in self.stateful.items():
            if isinstance(entry, nn.Module):
                checkpoint_format.load_weights(entry, checkpoint.tensors(name), name)
            else:
                read = checkpoint.entry if isinstance(entry, JsonState) else checkpoint.tensors
                entry.load_state_dict(read(name))
        if self.after_restore:
            self.after_restore(checkpoint.state.get("record") or {})
        state = TrainState.from_json(checkpoint.entry("train"))
        if state.step != checkpoint.step:
            raise CheckpointError(f"the checkpoint of step {checkpoint.step:,} holds the state of step {state.step:,}.")
        self._seconds_before = state.seconds
        return state

    def rollback(self, step: int) -> TrainState | None:
        """Restore the checkpoint of `step`, or the newest good one before it, and delete those after it.

        Where there is none so early, because a disk was full, the newest good one has to do.

        Returns:
            The training state at that step, the same on every rank; None where there is no checkpoint.
        """
        self.wait()
        good: Checkpoint | None = None
        for at_most in (step, None) if self.runtime.is_main else ():
            try:
                good = good or retention.newest_good(self.root, self.observer.notice, at_most=at_most)
            except CheckpointError as error:
                self.observer.notice(str(error))
        self.delete_after(max(step, good.step) if good else step)
        chosen = self.runtime.broadcast_object(good.step if good else None)
        if chosen is None:
            return None
        now, spent = time.monotonic(), self._seconds_before + time.monotonic() - self._started
        state = self.restore(good or checkpoint_format.load(self.root, chosen))
        self._seconds_before, self._started = spent, now
        self.runtime.barrier()  # all have read it before it is written again
        return state

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints after `step`, which led to NaN/Inf, unless that is all of them."""
        self.wait()
        if not self.runtime.is_main:
            return
        try:
            if min(retention.saved_steps(self.root), default=step) <= step:
                retention.delete_after(self.root, step)
        except (OSError, CheckpointError) as error:
            self.observer.notice(f"checkpoints after step {step:,} cannot be deleted ({reason(error)})")
