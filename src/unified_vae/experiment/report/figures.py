"""The figures of a run in words: what the best validation measured, how fast it was, how long it took."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from unified_vae.experiment.report.run_files import RunFiles, number
from unified_vae.experiment.report.ticks import duration


@dataclass(frozen=True)
class Figure:
    """Attributes:
    name: what was measured.
    text: the number with its unit.
    meaning: how to read it.
    """

    name: str
    text: str
    meaning: str = ""


@dataclass(frozen=True)
class Time:
    """Seconds of a run by what they were spent on, as timing.jsonl tells; lost stretches of a resumed run excluded.

    Attributes:
        training: of the steps.
        validation: of the passes over the validation set.
        waiting: for checkpoints, while the training stood.
        clock: (step, seconds until then).
        speeds: images per second, of each row.
        process_bytes, device_bytes: peaks; None where they were not measured.
    """

    training: float
    validation: float
    waiting: float
    clock: Sequence[tuple[float, float]]
    speeds: Sequence[float]
    process_bytes: int | None
    device_bytes: int | None

    @property
    def whole(self) -> float:
        """All of it."""
        return self.training + self.validation + self.waiting

    @classmethod
    def of(cls, run: RunFiles) -> Time:
        """From the rows of a run."""
        a_step = run.about("config", "training", "batch_size")
        training = validation = waiting = before = 0.0
        clock, speeds = [(0.0, 0.0)], []
        for row in run.timing:
            speed = row.get("images_per_second")
            if number(speed) and speed > 0 and number(a_step):
                training += max(0.0, row["step"] - before) * a_step / speed
                before = row["step"]
                speeds.append(speed)
            validation += _seconds(row.get("validation_seconds"))
            waiting += _seconds(row.get("stalled_seconds"))
            clock.append((row["step"], training + validation + waiting))
        peaks = [_peak(run, name) for name in ("process_bytes", "device_peak_bytes")]
        return cls(training, validation, waiting, clock, speeds, *peaks)


def _seconds(value: object) -> float:
    return value if number(value) else 0.0


def _peak(run: RunFiles, name: str) -> int | None:
    return max((row[name] for row in run.timing if number(row.get(name))), default=None)


def figures(run: RunFiles, time: Time) -> list[Figure]:
    """Those that there are, the most telling first; the same names for every run."""
    return [*_of_pictures(run), *_of_latents(run), *_of_speed(run, time)]


def value(run: RunFiles, name: str) -> float | None:
    """A number of the best validation."""
    found = run.best.get(name)
    return found if number(found) else None


def above_pca(run: RunFiles) -> float | None:
    """dB over as many principal components as there are latents."""
    told, psnr, line = value(run, "psnr.above_pca"), value(run, "psnr"), run.preflight.get("psnr_pca")
    if told is not None or psnr is None:
        return told
    return psnr - line if number(line) else None


def latents(run: RunFiles) -> int | None:
    """Of the model, all positions of a map together."""
    found = run.preflight.get("latents") or run.about("config", "model", "latents")
    return int(found) if number(found) else None


def _of_pictures(run: RunFiles) -> list[Figure]:
    psnr, mean, gain = value(run, "psnr"), value(run, "psnr.mean_image"), above_pca(run)
    found = [
        _figure("PSNR", psnr, "{:.2f} dB", "of reconstructed validation images; higher is better"),
        _figure("over PCA", gain, "{:+z.2f} dB", "against as many principal components as latents"),
    ]
    if psnr is not None and mean is not None:
        found.append(Figure("over the mean image", f"{psnr - mean:+z.2f} dB", "against one answer for all images"))
    kept = "of the images' fine detail; 1 is as sharp as they are"
    return [*_there(found), *_there([_figure("sharpness", value(run, "sharpness"), "{:.2f}", kept)])]


def _of_latents(run: RunFiles) -> list[Figure]:
    units, count = value(run, "active_units"), latents(run)
    of = "" if count is None else f" of {count:,}"
    gap = "distance of the latents from N(0, I), within the KL"
    return _there(
        [
            _figure("KL", value(run, "rate.nats"), "{:,.1f} nats", "of an image: what its latents tell"),
            _figure("bits per dimension", value(run, "bits_per_dim"), "{:.3f}", "of errors and KL; lower is better"),
            _figure("active units", units, f"{{:,.0f}}{of}", "latents that tell images apart"),
            _figure("gap to the prior", value(run, "posterior.gap"), "{:,.1f} nats", gap),
        ]
    )


def _of_speed(run: RunFiles, time: Time) -> list[Figure]:
    speed = statistics.median(time.speeds) if time.speeds else None
    found = _there([_figure("speed", speed, "{:,.4g} images/s", "of training, the median")])
    if time.whole > 0:
        found.append(Figure("time", duration(time.whole), "of training, validation and waiting for checkpoints"))
    return found


def _figure(name: str, measured: float | None, form: str, meaning: str) -> Figure | None:
    return None if measured is None else Figure(name, form.format(measured), meaning)


def _there(found: Sequence[Figure | None]) -> list[Figure]:
    return [each for each in found if each is not None]


def plain(content: object) -> str:
    """A value of a JSON file as it is read: numbers in six digits, words without quotes."""
    if isinstance(content, str):
        return content
    if number(content) and isinstance(content, float):
        return f"{content:,.0f}" if content.is_integer() and abs(content) >= 1e6 else f"{content:.6g}"
    return json.dumps(content, ensure_ascii=False)
