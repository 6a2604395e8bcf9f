"""JSON that remembers where each value stands, so that a mistake in it can be named by file, line and column.

Stricter than the standard library, as a file edited by hand deserves: duplicate keys, NaN, infinities,
numbers too large for a float, lone surrogates and very deep nesting are refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]  # missing in the stubs only
from pathlib import Path

from unified_vae.core.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MOST_SHOWN = 80  # letters of a wrong word that an error repeats
MAX_NAME = 200  # letters of a key: no setting or preset needs more, and errors repeat it

Keys = tuple[str | int, ...]

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_WORD = re.compile(r"[^\s,:\[\]{}\"]+")
_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class LocatedJSON:
    """A parsed file.

    Attributes:
        file: its name as shown to the user.
        value: what it holds.
        places: path of each value -> (line, column) of its key, or of the value itself inside a list.
    """

    file: str
    value: object
    places: Mapping[Keys, tuple[int, int]]

    def line(self, *path: str | int) -> str:
        """`file:line` of a value, for naming where a setting came from."""
        return f"{self.file}:{self._place(path)[0]}"

    def where(self, *path: str | int) -> str:
        """`file:line:column` of a value, or of the nearest one around it."""
        line, column = self._place(path)
        return f"{self.file}:{line}:{column}"

    def _place(self, path: Keys) -> tuple[int, int]:
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, (1, 1))


def shown(path: Path) -> str:
    """A file as the user would name it: relative where it lies below the current folder."""
    try:
        return Path(os.path.realpath(path)).relative_to(os.path.realpath(Path.cwd())).as_posix()
    except ValueError:
        return str(path)


def read_json(path: Path) -> LocatedJSON:
    """Read a JSON file.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8 text or not strict JSON.
    """
    return parse_json(_read_text(path), shown(path))


def _read_text(path: Path) -> str:
    name = shown(path)
    try:
        mode = path.stat().st_mode  # asked before opening: opening a pipe would wait for its writer
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{name} is a folder; a JSON file is needed")
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{name} is a pipe or a device; a JSON file is needed")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"{name} is not there; check the name of the file") from None
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{name} is larger than {MAX_BYTES // 1024} KiB, so it is no config; check the name of the file"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text (byte {error.start}); save it as UTF-8 JSON") from error
    if not text.strip():
        raise ConfigError(f"{name} is empty; it should hold a JSON object")
    return text


def parse_json(text: str, file: str) -> LocatedJSON:
    """Parse strict JSON.

    Args:
        text: the whole document.
        file: its name, for messages.

    Raises:
        ConfigError: with file, line, column and what was expected there.
    """
    parser = _Parser(text, file)
    value = parser.document()
    return LocatedJSON(file, value, parser.places)


class _Parser:
    """A recursive-descent parser; every method starts at a token and leaves `at` behind what it read."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.at = 0
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.places: dict[Keys, tuple[int, int]] = {}

    def document(self) -> object:
        self._skip_space()
        self.places[()] = self._place(self.at)
        value = self._value(())
        if self.at < len(self.text):
            raise self._error(f"expected the end of the file, found {self._found()}")
        return value

    def _value(self, path: Keys) -> object:
        if len(path) > MAX_DEPTH:
            raise self._error(f"nested more than {MAX_DEPTH} deep")
        match self._next_character():
            case "{":
                value: object = self._object(path)
            case "[":
                value = self._list(path)
            case '"':
                value = self._string()
            case _:
                value = self._number_or_word()
        self._skip_space()
        return value

    def _object(self, path: Keys) -> dict[str, object]:
        result: dict[str, object] = {}
        self._take("{")
        while self._next_character() != "}":
            self._member(path, result)
            if self._next_character() != "}":
                self._take(",", "or '}' behind an entry")
                if self._next_character() == "}":
                    raise self._error("the comma before this '}' is one too many")
        self._take("}")
        return result

    def _member(self, path: Keys, result: dict[str, object]) -> None:
        start = self.at
        if self._next_character() != '"':
            raise self._error(f'expected a key in "double quotes", found {self._found()}')
        key = self._string()
        if len(key) > MAX_NAME:
            raise self._error(f"the key that starts here has more than {MAX_NAME} letters", start)
        if key in result:
            first, _ = self.places[*path, key]
            raise self._error(f"the key {key!r} was given before, on line {first}; remove one of them", start)
        self.places[*path, key] = self._place(start)
        self._skip_space()
        self._take(":", f"after the key {key!r}")
        result[key] = self._value((*path, key))

    def _list(self, path: Keys) -> list[object]:
        result: list[object] = []
        self._take("[")
        while self._next_character() != "]":
            self.places[*path, len(result)] = self._place(self.at)
            result.append(self._value((*path, len(result))))
            if self._next_character() != "]":
                self._take(",", "or ']' behind a value")
                if self._next_character() == "]":
                    raise self._error("the comma before this ']' is one too many")
        self._take("]")
        return result

    def _string(self) -> str:
        start = self.at
        try:
            value, self.at = scanstring(self.text, self.at + 1, True)
            value.encode("utf-8")
        except json.JSONDecodeError as error:
            problem = error.msg[0].lower() + error.msg[1:].removesuffix(" at")
            raise self._error(f"the text that starts here is not valid: {problem}", start) from error
        except UnicodeEncodeError as error:
            raise self._error("the text that starts here holds half of a surrogate pair", start) from error
        return value

    def _number_or_word(self) -> object:
        start = self.at
        word = _WORD.match(self.text, start)
        if word is None:
            raise self._error(f"expected a value, found {self._found()}")
        self.at = word.end()
        if word.group() in _WORDS:
            return _WORDS[word.group()]
        number = _NUMBER.fullmatch(word.group())
        if number is None or len(word.group()) > 400:
            raise self._error(f'expected a value, found {shortened(word.group())}; text needs "double quotes"', start)
        if number.group(1) is None and number.group(2) is None:
            return int(word.group())
        value = float(word.group())
        if not math.isfinite(value):
            raise self._error(f"the number {word.group()} is too large", start)
        return value

    def _take(self, character: str, why: str = "") -> None:
        if self._next_character() != character:
            raise self._error(f"expected {character!r} {why}".rstrip() + f", found {self._found()}")
        self.at += 1
        self._skip_space()

    def _skip_space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def _next_character(self) -> str:
        return self.text[self.at : self.at + 1]

    def _found(self) -> str:
        return shortened(self._next_character()) if self.at < len(self.text) else "the end"

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.line_starts, at)
        return line, at - self.line_starts[line - 1] + 1

    def _error(self, problem: str, at: int | None = None) -> ConfigError:
        line, column = self._place(self.at if at is None else at)
        return ConfigError(f"{self.file}:{line}:{column}: {problem}")


def shortened(word: str) -> str:
    """The word in quotes, cut off where it is long."""
    return repr(cut(word))


def cut(text: str) -> str:
    """Text short enough for an error."""
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."
