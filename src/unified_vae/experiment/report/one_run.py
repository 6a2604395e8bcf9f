"""The page of one run."""

from __future__ import annotations

from collections.abc import Sequence

from unified_vae.core.shell import uv_run
from unified_vae.experiment.report import curves, evaluations, facts, settings
from unified_vae.experiment.report.figures import Figure, Time, figures, plain
from unified_vae.experiment.report.findings import Finding, finding
from unified_vae.experiment.report.html import Child, Html, tag
from unified_vae.experiment.report.page import page
from unified_vae.experiment.report.pictures import ROOM, Sheet, sheets, shown
from unified_vae.experiment.report.run_files import Row, RunFiles, entry, number
from unified_vae.experiment.report.tables import command, folded, section, table
from unified_vae.experiment.report.ticks import sentence

CONTENTS = (
    ("figures", "Figures"),
    ("diagnosis", "Diagnosis"),
    ("pictures", "Pictures"),
    ("curves", "Curves"),
    ("evaluation", "Evaluation"),
    ("use", "Use the model"),
    ("settings", "Settings"),
    ("images", "Images"),
    ("machine", "Machine, time and cost"),
)
APPLIES = {True: "yes", False: "no", None: "unknown"}
VERBS = (
    ("new pictures", "sample"),
    ("your own images beside what the model makes of them", "reconstruct", "photos/"),
    ("figures with intervals; this page shows them when it is written anew", "evaluate"),
    ("the cause of blur or poor samples, with evidence", "diagnose"),
    ("for other programs", "export", "--to", "onnx"),
    ("this page anew", "report"),
)


def of_one(run: RunFiles) -> str:
    """The file's content."""
    time, found = Time.of(run), finding(run)
    parts = [
        _figures(run, figures(run, time)),
        _diagnosis(found),
        _pictures(run, found),
        section("curves", "Curves", tag("div", _charts(run), class_="charts") if run.metrics else None),
        evaluations.of_one(run),
        _use(run),
        settings.of_one(run),
        facts.images(run),
        facts.machine(run, time),
    ]
    return page(run.name, run.status, parts, CONTENTS)


def _charts(run: RunFiles) -> list[Html | None]:
    return [*curves.of_one(run), curves.rate_distortion([("validations", run)], predicted=True)]


def _figures(run: RunFiles, found: Sequence[Figure]) -> Html | None:
    if not found:
        return section("figures", "Figures", tag("p", "Nothing was validated yet."), *_all_numbers(run))
    cards = [tag("div", tag("dt", each.name), tag("dd", tag("b", each.text), " ", each.meaning)) for each in found]
    whose = f"Averaged weights of step {run.best['step']:,} on the validation images." if run.best else None
    return section("figures", "Figures", tag("p", whose), tag("dl", cards, class_="figures"), *_all_numbers(run))


def _all_numbers(run: RunFiles) -> list[Html]:
    """Every number of the rows that the figures are from."""
    last = [("All numbers of this validation", run.best), ("All numbers of the last training steps", _last(run))]
    return [folded(title, table(title, ("name", "value"), _numbers(row), "numbers")) for title, row in last if row]


def _last(run: RunFiles) -> Row:
    return run.training[-1] if run.training else {}


def _numbers(row: Row) -> list[tuple[str, str]]:
    return [(name, plain(value)) for name, value in row.items() if number(value)]


def _diagnosis(found: Finding | None) -> Html | None:
    if found is None:
        return section("diagnosis", "Diagnosis", tag("p", "There is no validation yet to tell anything from."))
    rows: list[Sequence[Child]] = [
        (cause, APPLIES.get(applies, "unknown"), told) for cause, applies, told in found.evidence
    ]
    return section(
        "diagnosis",
        "Diagnosis",
        tag("p", tag("strong", sentence(found.cause)), f" {sentence(found.advice)}" if found.advice else None),
        command(found.command) if found.command else None,
        folded(
            "Evidence, in the order in which it is judged",
            table("Evidence", ("cause", "applies", "figures"), rows, "stacked"),
        ),
        tag("p", tag("small", f"Found {found.source}.")),
    )


def _pictures(run: RunFiles, found: Finding | None) -> Html | None:
    chosen = sheets(run)
    if found is not None and found.picture is not None:
        chosen.append(Sheet(found.picture, "What the diagnosis looked at"))
    if not chosen:
        return section("pictures", "Pictures", tag("p", "No picture was drawn yet."))
    return section(
        "pictures", "Pictures", tag("div", [shown(sheet, ROOM // len(chosen)) for sheet in chosen], class_="sheets")
    )


def _use(run: RunFiles) -> Html | None:
    """How the model is loaded, and commands to go on with."""
    place = run.folder.root.as_posix()
    if not run.model:
        further = uv_run("train_unified.py", "--config", run.folder.config.as_posix(), "--run-dir", place)
        text = "There is no model yet: it is written when the run is over. This goes on with the run:"
        return section("use", "Use the model", tag("p", text), command(further))
    lines = [f"# {what}\n{uv_run('unified-vae', verb, place, *words)}" for what, verb, *words in VERBS]
    return section(
        "use",
        "Use the model",
        command(_how_to_load(run.folder.model.as_posix())),
        _latents(run),
        tag("p", "From the command line:"),
        command("\n".join(lines)),
    )


def _latents(run: RunFiles) -> Html | None:
    """What latent diffusion has to know; None where the statistics were not measured."""
    shift, scale, images = (entry(run.model, "latent_stats", name) for name in ("shift", "scale", "images"))
    if not (number(shift) and number(scale) and number(images)):
        return None
    return tag("p", f"Latents of {images:,} training images: (z - {shift:.4g}) * {scale:.4g} has unit variance.")


def _how_to_load(place: str) -> str:
    return f"""from unified_vae import VAE

vae = VAE.from_pretrained({place!r})
posterior = vae.encode("photo.jpg")  # posterior.mean, posterior.logvar: [1, latents]
image = vae.decode(posterior.mean)   # [1, channels, size, size] in 0..1
samples = vae.sample(8, generator=0)"""
