"""Files that a verb reads are never written over: refused before a model is looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from unified_vae.core.errors import ConfigError
from unified_vae.experiment.using.edit import EditRequest, edit
from unified_vae.experiment.using.interpolate import InterpolateRequest, interpolate
from unified_vae.experiment.using.outputs import Places
from unified_vae.training.observers import Observer

SILENT = Observer()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images under the names that walks give theirs, and one that may be a movie."""
    (tmp_path / "cats").mkdir()
    for name in ("000001.png", "000002.png", "a.gif", "cats/b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "labels.png").write_bytes(b"a table of a strange name")
    return tmp_path


def test_a_walk_is_not_written_over_its_ends(photos: Path) -> None:
    first, movie = photos / "000001.png", photos / "a.gif"
    again = photos / "cats" / ".." / "000001.png"
    for ends, places, to in [
        ((first, "7"), Places(None, photos), None),
        (("7", photos / "000002.png"), Places(None, photos), None),
        ((first, "7"), Places(again, None), None),
        (("7", movie), Places(photos / "s.png", None), movie),
    ]:
        request = InterpolateRequest("nowhere", str(ends[0]), str(ends[1]), 4, False, places, to)
        with pytest.raises(ConfigError, match="would be overwritten"):
            interpolate(request, SILENT)


def test_an_edit_is_not_written_over_images_or_labels(photos: Path) -> None:
    image, safe = photos / "000001.png", Path("nowhere/e.png")
    cases = [
        EditRequest(Path("nowhere"), [image], "builtin", sheet=image),
        EditRequest(Path("nowhere"), [photos], "builtin", sheet=photos / "cats" / "b.png"),
        EditRequest(Path("nowhere"), [], str(photos), sheet=photos / "cats" / "b.png"),
        EditRequest(Path("nowhere"), [], "t.csv", data=str(photos), sheet=photos / "cats" / "b.png"),
        EditRequest(Path("nowhere"), [], str(photos / "labels.png"), sheet=photos / "labels.png"),
        EditRequest(Path("nowhere"), [], "d.json", sheet=safe, directions=Path("d.safetensors")),
    ]
    for request in cases:
        with pytest.raises(ConfigError, match="would be overwritten"):
            edit(replace(request, attribute="light"), SILENT)
