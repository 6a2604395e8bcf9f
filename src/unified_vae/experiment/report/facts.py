"""What a run was made of: its images and those left out, its machine, its time, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping

from unified_vae.core.printable import printable
from unified_vae.experiment.report.figures import Time, plain
from unified_vae.experiment.report.html import Html, tag
from unified_vae.experiment.report.run_files import RunFiles, rows
from unified_vae.experiment.report.tables import folded, section, table
from unified_vae.experiment.report.ticks import duration, sentence

MOST_LISTED = 200  # images that are named; the file names all
SHOWN = 10  # of them without being asked


def images(run: RunFiles) -> Html | None:
    """The data, files that could not be used, steps that were skipped, terms that were replaced."""
    told = run.about("data", "description")
    return section(
        "images",
        "Images",
        tag("p", sentence(plain(told))) if told else None,
        *_left_out(run),
        *_skipped(run),
        table("Terms of the loss that were replaced", ("term", "replaced by", "why"), _replaced(run)),
    )


def _left_out(run: RunFiles) -> list[Html | None]:
    try:
        lines = run.folder.quarantine.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [tag("p", "No image was left out.")]
    entries = [(name, why) for name, _, why in (line.partition("\t") for line in lines)]
    few, many = entries[:SHOWN], entries[SHOWN:MOST_LISTED]
    head = ("file", "why")
    unnamed = len(entries) - MOST_LISTED
    more = tag("p", f"{unnamed:,} more are named in {run.folder.quarantine.name}.") if unnamed > 0 else None
    return [
        tag("p", f"{len(entries):,} {'file' if len(entries) == 1 else 'files'} could not be used:"),
        table("Files that could not be used", head, few, "stacked"),
        folded(f"{len(many)} more", table("More files that could not be used", head, many, "stacked"), more)
        if many
        else None,
    ]


def _skipped(run: RunFiles) -> list[Html | None]:
    found = rows(run.folder.skipped)
    if not found:
        return []
    cells = [(f"{row['step']:,}", _listed(row.get("not_finite")), _listed(row.get("images"))) for row in found[-SHOWN:]]
    text = f"{len(found):,} steps were skipped because a number was not finite; the last of them:"
    return [tag("p", text), table("Skipped steps", ("step", "not finite", "images"), cells)]


def _listed(names: object) -> str:
    found = [printable(plain(name)) for name in names] if isinstance(names, list) else []
    return ", ".join(found[:4]) + (f" and {len(found) - 4:,} more" if len(found) > 4 else "")


def _replaced(run: RunFiles) -> list[list[str]]:
    found = run.about("substitutions")
    terms = found if isinstance(found, list) else []
    return [[plain(cell) for cell in row] for row in terms if isinstance(row, list) and len(row) == 3]


def machine(run: RunFiles, time: Time) -> Html | None:
    """Versions, device, seconds, memory."""
    versions = run.about("environment")
    asked = [("device, as asked", "device"), ("precision", "training.precision"), ("compiled", "training.compile")]
    chosen = [(name, run.about("config", *path.split("."))) for name, path in asked]
    facts = [
        *(versions.items() if isinstance(versions, Mapping) else ()),
        *((name, found) for name, found in chosen if found is not None),
        *_memory(time),
        *_spent(time),
    ]
    listed = table(
        "Machine, time and memory", ("what", "figure"), [(name, plain(told)) for name, told in facts], "stacked"
    )
    return section("machine", "Machine, time and cost", listed)


def _memory(time: Time) -> list[tuple[str, str]]:
    peaks = (("memory of the process, peak", time.process_bytes), ("memory of the device, peak", time.device_bytes))
    return [(name, f"{size / 2**30:.2f} GiB") for name, size in peaks if size is not None]


def _spent(time: Time) -> list[tuple[str, str]]:
    if time.whole <= 0:
        return []
    parts = (("training", time.training), ("validation", time.validation), ("waiting for checkpoints", time.waiting))
    return [
        *((f"time of {name}", duration(seconds)) for name, seconds in parts),
        ("time, together", f"{duration(time.whole)} ({time.whole / 3600:,.2f} hours of this machine)"),
        ("energy", "not measured"),
    ]
