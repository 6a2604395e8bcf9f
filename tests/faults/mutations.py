"""Damage by the thousand, each piece a function of its number, so that a failure can be looked at again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from random import Random

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
PIECES = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"NaN", b"1e999", b"-Infinity", b"\\ud800", b"-", b"0",
          b"//", b"\xef\xbb\xbf", b"\x00", b'"kind":', b'{"a":' * 60, b"9" * 5000, b"\xff"]  # fmt: skip
VALUES: list[object] = [
    None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 1e-320, 10**30, "", "x", "0", "1e-3", "linear", "\u0000",
    "\U0001f600", "a" * 3000, "~nobody/x", [], [1], [[]], {}, {"kind": "linear"}, {"kind": 3}, {"": {}}, {"_x": 1},
]  # fmt: skip
KEYS = ["_extends", "kind", "family", "set", "fixes", "loss", "", ".", "a.b", "weight"]


def damaged(data: bytes, rng: Random) -> bytes:
    """Bytes with bits flipped, numbers replaced, parts lost, doubled or put in; mostly near the beginning."""
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        if not content:
            break
        at = rng.randrange(min(len(content), rng.choice([64, 512, 1 << 30])))
        _damage(content, at, rng)
    return bytes(content)


def _damage(content: bytearray, at: int, rng: Random) -> None:
    match rng.randrange(7):
        case 0:
            content[at] ^= 1 << rng.randrange(8)
        case 1:
            content[at] = rng.randrange(256)
        case 2:
            del content[at:]
        case 3:
            del content[at : at + rng.randrange(1, 64)]
        case 4:
            content[at:at] = rng.randbytes(rng.randrange(1, 64))
        case 5:
            size = rng.choice([1, 2, 4])
            number = rng.choice(NUMBERS) % (1 << 8 * size)
            content[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
        case _:
            content[at:at] = content[at : at + rng.randrange(1, 256)] * rng.randrange(1, 4)


def garbled(text: str, rng: Random) -> bytes:
    """JSON text with letters replaced, lost, doubled, and pieces of syntax put in."""
    content = bytearray(text.encode())
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(5):
            case 0 if at < len(content):
                content[at] = rng.randrange(256)
            case 1:
                del content[at : at + rng.randrange(1, 20)]
            case 2:
                content[at:at] = rng.choice(PIECES)
            case 3:
                content[at:at] = content[at : at + rng.randrange(1, 60)] * rng.randrange(1, 3)
            case _:
                del content[at:]
    return bytes(content)


def rearranged(document: object, rng: Random) -> object:
    """A JSON document with values replaced, removed, added and renamed, anywhere in it."""
    document = json.loads(json.dumps(document))
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        paths = [path for path in _paths(document) if path]
        if paths:
            _rearrange(document, rng.choice(paths), rng)
    return document


def _rearrange(document: object, path: Sequence[str | int], rng: Random) -> None:
    here, last = _at(document, path[:-1]), path[-1]
    value = json.loads(json.dumps(rng.choice(VALUES) if rng.random() < 0.7 else rng.choice([document, here])))
    match rng.randrange(5):
        case 0 | 1:
            here[last] = value
        case 2:
            del here[last]
        case 3 if isinstance(here, dict):
            here[rng.choice([*KEYS, f"{last}x"])] = value
        case _ if isinstance(here, dict):
            here[str(last)[::-1]] = here.pop(last)


def _at(document, path):
    for key in path:
        document = document[key]
    return document


def _paths(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from _paths(below, (*at, key))
