"""Write docs/presets.md anew from the preset book: uv run python -m unified_vae.cli.write_presets_page"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from unified_vae.cli.text import gibibytes, number, value_text
from unified_vae.experiment.presets.book_file import SECTIONS
from unified_vae.experiment.presets.layers import Settings, leaves
from unified_vae.experiment.presets.preset_book import Mode, Preset, PresetBook

PATH = Path("docs") / "presets.md"
COSTED_IMAGES = 16

_INTRODUCTION = """\
# Modes and presets

Generated from `config/config_unified.json` by `uv run python -m unified_vae.cli.write_presets_page`; a test
keeps it current. Settings that a preset leaves out keep their defaults, which are documented in each room's
`config.py` and in `config/config_unified.schema.json`. A dotted path is spelled here as in the JSON and after
`--set`. Loss weights are parts of one energy that is calibrated as a whole, so only their ratios matter;
`loss.kl.weight` is beta.
"""


def presets_page(book: PresetBook) -> str:
    """The whole page, as Markdown."""
    lines = [_INTRODUCTION, "## Modes", "", "`uv run train.py --mode NAME`", ""]
    lines += _table(
        ("Mode", "What it is", "Use case", *(kind.capitalize() for kind in SECTIONS)),
        ((f"`{mode.name}`", mode.description, mode.use_case, *_names(mode)) for mode in book.modes.values()),
    )
    for kind in SECTIONS:
        lines += [
            "",
            f"## {kind.capitalize()} presets",
            "",
            f"`uv run train_unified.py --{kind}-preset NAME`",
            "",
        ]
        lines += _table(
            ("Preset", "What it is", "Use case", "Settings"),
            ((f"`{p.name}`", p.description, p.use_case, _settings(p)) for p in book.presets(kind).values()),
        )
        if kind == "model":
            lines += ["", *_costs(book)]
    return "\n".join(lines) + "\n"


def _costs(book: PresetBook) -> list[str]:
    """What each model costs, for images of three channels."""
    from unified_vae.experiment.model_figures import model_figures

    rows = []
    for name in book.presets("model"):
        figures = model_figures(book.compose({"model": name}, Settings()).config.model)
        millions = (f"{count / 1e6:.1f} million" for count in (figures.parameters, figures.fixed))
        operations = (f"{number(flops / 1e9)} GFLOP" for flops in (figures.forward_flops, figures.step_flops))
        rows.append((f"`{name}`", *millions, *operations, f"{gibibytes(figures.step_bytes(COSTED_IMAGES))} GiB"))
    heading = ("Preset", "Parameters", "Fixed", "An image forward", "An image in a step")
    words = (
        "What they cost, without the networks of loss terms; two operations for a multiplication and an addition. The "
        f"memory is about that of a step of {COSTED_IMAGES} images at once in fp32; `--dry-run` shows it for any run."
    )
    return [
        words,
        "",
        *_table((*heading, f"Memory of {COSTED_IMAGES} images"), rows),
    ]


def _names(mode: Mode) -> list[str]:
    absent = "defaults" if mode.fixes is None else "that run's"
    return [f"`{mode.presets[kind]}`" if kind in mode.presets else absent for kind in SECTIONS]


def _settings(preset: Preset) -> str:
    field = SECTIONS[preset.kind].field
    words = []
    for keys in leaves(preset.settings.values):
        path = ".".join([field, *map(str, keys)])
        words.append(f"`{path}={value_text(preset.settings.value(keys))}`")
    return "<br>".join(words)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(presets_page(PresetBook.load()), encoding="utf-8", newline="\n")
    print(f"wrote {PATH}")
