"""The JSON reader agrees with the standard library, knows every place, and is stricter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unified_vae.experiment.presets.json_with_lines import MAX_BYTES, MAX_NAME, parse_json, read_json

from unified_vae.core.errors import ConfigError

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_NAME)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner), max_leaves=20)


@given(_VALUES, st.sampled_from([None, 2]), st.booleans())
def test_reads_what_the_standard_library_writes(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    read = parse_json(text, "x").value
    assert read == value
    assert json.dumps(read) == json.dumps(value)  # tells 1 from 1.0 and from true


@given(st.dictionaries(_TEXT, st.lists(st.integers()), min_size=1), st.sampled_from([None, 1, 4]))
def test_places_point_at_the_keys_and_elements(value: dict[str, list[int]], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    lines = text.split("\n")
    document = parse_json(text, "x")
    for key, numbers in value.items():
        line, column = document.places[(key,)]
        assert lines[line - 1][column - 1 :].startswith(json.dumps(key))
        for index, number in enumerate(numbers):
            line, column = document.places[key, index]
            assert lines[line - 1][column - 1 :].startswith(str(number))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('{"a": 1,\n "a": 2}', "x:2:2", "'a' was given before, on line 1"),
        ('{"a": NaN}', "x:1:7", "'NaN'"),
        ('{"a": -Infinity}', "x:1:7", "'-Infinity'"),
        ('{"a": 1e999}', "x:1:7", "too large"),
        ('{"a": 01}', "x:1:7", "expected a value"),
        ('{"a": 1,}', "x:1:9", "one too many"),
        ("[1, 2,]", "x:1:7", "one too many"),
        ('{"a" 1}', "x:1:6", "expected ':' after the key 'a'"),
        ("{a: 1}", "x:1:2", "double quotes"),
        ('{"a": 1 "b": 2}', "x:1:9", "expected ','"),
        ('{"a": "b', "x:1:7", "unterminated"),
        ('{"a": "\\ud800"}', "x:1:7", "surrogate"),
        ('{"a": 1', "x:1:8", "the end"),
        ("{} {}", "x:1:4", "expected the end"),
        ("[" * 200, "x:1:52", "deep"),
        ('{"a": ' + "9" * 5000 + "}", "x:1:7", "expected a value"),
    ],
)
def test_refuses_with_place_and_reason(text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json(text, "x")
    assert str(caught.value).startswith(f"{place}: ")
    assert words in str(caught.value)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": 1}')
    assert read_json(path).value == {"a": 1}
    assert read_json(path).where("a").endswith("bom.json:1:2")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (bytes(range(256)), "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b"[" * (10 << 20), f"larger than {MAX_BYTES // 1024} KiB"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_json(path)
    assert "bad.json" in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not there"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is a folder"):
        read_json(tmp_path)
