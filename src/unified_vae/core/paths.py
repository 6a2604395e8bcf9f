"""Paths as a user writes them."""

from __future__ import annotations

from pathlib import Path

from unified_vae.core.errors import ConfigError


def written_out(text: str, setting: str) -> Path:
    """The path that a setting names, with a leading `~` written out.

    Args:
        text: as given, e.g. `~/photos`.
        setting: what holds it, for the message.

    Raises:
        ConfigError: it begins with the home of an unknown user, or holds a zero byte, which no path can.
    """
    if "\0" in text:
        raise ConfigError(f"{setting}: {text!r} holds a zero byte, which no path can; write the path anew")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        raise ConfigError(
            f"{setting}: {text!r} begins with {user}, and the home of that user is not known; write the path out"
        ) from None
