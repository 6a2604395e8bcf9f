"""The preset book in words: `--list-presets`, and the modes for those who gave none."""

from __future__ import annotations

from unified_vae.cli.text import table
from unified_vae.config.presets import SECTIONS, Mode, PresetBook


def mode_lines(book: PresetBook) -> list[str]:
    """Each mode, what it is and whom it serves."""
    rows = [(mode.name, _in_words(mode.description, mode.use_case)) for mode in book.modes.values()]
    return table([("mode", "what it is"), *rows])


def listing_lines(book: PresetBook) -> list[str]:
    """All modes with the presets that they combine, and all presets by section."""
    lines = ["modes (train.py --mode NAME)", *mode_lines(book), "", "modes combine"]
    lines += table([("mode", ", ".join(SECTIONS)), *((m.name, _combination(m)) for m in book.modes.values())])
    for kind in SECTIONS:
        presets = book.presets(kind).values()
        lines += ["", f"{kind} presets (train_unified.py --{kind}-preset NAME)"]
        lines += table([(preset.name, _in_words(preset.description, preset.use_case)) for preset in presets])
    return [*lines, "", *(f"from {file.shown}" for file in book.files)]


def _combination(mode: Mode) -> str:
    absent = "defaults" if mode.fixes is None else "the run's"
    return ", ".join(mode.presets.get(kind, absent) for kind in SECTIONS)


def _in_words(*parts: str) -> str:
    """What it is and what it is for, as far as that was said."""
    return ": ".join(part for part in parts if part)
