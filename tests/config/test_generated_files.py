"""The schema and the presets' page are those that the commands would write today."""

from __future__ import annotations

import json
from pathlib import Path

from unified_vae.cli import generated_files
from unified_vae.config.presets import SECTIONS, PresetBook

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "config" / "config_unified.json"


def test_the_schema_is_current() -> None:
    written = (ROOT / generated_files.SCHEMA).read_text(encoding="utf-8")
    assert written == generated_files.schema_text(), generated_files.__doc__


def test_the_presets_page_is_current_and_whole() -> None:
    written = (ROOT / generated_files.PAGE).read_text(encoding="utf-8")
    book = PresetBook.load(shipped=SHIPPED)
    assert written == generated_files.presets_page(book), generated_files.__doc__
    for name in [*book.modes, *(name for kind in SECTIONS for name in book.presets(kind))]:
        assert f"- **`{name}`**: " in written


def test_the_book_names_its_schema() -> None:
    name = json.loads(SHIPPED.read_text(encoding="utf-8"))["$schema"]
    assert (SHIPPED.parent / name).resolve() == (ROOT / generated_files.SCHEMA).resolve()


def test_every_preset_uses_only_what_the_schema_allows() -> None:
    schema = json.loads(generated_files.schema_text())
    book = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert all(key in schema["properties"] or key.startswith("_") for key in book)
    for kind in SECTIONS:
        preset = schema["$defs"][f"{kind}_preset"]
        families = [family["properties"] for family in preset.get("anyOf", [preset])]
        for name, entry in book[f"{kind}_presets"].items():
            assert any(all(key in allowed or key.startswith("_") for key in entry) for allowed in families), name
    allowed = schema["$defs"]["mode"]["properties"]
    for name, mode in book["modes"].items():
        assert all(key in allowed for key in mode), name
