"""Renders the report of a run as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from unified_vae.core import __version__
from unified_vae.core.errors import ConfigError, EnvironmentProblem, escape_name, reason, shell_quote, uv_run
from unified_vae.core.files import write_text
from unified_vae.report.read import RunData, flatten, get, is_number, mapping, read_run

IMAGE_BYTES = 1_200_000
"""Bytes of all images of a page together; as text they are a third more."""
SHOWN = 10  # steps that are named of those that were skipped

# label, name in metrics.jsonl or computed below, format, how to read it; the most telling first
METRICS = (
    ("PSNR", "psnr", "{:.2f} dB", "of reconstructed validation images; higher is better"),
    ("over PCA", "psnr.above_pca", "{:+z.2f} dB", "against as many principal components as latents"),
    ("over the mean image", "above_mean", "{:+z.2f} dB", "against one answer for all images"),
    ("sharpness", "sharpness", "{:.2f}", "of the images' fine detail; 1 is as sharp as they are"),
    ("KL", "rate.nats", "{:,.1f} nats", "per image: the information in its latents"),
    ("bits per dimension", "bits_per_dim", "{:.3f}", "of errors and KL; lower is better"),
    ("active units", "active_units", "{:,.0f}{of_latents}", "latents that differ from image to image"),
    ("gap to the prior", "posterior.gap", "{:,.1f} nats", "distance of the latents from N(0, I), within the KL"),
    ("speed", "speed", "{:,.4g} images/s", "of training, the median"),
)


def write_report(target: Path, output: Path | None = None) -> Path:
    """Write the page of a run and return its path.

    Args:
        target: folder of a run, or of a checkpoint or a model in one.
        output: the file; None: report.html in the run's folder.

    Raises:
        ConfigError: the target is not a run.
        EnvironmentProblem: the page cannot be written.
    """
    run = read_run(target)
    output = output or run.root / "report.html"
    if output.is_dir():
        raise ConfigError(f"--output {output} is a folder: name a file in it, e.g. {output / 'report.html'}")
    text = render_run(run)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise EnvironmentProblem(f"{output} cannot be written ({reason(problem)}): give another --output") from problem
    write_text(output, text)
    return output


def render_run(run: RunData) -> str:
    """Return the page of one run."""
    from unified_vae.report.plots import run_charts  # matplotlib takes as long to import as all charts to draw

    # settings: what was chosen, with its origin, before the defaults
    origins, config = mapping(run.record.get("origins")), flatten(run.record["config"])
    settings = [(name, text(value), text(origins.get(name, "not recorded"))) for name, value in config.items()]
    # numbers of the two rows that the metrics are from
    numbers = [("All numbers of this validation", run.best)]
    numbers += [("All numbers of the last training steps", row) for row in run.split("train")[-1:]]
    evaluated = (run.evaluation.get("subject"), get(run.evaluation, "images", "description"))
    folder = run.root.as_posix()
    # the latents as latent diffusion needs them
    latent_stats = [get(run.model, "latent_stats", name) for name in ("images", "shift", "scale")]
    return _render(
        title=folder,
        status=run.status,
        run=run,
        metrics=summarize(run),
        numbers=[
            (title, [(name, text(n)) for name, n in row.items() if is_number(n)]) for title, row in numbers if row
        ],
        charts=run_charts(run) if run.metrics else [],
        images=_embedded(run.images),
        evaluations=evaluations(run),
        evaluated=[text(part) for part in evaluated if part],
        latent_stats=latent_stats if all(map(is_number, latent_stats)) else None,
        target=shell_quote(folder),
        resume=uv_run("train_unified.py", "--config", (run.root / "config.json").as_posix(), "--run-dir", folder),
        model=(run.root / "model").as_posix(),
        presets=", ".join(f"{kind} {text(name)}" for kind, name in mapping(run.record.get("names")).items()),
        chosen=[row for row in settings if row[2] != "default"],
        defaults=[row[:2] for row in settings if row[2] == "default"],
        data=text(get(run.record, "data", "description") or ""),
        skipped=[
            (f"{row['step']:,}", *(", ".join(map(text, _list(row.get(name))[:4])) for name in ("not_finite", "images")))
            for row in run.skipped[-SHOWN:]
        ],
        substitutions=[
            [text(cell) for cell in row] for row in _list(run.record.get("substitutions")) if len(_list(row)) == 3
        ],
        machine=_machine(run),
    )


def summarize(run: RunData) -> list[tuple[str, str, str]]:
    """Return (label, number with its unit, how to read it) of the best validation, of speed and of time."""
    timing = run.timing
    values = {name: value for name, value in run.best.items() if is_number(value)}
    psnr, pca = values.get("psnr"), run.preflight.get("psnr_pca")
    if psnr is not None and is_number(pca):
        values.setdefault("psnr.above_pca", psnr - pca)
    if psnr is not None and "psnr.mean_image" in values:
        values["above_mean"] = psnr - values["psnr.mean_image"]
    if timing.speeds:
        values["speed"] = statistics.median(timing.speeds)
    of_latents = "" if run.latents is None else f" of {run.latents:,}"
    rows = [
        (label, form.format(values[name], of_latents=of_latents), meaning)
        for label, name, form, meaning in METRICS
        if name in values
    ]
    if timing.total > 0:
        rows.append(("time", duration(timing.total), "of training, validation and waiting for checkpoints"))
    return rows


def evaluations(run: RunData) -> dict[str, tuple[list[tuple[str, ...]], list[tuple[str, str]]]]:
    """Return weights -> rows of (metric, value, interval, better, measured by), and of (metric, why it is missing)."""
    tables: dict[str, tuple[list[tuple[str, ...]], list[tuple[str, str]]]] = {}
    for weights, results in mapping(run.evaluation.get("weights")).items():
        measured, missing = tables.setdefault(str(weights), ([], []))
        for result in map(mapping, _list(results)):
            title = text(result.get("title") or result.get("name"))
            value, count = result.get("value"), result.get("images")
            if result.get("missing"):
                missing.append((title, text(result["missing"])))
            elif result:
                limits = [limit for limit in _list(result.get("interval_95")) if is_number(limit)]
                images = f"{count:,} images" if is_number(count) and count else ""
                how = (result.get("evaluator"), result.get("resolution"), images, result.get("note"))
                shown = f"{value:,.5g} {text(result.get('unit') or '')}".rstrip() if is_number(value) else "—"
                interval = f"{limits[0]:,.5g} to {limits[1]:,.5g}" if len(limits) == 2 else ""
                better, words = text(result.get("better") or ""), ", ".join(text(part) for part in how if part)
                measured.append((title, shown, interval, better, words))
    return tables


def _machine(run: RunData) -> list[tuple[str, str]]:
    """Versions, device, memory and time."""
    timing = run.timing
    settings = {
        "requested device": run.setting("device"),
        "precision": run.setting("training", "precision"),
        "compiled": run.setting("training", "compile"),
    }
    rows = [(name, text(value)) for name, value in mapping(run.record.get("environment")).items()]
    rows += [(label, text(value)) for label, value in settings.items() if value is not None]
    rows += [(label, f"{size / 2**30:.2f} GiB") for label, size in timing.memory]
    if timing.total > 0:
        rows += [
            ("time of training", duration(timing.training)),
            ("time of validation", duration(timing.validation)),
            ("time of waiting for checkpoints", duration(timing.waiting)),
            ("time, together", f"{duration(timing.total)} ({timing.total / 3600:,.2f} hours of this machine)"),
            ("energy", "not measured"),
        ]
    return rows


def _embedded(images: Sequence[tuple[Path, str]]) -> list[dict[str, Any]]:
    """Images as data URIs that share IMAGE_BYTES; where one cannot be read, the reason."""
    from unified_vae.report.plots import embed_image

    shown: list[dict[str, Any]] = []
    for path, caption in images:
        image: dict[str, Any] = {"name": path.name, "caption": caption}
        try:
            image["uri"], image["width"], image["height"] = embed_image(path, IMAGE_BYTES // len(images))
        except Exception as problem:  # Pillow's decoders raise many kinds for damaged files
            image["problem"] = reason(problem)
        shown.append(image)
    return shown


def _list(content: Any) -> list[Any]:
    return content if isinstance(content, list) else []


def text(content: object) -> str:
    """Return a value of a JSON file as it is read: numbers in six digits, strings without quotes."""
    if isinstance(content, str):
        return content
    if isinstance(content, float) and is_number(content):
        return f"{content:,.0f}" if content.is_integer() and abs(content) >= 1e6 else f"{content:.6g}"
    return json.dumps(content, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Return a time in the unit that says most: 48 s, 12 min, 3 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def sentence(words: str) -> str:
    """Return words with a capital letter and a full stop."""
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


@cache
def _template() -> jinja2.Template:
    """The page. Whatever is set into it is escaped, and control characters are written out."""

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else "\n".join(escape_name(line) for line in str(value).split("\n"))

    environment = jinja2.Environment(
        autoescape=True, finalize=finalize, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["sentence"] = sentence
    return environment.from_string((files("unified_vae.report") / "page.html.j2").read_text(encoding="utf-8"))


def _render(**content: Any) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return _template().render(**content, written=f"{now:%Y-%m-%d %H:%M} UTC by unified-vae {__version__}")
