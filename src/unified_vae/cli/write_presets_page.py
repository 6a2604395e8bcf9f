"""Write docs/presets.md anew from the preset book: uv run python -m unified_vae.cli.write_presets_page"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from unified_vae.cli.text import value_text
from unified_vae.experiment.presets.book_file import SECTIONS
from unified_vae.experiment.presets.layers import leaves
from unified_vae.experiment.presets.preset_book import Mode, Preset, PresetBook

PATH = Path("docs") / "presets.md"

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
    return "\n".join(lines) + "\n"


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
