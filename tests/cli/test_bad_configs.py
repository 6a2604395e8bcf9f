"""Some forty wrong config files: exit code 2 and one line with file, line, key and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bad_books import BROKEN, WRONG_VALUES, changed, line_of
from good_book import GOOD


@pytest.mark.parametrize(("path", "value", "mark", "parts"), WRONG_VALUES)
def test_a_wrong_value_is_named_by_line(door, book_in_folder, path, value, mark, parts) -> None:
    text = changed(path, value)
    book_in_folder(text)
    code, out, error = door.mode("--mode", "m")
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    assert error.startswith("error: config/config_unified.json:"), error
    assert f"config_unified.json:{line_of(text, mark)}:" in error, error
    for part in parts:
        assert part in error


def test_the_good_book_is_good(door, book_in_folder) -> None:
    book_in_folder(json.dumps(GOOD))
    assert door.mode("--mode", "m")[0] == 0


def test_a_byte_order_mark_is_no_mistake(door, book_in_folder) -> None:
    book_in_folder("\ufeff" + json.dumps(GOOD))
    assert door.mode("--mode", "m")[0] == 0
    Path("mine.json").write_text('\ufeff{"seed": 7}', encoding="utf-8")
    code, out, _ = door.mode("--mode", "m", "--config", "mine.json", "--dry-run")
    assert code == 0 and "mine.json:1" in out


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_another_encoding_is_one_sentence(door, encoding) -> None:
    Path("mine.json").write_bytes('{"note": "größer"}'.encode(encoding))
    code, _, error = door.mode("--mode", "quick_test", "--config", "mine.json")
    assert code == 2
    assert error.startswith("error: mine.json") and error.count("\n") == 1 and "UTF-8" in error


@pytest.mark.parametrize(("text", "part"), BROKEN)
def test_a_broken_file_is_one_sentence(door, book_in_folder, text: str, part: str) -> None:
    book_in_folder(text)
    code, _, error = door.mode("--mode", "m")
    assert code == 2
    assert error.count("\n") == 1
    assert part in error


def test_presets_that_extend_each_other_are_a_circle(door, book_in_folder) -> None:
    book = json.loads(json.dumps(GOOD))
    book["loss_presets"] |= {"a": {"_extends": "b"}, "b": {"_extends": "c"}, "c": {"_extends": "a"}}
    book_in_folder(json.dumps(book))
    code, _, error = door.mode("--mode", "m")
    assert code == 2
    assert "a -> b -> c -> a" in error


def test_a_mistake_in_the_users_own_file_is_named_there(door) -> None:
    Path("mine.json").write_text('{\n  "loss": {"kl": {"wieght": 2}}\n}')
    code, _, error = door.mode("--mode", "quick_test", "--config", "mine.json")
    assert code == 2
    assert error.startswith("error: mine.json:2:19: unknown key 'wieght' in loss.kl.")
