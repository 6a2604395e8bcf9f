"""Names from files and archives, made fit to be shown: they may hold anything."""

from __future__ import annotations


def printable(name: str) -> str:
    """The name with what is no text or would steer the terminal escaped, so that it stays on one line."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")  # bytes that were no text, as the system gave them
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
