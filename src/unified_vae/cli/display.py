"""A run in words, as shown before it starts, when it starts or resumes, and when it ends."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from unified_vae.cli.text import WIDTH, table, value_text, wrapped, wrapped_before_command
from unified_vae.cli.time_left import clock_text
from unified_vae.config.base import leaves
from unified_vae.config.run import ComposedRun
from unified_vae.core.events import Difference, RunFinished, RunStarted, TermRow

_FOLDERS = re.compile(r"[^\s()]*[/\\]([^\s()/\\]+\.json)")


def config_lines(run: ComposedRun) -> list[str]:
    """Every setting with its origin, by section; `*` marks what differs from the field's default."""
    values = run.config.model_dump()
    rows: dict[str, list[tuple[str, str, str]]] = {}
    for keys in leaves(values):
        path = ".".join(map(str, keys))
        section, _, inner = path.partition(".") if len(keys) > 1 else ("", "", path)
        if not _is_idle(path, values, run.origins):
            inner = "kl.weight (beta)" if path == "loss.kl.weight" else inner
            rows.setdefault(section, []).append((inner, value_text(_at(values, keys)), run.origins[path]))
    names = ", ".join(f"{kind} {name}" for kind, name in run.names.items())
    lines = [
        *wrapped(f"settings ({names})" if names else "settings", "  "),
        "  * given by a preset, a file or the command line; the rest are defaults",
    ]
    for section, section_rows in rows.items():
        lines += ["", *([f"{section}."] if section else []), *_setting_rows(section_rows)]
    return lines + [line for note in run.notes for line in ("", *wrapped(f"note: {note}", "  "))]


def _setting_rows(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    path_width = max(len(path) for path, _, _ in rows)
    value_width = min(max(len(value) for _, value, _ in rows), 14)
    lines = []
    for path, value, origin in rows:
        mark = " " if origin == "default" else "*"
        line = f"{mark} {path:<{path_width}}  {value:<{value_width}}"
        short = _short_origin(origin)
        if len(line) + 2 + len(short) <= WIDTH:
            lines.append(f"{line}  {short}")
        else:
            lines += [line.rstrip(), *(f"      {rest}" for rest in wrapped(short))]
    return lines


def _short_origin(origin: str) -> str:
    """Without what the section's heading says already, and with the file's name instead of its path."""
    return _FOLDERS.sub(r"\1", re.sub(r"^(loss|training|model|dataset|augment) preset ", "preset ", origin))


def _is_idle(path: str, values: Mapping[str, object], origins: Mapping[str, str]) -> bool:
    """A default of a loss term whose weight is 0: it says nothing about the run."""
    section, _, inner = path.partition(".")
    term, _, field = inner.partition(".")
    if section != "loss" or field == "weight" or origins[path] != "default":
        return False
    settings = _at(values, ("loss", term))
    return isinstance(settings, Mapping) and settings.get("weight") == 0


def _at(values: Mapping[str, object], keys: Sequence[str | int]) -> object:
    value: object = values
    for key in keys:
        assert isinstance(value, Mapping)
        value = value[str(key)]
    return value


def started_lines(event: RunStarted) -> list[str]:
    """What was resolved, beta and all loss weights, and on resume what changed."""
    title = f"resumed at step {event.start_step:,} of {event.total_steps:,}" if event.resumed else "started"
    lines = ["", *wrapped(f"run {title} in {event.run_dir.as_posix()}", "  ")]
    lines += table(list(event.facts))
    lines += ["", *term_lines(event.terms)]
    if event.resumed:
        lines += ["", *difference_lines(event.differences)]
    return [*lines, ""]


def term_lines(terms: Sequence[TermRow]) -> list[str]:
    """Beta and the weight of every term, now and over the run."""
    rows = [("term", "weight", "now", "schedule")]
    for term in sorted(terms, key=lambda term: term.name != "loss.kl"):
        name = "loss.kl (beta)" if term.name == "loss.kl" else term.name
        words = [term.schedule if term.weight else "off", *([term.note] if term.note else [])]
        rows.append((name, f"{term.weight:g}", f"{term.weight * term.factor:g}", "; ".join(words)))
    return ["objective: beta and all loss weights", *table(rows)]


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """Before and now of every setting that changed since the checkpoint."""
    if not differences:
        return ["settings are those of the checkpoint"]
    rows = [("setting", "before", "now")]
    rows += [(each.path, value_text(each.before), value_text(each.now)) for each in differences]
    return ["settings changed since the checkpoint", *table(rows)]


def finished_lines(event: RunFinished) -> list[str]:
    """How the run ended, its figure, and what to do next."""
    outcome = event.outcome
    if event.signal:  # or the reason that somebody gave
        outcome += f" by {event.signal}" if event.signal.startswith("SIG") else f": {event.signal}"
    lines = ["", f"run {outcome} at step {event.step:,} after {clock_text(event.seconds)}"]
    if "psnr" in event.values:
        step = "" if event.best_step is None else f" at step {event.best_step:,}"
        lines.append(f"  best validation PSNR {event.values['psnr']:.2f} dB{step}")
    lines += wrapped(f"  run folder: {event.run_dir.as_posix()}", "    ")
    if event.model_dir is not None:
        lines += wrapped(f"  model: {event.model_dir.as_posix()}", "    ")
    for advice in event.advice:
        lines += wrapped_before_command(f"  {advice}", "    ")
    return lines
