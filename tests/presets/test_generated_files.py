"""The schema and the presets' page are those that the commands would write today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unified_vae.cli import write_presets_page, write_schema
from unified_vae.config.presets import SECTIONS, PresetBook

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "config" / "config_unified.json"


def test_the_schema_is_current() -> None:
    written = (ROOT / write_schema.PATH).read_text(encoding="utf-8")
    assert written == write_schema.schema_text(), "run: uv run python -m unified_vae.cli.write_schema"


def test_the_presets_page_is_current() -> None:
    written = (ROOT / write_presets_page.PATH).read_text(encoding="utf-8")
    page = write_presets_page.presets_page(PresetBook.load(shipped=SHIPPED))
    assert written == page, "run: uv run python -m unified_vae.cli.write_presets_page"


def test_the_book_names_its_schema() -> None:
    name = json.loads(SHIPPED.read_text(encoding="utf-8"))["$schema"]
    assert (SHIPPED.parent / name).resolve() == (ROOT / write_schema.PATH).resolve()


def test_every_field_in_the_schema_is_explained() -> None:
    schema = json.loads(write_schema.schema_text())
    silent = [
        f"{name}.{field}"
        for name, body in schema["$defs"].items()
        for field, entry in body.get("properties", {}).items()
        if not _explained(entry, schema["$defs"]) and field != "kind"
    ]
    assert silent == []


def _explained(entry: dict[str, Any], definitions: dict[str, Any]) -> bool:
    if "description" in entry:
        return True
    inner = [entry, *entry.get("oneOf", []), *entry.get("allOf", [])]
    names = [part["$ref"].rpartition("/")[2] for part in inner if "$ref" in part]
    return bool(names) and all("description" in definitions[name] for name in names)


def test_every_preset_uses_only_what_the_schema_allows() -> None:
    schema = json.loads(write_schema.schema_text())
    book = json.loads(SHIPPED.read_text(encoding="utf-8"))
    assert all(key in schema["properties"] or key.startswith("_") for key in book)
    for section in SECTIONS.values():
        preset = schema["$defs"][f"{section.kind}_preset"]
        families = [family["properties"] for family in preset.get("anyOf", [preset])]
        for name, entry in book[section.key].items():
            assert any(all(key in allowed or key.startswith("_") for key in entry) for allowed in families), name
    allowed = schema["$defs"]["mode"]["properties"]
    for name, mode in book["modes"].items():
        assert all(key in allowed for key in mode), name


def test_the_page_names_every_preset_and_mode() -> None:
    book = PresetBook.load(shipped=SHIPPED)
    page = write_presets_page.presets_page(book)
    for name in [*book.modes, *(name for kind in SECTIONS for name in book.presets(kind))]:
        assert f"| `{name}` |" in page
