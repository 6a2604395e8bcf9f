"""Reads the files of a run into plain values; a missing, old or damaged file leaves a gap, not an error. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from unified_vae.config.loss import LIKELIHOOD_METRICS, is_likelihood
from unified_vae.core.errors import ConfigError, reason
from unified_vae.core.files import ancestor

Row = Mapping[str, Any]
LARGEST = 1e100  # a number beyond this is not worth showing, and no axis can span it
_STEP_FOLDER = re.compile(r"step-\d{9}")
_SAMPLE_FILE = re.compile(r"epoch-(\d+)-(.+)\.png")
_KNOWN = "Name the folder of a run, e.g. runs/fast_high_quality"


@dataclass(frozen=True)
class Timing:
    """Seconds of a run by what they were spent on, and its peak memory.

    Attributes:
        training, validation, waiting: seconds in optimizer steps, in validations, and waiting for checkpoints.
        speeds: training images per second, one for each row.
        memory: (label, bytes) of the peaks that were measured.
    """

    training: float
    validation: float
    waiting: float
    speeds: Sequence[float]
    memory: Sequence[tuple[str, float]]

    @property
    def total(self) -> float:
        """All seconds together."""
        return self.training + self.validation + self.waiting


@dataclass(frozen=True)
class RunData:
    """What the files of a run say.

    Attributes:
        root: the folder, as the user named it.
        record: config.json.
        metrics, timing_rows, skipped: rows of metrics.jsonl, timing.jsonl, skipped.jsonl; `step` is a number in each.
        model: config.json of the exported model; empty without one.
        preflight: predictions of linear theory; empty where they are unknown.
        evaluation: evaluation.json; empty where `evaluate` was not run.
        diagnosis: cause, advice, command, evidence and source of the newest diagnosis; None without one.
        excluded: (file, reason) of images that could not be used.
        images: (file, caption) of the newest image grids, and the figure of `diagnose`.
    """

    root: Path
    record: Row
    metrics: Sequence[Row]
    timing_rows: Sequence[Row]
    skipped: Sequence[Row]
    model: Row
    preflight: Row
    evaluation: Row
    diagnosis: Row | None
    excluded: Sequence[tuple[str, str]]
    images: Sequence[tuple[Path, str]]

    def setting(self, *names: str) -> Any:
        """Return a resolved setting, None where it was not recorded: `setting("training", "epochs")`."""
        return get(self.record, "config", *names)

    def split(self, name: str) -> list[Row]:
        """Return the rows of metrics.jsonl of one split, `train` or `validation`."""
        return [row for row in self.metrics if row.get("split") == name]

    @property
    def latents(self) -> int | None:
        """Number of latents, all positions of a map together."""
        count = self.preflight.get("latents") or self.setting("model", "latents")
        return int(count) if is_number(count) else None

    @property
    def best(self) -> Row:
        """The validation of the exported weights; without a model, the one with the highest PSNR; empty without any."""
        rows, exported = self.split("validation"), get(self.model, "run", "step")
        measured = [row for row in rows if is_number(row.get("psnr"))]
        chosen = [row for row in rows if row["step"] == exported]
        return [*rows, *sorted(measured, key=lambda row: row["psnr"]), *chosen][-1] if rows else {}

    @property
    def status(self) -> str:
        """How far the run came, as a sentence."""
        last = max((int(row["step"]) for row in (*self.metrics, *self.timing_rows)), default=0)
        epoch = self.metrics[-1].get("epoch") if self.metrics else None
        epochs = f" ({epoch:.4g} epochs)" if is_number(epoch) else ""
        planned = [self.setting("training", "epochs"), self.record.get("steps_per_epoch")]
        limits = [planned[0] * planned[1]] if all(map(is_number, planned)) else []
        limits += [limit for limit in [self.setting("training", "max_steps")] if is_number(limit)]
        total = min(limits, default=None)
        if last > 0 and get(self.model, "run", "trained_steps") == last:
            early = total is not None and last < total
            return f"{f'Stopped early, of {total:,},' if early else 'Finished'} after {last:,} steps{epochs}."
        over = total is not None and last >= total
        of_total = "" if total is None else f" of {total:,}"
        return f"{'No model exported yet' if over else 'Not finished'}: {last:,}{of_total} steps{epochs}."

    @property
    def timing(self) -> Timing:
        """Times from timing.jsonl. Work that was lost and done again after a resume counts once."""
        batch_size = self.setting("training", "batch_size")
        training = validation = waiting = before = 0.0
        speeds = []
        for row in self.timing_rows:
            speed, stalled, validated = (
                value if is_number(value := row.get(name)) else 0.0
                for name in ("images_per_second", "stalled_seconds", "validation_seconds")
            )
            if speed > 0 and is_number(batch_size):
                training += max(0.0, row["step"] - before) * batch_size / speed
                before = row["step"]
                speeds.append(speed)
            validation, waiting = validation + validated, waiting + stalled
        memory = []
        for label, name in (("process", "process_bytes"), ("device", "device_peak_bytes")):
            peaks = [row[name] for row in self.timing_rows if is_number(row.get(name))]
            memory += [(f"memory of the {label}, peak", max(peaks))] if peaks else []
        return Timing(training, validation, waiting, speeds, memory)


def read_run(target: Path) -> RunData:
    """Read the run in a folder, or the run that a checkpoint or a model folder belongs to.

    Raises:
        ConfigError: there is none, or its config.json cannot be read.
    """
    if not target.is_dir():
        raise ConfigError(f"{target} is {'not a folder' if target.exists() else 'missing'}. {_KNOWN}.")
    # a checkpoint or the exported model stands for its run
    root, real = target, target.resolve()
    if _STEP_FOLDER.fullmatch(real.name) and real.parent.name == "checkpoints":
        root = ancestor(target, 2)
    elif (target / "model.safetensors").is_file() and (real.parent / "config.json").is_file():
        root = ancestor(target, 1)
    # config.json is the one file that a report cannot do without
    try:
        record = json.loads((root / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{target} is not a run: it has no config.json. {_KNOWN}.") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise ConfigError(f"{root / 'config.json'} cannot be read ({reason(problem)}); a report needs it.") from None
    if not isinstance(get(record, "config"), Mapping):
        raise ConfigError(f"{target} is not a run: its config.json has no settings of one. {_KNOWN}.")
    metrics, timing_rows, skipped = (read_rows(root / f"{name}.jsonl") for name in ("metrics", "timing", "skipped"))
    loss = get(record, "config", "loss")
    if isinstance(loss, Mapping) and not is_likelihood(loss):  # earlier versions logged one for a mix of losses too
        metrics = [{name: value for name, value in row.items() if name not in LIKELIHOOD_METRICS} for row in metrics]
    preflight = record.get("preflight")
    last_step = max((row["step"] for row in (*metrics, *timing_rows)), default=0)
    diagnosis = _newest_diagnosis(root, last_step)
    return RunData(
        root=root,
        record=record,
        metrics=metrics,
        timing_rows=timing_rows,
        skipped=skipped,
        model=read_json(root / "model" / "config.json"),
        preflight=preflight if isinstance(preflight, Mapping) and preflight else read_json(root / "preflight.json"),
        evaluation=read_json(root / "evaluation.json"),
        diagnosis=diagnosis,
        excluded=[(name, why) for name, _, why in (line.partition("\t") for line in _lines(root / "quarantine.txt"))],
        images=_images(root, diagnosis),
    )


def _newest_diagnosis(root: Path, last_step: float) -> Row | None:
    """What `diagnose` or the end of the run wrote last; what an end wrote counts only if the run did not go on."""
    files = [path for path in (root / "diagnosis.json", root / "closing.json") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        content = read_json(path)
        rows, step = content.get("evidence"), content.get("step")
        if not (isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows) and "cause" in content):
            continue
        at_the_end = path.name == "closing.json"
        if at_the_end and step != last_step:
            continue
        weights = f", from the weights of step {step:,}" if is_number(step) else ""
        return {
            **{name: str(content.get(name, "")) for name in ("cause", "advice", "command")},
            "evidence": [tuple(row.get(name) for name in ("cause", "applies", "figures")) for row in rows],
            "source": "at the end of the run" if at_the_end else f"by unified-vae diagnose{weights}",
            "from_images": not at_the_end,
        }
    return None


def _images(root: Path, diagnosis: Row | None) -> list[tuple[Path, str]]:
    """The newest image grid of each kind with its caption, and the figure that belongs to the diagnosis."""
    samples = root / "samples"
    newest: dict[str, tuple[int, Path]] = {}
    for path in samples.iterdir() if samples.is_dir() else ():
        if match := _SAMPLE_FILE.fullmatch(path.name):
            candidate = (int(match[1]), path)
            newest[match[2]] = max(newest.get(match[2], candidate), candidate)
    captions = {
        "reconstructions": "Validation images, each beside its reconstruction",
        "samples": "New images",
        "interpolation": "Interpolations through the latents from one image to another",
    }
    shown = {
        kind: (newest[kind][1], f"{text}, epoch {newest[kind][0]:,}")
        for kind, text in captions.items()
        if kind in newest
    }
    if (final := samples / "final-samples.png").is_file():
        shown["samples"] = (final, "New images, drawn from the latent densities that their captions name")
    images = [shown[kind] for kind in captions if kind in shown]
    if diagnosis and diagnosis["from_images"] and (figure := root / "diagnosis.png").is_file():
        images.append((figure, "What the diagnosis measured"))
    return images


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def read_rows(path: Path) -> list[Row]:
    """Read the objects of a file of JSON lines that have a step; damaged or cut lines are left out."""
    rows: list[Row] = []
    for line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and is_number(row.get("step")):
            rows.append(row)
    return rows


def read_json(path: Path) -> Row:
    """Read an object from a JSON file; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def get(content: Any, *names: str) -> Any:
    """Return an entry of nested objects; None where it is missing."""
    for name in names:
        content = content.get(name) if isinstance(content, Mapping) else None
    return content


def mapping(content: Any) -> Row:
    """Return an object as it is, and an empty one in place of anything else."""
    return content if isinstance(content, Mapping) else {}


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite number of a size that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def flatten(content: Row, prefix: str = "") -> dict[str, Any]:
    """Return every value of nested objects by its dotted path."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        values |= flatten(value, path) if isinstance(value, Mapping) and value else {path: value}
    return values
