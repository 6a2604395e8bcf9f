"""What a run does about numbers that are not finite: it says whose they are, goes back, and gives up at last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unified_vae.core.errors import Diverged
from unified_vae.data.augment import augment
from unified_vae.data.batches import batch_indices, gather
from unified_vae.data.dataset import PackedSplit
from unified_vae.training.ledger import Leap, Skipped
from unified_vae.training.memory import attempted
from unified_vae.training.metrics_log import MetricsLog
from unified_vae.training.non_finite import faults, listed, origins
from unified_vae.training.observers import Observer, StepSkipped, WentBack
from unified_vae.training.plan import Plan
from unified_vae.training.random import latent_noise
from unified_vae.training.saver import Saver
from unified_vae.training.state import TrainState
from unified_vae.training.step import Stepper, in_unit_range

TOLD = 10  # skipped steps of one start that get a line each; all are in the file
FILE = "skipped.jsonl"


class Lost(Exception):
    """The weights give no finite numbers any more: the run has to go back.

    Attributes:
        step: the last one that was looked at.
        terms: what was not finite there.
        where: in words.
    """

    def __init__(self, step: int, terms: Sequence[str], where: str) -> None:
        super().__init__(where)
        self.step = step
        self.terms = terms
        self.where = where


class Recovery:
    """Tells of skipped steps and leaping gradients, and brings a lost run back to its last good checkpoint."""

    def __init__(
        self,
        plan: Plan,
        state: TrainState,
        stepper: Stepper,
        train: PackedSplit,
        saver: Saver,
        metrics: MetricsLog | None,
        observer: Observer,
    ) -> None:
        self.plan = plan
        self.rule = plan.training.recovery
        self.state = state
        self.stepper = stepper
        self.train = train
        self.saver = saver
        self.metrics = metrics
        self.observer = observer
        self._told = 0
        self._leaps_told_in = -1

    # --- saying --------------------------------------------------------------------------------------

    def tell(self, events: Sequence[Skipped | Leap]) -> None:
        """Say what happened.

        Raises:
            Lost: too many steps in a row were skipped.
        """
        for event in events:
            if isinstance(event, Leap):
                self._tell_leap(event)
            else:
                self._tell_skipped(event)
                if event.in_a_row >= self.rule.max_consecutive_skips:
                    where = f"in {event.in_a_row} steps in a row, up to step {event.step:,}"
                    raise Lost(event.step, event.terms, where)

    def _tell_skipped(self, skipped: Skipped) -> None:
        names, epoch = self._names(skipped.step), self._epoch(skipped.step)
        self.observer.step_skipped(
            StepSkipped(skipped.step, epoch, self.state.rollbacks, tuple(skipped.terms), tuple(names))
        )
        self._told += 1
        if self._told > TOLD:
            return
        more = f" Further ones are only listed in {FILE}." if self._told == TOLD else ""
        what = f"step {skipped.step:,} was skipped: no finite {listed(origins(skipped.terms), 9)}"
        self.observer.notice(f"{what}. {self._whose(skipped.step)}{more}")

    def _tell_leap(self, leap: Leap) -> None:
        """One line an epoch; all are counted."""
        if self._epoch(leap.step) == self._leaps_told_in:
            return
        self._leaps_told_in = self._epoch(leap.step)
        clip = self.plan.training.max_grad_norm
        done = f"clipped to {clip:g}" if clip is not None else "not clipped, as training.max_grad_norm is null"
        self.observer.notice(
            f"step {leap.step:,}: gradient of norm {leap.norm:.3g}, {leap.norm / leap.median:.0f} times the running "
            f"median {leap.median:.3g}; {done} ({self.state.spikes:,} so far)"
        )

    def _epoch(self, step: int) -> int:
        """Number of the pass over the images that a step belongs to, from 0."""
        return (step - 1) // self.plan.steps_per_epoch

    def _indices(self, step: int) -> np.ndarray:
        return batch_indices(self.plan.seed, step - 1, len(self.train), self.plan.batch_size)

    def _names(self, step: int) -> list[str]:
        """The images of a step over all devices, as the user knows them."""
        return [str(self.train.names[index]) for index in self._indices(step)]

    def _whose(self, step: int) -> str:
        """The images at fault where the fault is in some of them, else those of the batch."""
        found = self._at_fault(step)
        if found and 0 < len(found[0]) < len(self._indices(step)):
            return f"At fault of its {len(self._indices(step)):,} images: {listed(found[0])} ({listed(found[1], 9)})."
        return f"Images of step {step:,}: {listed(self._names(step))} ({FILE} names all)."

    def _at_fault(self, step: int) -> tuple[list[str], list[str]] | None:
        """Images and terms of a step that are not finite with the weights as they are; None where unknown."""
        if not self.stepper.runtime.is_main:
            return None
        found = attempted(lambda: self._look(step), self.stepper.runtime)
        if found is None:
            return None
        images = torch.stack(list(found.values())).any(0)
        names = [name for name, bad in zip(self._names(step), images.tolist(), strict=True) if bad]
        return names, [term for term, bad in found.items() if bool(bad.any())]

    @torch.no_grad()
    def _look(self, step: int) -> dict[str, Tensor]:
        """Term -> [batch] bool: the whole batch of a step once more, forward, as that step saw it."""
        plan, stepper, runtime = self.plan, self.stepper, self.stepper.runtime
        indices, model = self._indices(step), self.stepper.model
        noise = latent_noise(plan.seed, step - 1, len(indices), model.latents, 0, 1, runtime.device)
        pieces = min(stepper.micro_batches.pieces * runtime.world_size, len(indices))
        found: list[dict[str, Tensor]] = []
        for some, drawn in zip(np.array_split(indices, pieces), noise.tensor_split(pieces), strict=True):
            raw = gather(self.train, some).to(runtime.device)
            raw = augment(raw, some, config=plan.data.augment, seed=plan.seed, epoch=self._epoch(step))
            images = in_unit_range(raw, self.stepper.runtime.layout)
            with runtime.autocast():
                output = model(images, drawn)
            found.append(faults(stepper.objective, output, images))
        return {name: torch.cat([each[name] for each in found]).cpu() for name in found[0]}

    # --- going back ----------------------------------------------------------------------------------

    def go_back(self, lost: Lost) -> None:
        """Return to the last good checkpoint with a lower learning rate. The caller saves and goes on from there.

        Raises:
            Diverged: that was done as often as it may be, or there is no checkpoint.
        """
        state = self.state
        if state.rollbacks >= self.rule.max_rollbacks:
            self._give_up(lost, "")
        earlier = self.saver.go_back(state.good_step)
        if earlier is None:
            self._give_up(lost, "There is no checkpoint to go back to. ")
            return
        state.go_back_to(earlier, lost.step, self.rule.lr_factor)
        if self.metrics:
            self.metrics.go_back(state.metrics_rows)
        self.observer.went_back(WentBack(state.step))
        what = f"no finite {listed(origins(lost.terms), 9)} {lost.where}"
        self.observer.notice(
            f"{what}: the run went back to step {state.step:,} and goes on with {state.lr_scale:g} times the "
            f"learning rate (time {state.rollbacks} of {self.rule.max_rollbacks})"
        )

    def _give_up(self, lost: Lost, why: str) -> None:
        state = self.state
        self.saver.forget_after(state.good_step)
        tried = (
            f", also after going back {state.rollbacks} time(s) to {state.lr_scale:.3g} of the learning rate"
            if state.rollbacks
            else ""
        )
        what = f"training diverged: no finite {listed(origins(lost.terms), 9)} {lost.where}{tried}"
        raise Diverged(f"{what}. {why}{self._diagnosis(lost)} {self.saver.what_is_left()}")

    def _diagnosis(self, lost: Lost) -> str:
        """Whose fault it may be and what to change, in a few sentences."""
        training, found, whose = self.plan.training, self._at_fault(lost.step), self._whose(lost.step)
        lr = training.optimizer.lr * self.state.lr_scale / 3
        lower = f"run the same command with a lower --lr ({lr:.1g}, say)"
        if found and 0 < len(found[0]) < len(self._indices(lost.step)):
            return f"{whose} Take these images out of the set if they are damaged, or {lower}."
        if self.state.lost_step == lost.step and self.state.rollbacks:
            return f"{whose} It is the same step each time, whatever the rate: look at these images first, or {lower}."
        enabled = [f"loss.{name}" for name in self.stepper.term_names]
        blamed = [name for name in (found[1] if found else lost.terms) if name in enabled]
        if blamed and len(blamed) < len(enabled):
            return f"{whose} Of the loss terms only {listed(blamed)} fails: give it weight 0, or {lower}."
        if self.stepper.runtime.dtype != torch.float32:
            return f"{whose} Train with --precision fp32, or {lower}."
        if training.max_grad_norm is None:
            return f"{whose} Bound the gradients with --set training.max_grad_norm=1, or {lower}."
        return f"{whose} {lower[0].upper()}{lower[1:]}."
