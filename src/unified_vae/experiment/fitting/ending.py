"""How a run ends: interrupted with the command that goes on, or with a model and what to do next."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence

from safetensors import SafetensorError

from unified_vae.api.card import FIGURES
from unified_vae.config.model import DensityConfig
from unified_vae.core.durable import reason
from unified_vae.core.errors import CheckpointError, EnvironmentProblem
from unified_vae.core.shell import uv_run
from unified_vae.experiment.diagnosis.history import History
from unified_vae.experiment.fitting.assemble import Parts, Resolved
from unified_vae.experiment.request import RunRequest
from unified_vae.experiment.run_folder import RunFolder
from unified_vae.models.density.stored import TENSORS
from unified_vae.models.pretrained import CONFIG, DENSITY, WEIGHTS, save_pretrained
from unified_vae.training import checkpoint
from unified_vae.training.checkpoint import Checkpoint
from unified_vae.training.observers import Observer, RunFinished
from unified_vae.training.state import TrainState

EXPORT_ERRORS = (OSError, SafetensorError, EnvironmentProblem)
"""What `export` raises where the disk is full or the folder cannot be written."""


def export(
    folder: RunFolder,
    parts: Parts,
    resolved: Resolved,
    state: TrainState,
    names: dict[str, str],
    data: str,
    observer: Observer,
    held: Checkpoint | None = None,
) -> None:
    """Write the averaged weights of the best validation as a folder that loads without this run.

    Args:
        data: one line about the images.
        held: the checkpoint of those weights, where it could not be written to the disk.
    """
    weights, step, psnr = parts.ema.model.state_dict(), state.step, state.best_psnr
    if state.best_step is not None and state.best_step != state.step:
        try:
            best = held or checkpoint.load(folder.checkpoints, state.best_step)
            weights, step = dict(best.group("ema")), best.step
        except CheckpointError as problem:
            observer.notice(f"the best weights cannot be read, so the last ones are exported: {problem}")
            psnr = None  # of the best, which these are not
    about = {
        "run": {
            "name": folder.root.absolute().name,
            "names": names,
            "data": data,
            "license": resolved.config.license,
            "step": step,
            "psnr": psnr,
            "trained_steps": state.step,
            "validation": _validation(folder, step),
        },
        "loss": resolved.config.loss.model_dump(mode="json"),
        "pixels": "float in [0, 1], channels first",
        "background": resolved.config.data.background,
    }
    save_pretrained(folder.model, resolved.config.model, weights, about)


def _validation(folder: RunFolder, step: int) -> dict[str, float]:
    """The figures of the validation at `step`; none where it left no row."""
    row = History.read(folder.metrics, until=step).last
    return {name: row[name] for name in FIGURES if row.get("step") == step and name in row}


def export_failed(folder: RunFolder, problem: Exception, left: str, command: str) -> str:
    """Why there is no model at the end of a run, and how to get it.

    Args:
        left: the checkpoint there is, in a sentence.
    """
    return (
        f"training is over, but the model could not be written to {folder.model} ({reason(problem).rstrip('.')}). "
        f"{left} Free space or mend the permissions; this finishes the run: {command}"
    )


def is_exported(folder: RunFolder, state: TrainState, density: DensityConfig) -> bool:
    """Whether the exported model is that of this very state, with the latent density that is asked for."""
    try:
        about = json.loads((folder.model / CONFIG).read_text(encoding="utf-8"))
        whole = all((folder.model / name).is_file() for name in (WEIGHTS, TENSORS))
        whole = whole and about[DENSITY]["asked"] == density.model_dump()
        return bool(about["run"]["trained_steps"] == state.step) and whole
    except (OSError, ValueError, KeyError, TypeError):
        return False


def interrupted(request: RunRequest, state: TrainState, number: int, seconds: float) -> RunFinished:
    """A signal stopped the run; everything is saved."""
    advice = (f"saved at step {state.step:,}. To continue: {request.command}",)
    name = signal.Signals(number).name
    return _ending("interrupted", request, state, seconds, advice, signal=name, exit_code=128 + number)


def already_finished(request: RunRequest, state: TrainState, epochs: int) -> RunFinished:
    """The same command was given for a run that is over."""
    why = "stopped early by patience" if state.stopped_early else "finished"
    advice = (
        f"this run had already {why}: nothing to do.",
        f"To train longer, give more --epochs than {epochs}; to start afresh, --no-resume.",
    )
    return _ending("already finished", request, state, 0.0, advice)


def finished(
    request: RunRequest,
    state: TrainState,
    seconds: float,
    findings: Sequence[str],
    unsaved: CheckpointError | None = None,
) -> RunFinished:
    """The last step was taken, or patience ran out.

    Args:
        findings: lines to show before what to do next.
        unsaved: why the last checkpoint could not be written; the model could.
    """
    folder = RunFolder(request.run_dir)
    if unsaved is not None:
        lost = f"{unsaved}. The model is complete; to train it longer, the run goes on from an earlier checkpoint"
        findings = [*findings, lost]
    advice = (
        *findings,
        f"look at the pictures: {folder.samples}",
        f"see the curves: {uv_run('tensorboard', '--logdir', folder.tensorboard)}",
    )
    outcome, exit_code = "stopped early" if state.stopped_early else "finished", 0 if unsaved is None else 3
    return _ending(outcome, request, state, seconds, advice, exit_code=exit_code)


def _ending(
    outcome: str,
    request: RunRequest,
    state: TrainState,
    seconds: float,
    advice: Sequence[str],
    signal: str = "",
    exit_code: int = 0,
) -> RunFinished:
    folder = RunFolder(request.run_dir)
    return RunFinished(
        outcome=outcome,
        run_dir=folder.root,
        step=state.step,
        values={} if state.best_psnr is None else {"psnr": state.best_psnr},
        best_step=state.best_step,
        seconds=seconds,
        model_dir=folder.model if folder.model.is_dir() else None,
        signal=signal,
        exit_code=exit_code,
        advice=tuple(advice),
    )
