"""Some seventy wrong config files: one sentence with the file, the dotted path and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.bad_configs import BROKEN, WRONG_VALUES, changed
from tests.helpers.good_config import GOOD
from unified_vae.config.presets import PresetBook, read_json
from unified_vae.core.errors import ConfigError

MISTAKES = [(changed(path, value), parts) for path, value, parts in WRONG_VALUES]
MISTAKES += [(text, [part]) for text, part in BROKEN]


def load(tmp_path: Path, text: str | bytes, extra: Path | None = None) -> PresetBook:
    path = tmp_path / "config_unified.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return PresetBook.load(shipped=path, extra=extra)


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_named_by_file_and_path(number: int, tmp_path: Path) -> None:
    text, parts = MISTAKES[number]
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message and "config_unified.json" in message and len(message) < 1000
    for part in parts:
        assert part in message


def test_the_good_book_is_good(tmp_path: Path) -> None:
    for text in (json.dumps(GOOD), "\ufeff" + json.dumps(GOOD)):
        assert list(load(tmp_path, text).modes) == ["m"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_another_encoding_is_one_sentence(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(tmp_path, '{"note": "größer"}'.encode(encoding))


def test_presets_that_extend_each_other_are_a_circle(tmp_path: Path) -> None:
    book = json.loads(json.dumps(GOOD))
    book["loss_presets"] |= {"a": {"_extends": "b"}, "b": {"_extends": "c"}, "c": {"_extends": "a"}}
    with pytest.raises(ConfigError, match="a -> b -> c -> a"):
        load(tmp_path, json.dumps(book))


def test_a_mistake_in_the_users_own_file_is_named_there(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text('{"loss": {"kl": {"wieght": 2}}}')
    with pytest.raises(ConfigError, match=r"mine.json: unknown key 'wieght' in loss.kl. Did you mean 'loss.kl.weight'"):
        book = load(tmp_path, json.dumps(GOOD), extra=mine)
        book.compose({}, book.files[0].settings)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is a folder, pipe or device"):
        read_json(tmp_path)
