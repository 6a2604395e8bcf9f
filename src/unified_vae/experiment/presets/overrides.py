"""What the command line changes in a run: the few named flags, and `--set path=value` for every field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unified_vae.core.errors import ConfigError
from unified_vae.experiment.presets.field_paths import field_paths, suggest
from unified_vae.experiment.presets.json_with_lines import cut, parse_json, shortened
from unified_vae.experiment.presets.layers import Origin, Settings
from unified_vae.experiment.run_config import RunConfig

FLAGS = {
    "--data": "data.source",
    "--epochs": "training.epochs",
    "--batch-size": "training.batch_size",
    "--lr": "training.optimizer.lr",
    "--beta": "loss.kl.weight",
    "--seed": "seed",
    "--device": "device",
    "--precision": "training.precision",
}
"""The named flags and the field that each one sets. A short frozen list: `--set` reaches the rest."""


def from_command_line(flags: Mapping[str, object | None], assignments: Sequence[str]) -> Settings:
    """Settings from the named flags, and over them those of `--set`.

    Args:
        flags: value of each flag in `FLAGS`; None where it was not given.
        assignments: the words after each `--set`, e.g. `training.optimizer.kind=sgd`.

    Raises:
        ConfigError: a malformed assignment or an unknown path.
    """
    settings = Settings()
    for flag, value in flags.items():
        if value is not None:
            settings.put_at(tuple(FLAGS[flag].split(".")), value, Origin(flag, flag))
    known = field_paths(RunConfig)
    for text in assignments:
        keys, value = parse_assignment(text, known)
        settings.put_at(keys, value, Origin("--set", f"--set {cut(text)}"))
    return settings


def parse_assignment(text: str, known: list[str]) -> tuple[tuple[str, ...], object]:
    """Split `path=value`; the value is JSON, or text where it is a bare word.

    Args:
        text: e.g. `loss.kl.weight=2` or `training.optimizer.kind=sgd`.
        known: every path that may be set.

    Raises:
        ConfigError: no `=`, an unknown path, or a value that starts like JSON and is not.
    """
    path, equals, value = text.partition("=")
    path = path.strip()
    if not equals or not path:
        raise ConfigError(f"--set {cut(text)}: write path=value, e.g. --set loss.kl.weight=2")
    if path not in known:
        raise ConfigError(f"--set {cut(text)}: there is no setting {shortened(path)}. {suggest(path, known)}")
    return tuple(path.split(".")), parse_value(value.strip(), f"--set {path}")


def parse_value(text: str, name: str) -> object:
    """JSON where it is JSON, else the text itself; `{`, `[` and `"` must begin valid JSON."""
    try:
        return parse_json(text, name).value if text else ""
    except ConfigError:
        if text[:1] in '{["':
            raise
        return text
