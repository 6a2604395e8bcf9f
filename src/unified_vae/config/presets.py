"""The preset book: named partial configs, modes that combine them, and their composition into one run.

The shipped file holds six sections. A user's own file may hold the same sections, and settings beside them (`loss`,
`training`, `model`, `data`, `seed`, `device`); a run's own `config.json` is also understood. Keys that begin with `_`
are comments.

Precedence, lowest first: field default, the run that is being fixed, preset, the mode's own `set`, the settings of the
user's `--config` file, named flags, `--set`.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from unified_vae.config.base import Keys, dotted, field_paths, nested, suggest
from unified_vae.config.run import ComposedRun, RunConfig
from unified_vae.config.settings import DEFAULT, MAX_WORD_LENGTH, Settings, quoted, validate
from unified_vae.config.upgrade import REMOVED, REMOVED_VALUES, missing_fields, new_path, rename
from unified_vae.core.errors import ConfigError, nearest, truncate

T = TypeVar("T")

NAME = "config_unified.json"
MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_KEY = 200  # letters: no setting or preset needs more, and errors repeat it

SECTIONS = {"loss": "loss", "training": "training", "model": "model", "dataset": "data", "augment": "data.augment"}
"""Kind of preset, as in `--loss-preset` and `loss_presets` -> dotted path of the part of the run that it fills."""
OPTIONAL = ("augment",)  # kinds that a mode need not name; defaults stand where it names none
SECTION_KEYS = ("modes", *(f"{kind}_presets" for kind in SECTIONS))
"""Names of the six sections in a file."""

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


@dataclass(frozen=True)
class Preset:
    """A named part of a run.

    Attributes:
        kind: loss, training, model, dataset or augment.
        settings: its values, at their place in the run, and those it inherits by `_extends`.
    """

    kind: str
    name: str
    description: str
    use_case: str
    settings: Settings


@dataclass(frozen=True)
class Mode:
    """A named combination of presets.

    Attributes:
        presets: kind of preset -> name.
        settings: what the mode itself sets over its presets.
        fixes: for a mode that fixes an earlier run, the folder of that run unless another is named; else None.
    """

    name: str
    description: str
    use_case: str
    presets: Mapping[str, str]
    settings: Settings
    fixes: str | None


@dataclass(frozen=True)
class BookFile:
    """A file of presets, settings, or both.

    Attributes:
        name: its path as the user would name it.
        sections: section key -> entries by name, comments included.
        settings: what the file sets directly, over all presets.
        presets: for a run's own config.json, the presets that the run was composed of; None for other files.
    """

    path: Path
    name: str
    sections: Mapping[str, Mapping[str, Mapping[str, Any]]]
    settings: Settings
    presets: Mapping[str, str] | None = None


@dataclass(frozen=True)
class _Entry:
    """A preset or mode as it stands in a file, and the entry of the same name that it replaces."""

    name: str
    body: Mapping[str, Any]
    file: str
    replaces: _Entry | None = None

    @property
    def source(self) -> str:
        """The file, and those whose entries it replaces."""
        return self.file if self.replaces is None else f"{self.file}, replaces {self.replaces.source}"

    def text(self, key: str) -> str:
        """Return a comment that is shown to users, or the name of a preset; empty where absent."""
        value = self.body.get(key, "")
        if not isinstance(value, str):
            raise ConfigError(f"{self.file}: {quoted(self.name)}: {key} should be text")
        return value


class PresetBook:
    """All presets and modes of the shipped file and, over them, of the user's own.

    Every preset is checked when the book is loaded, also those that the run does not use.
    """

    def __init__(self, files: list[BookFile]) -> None:
        self.files = files
        self.record = next((file for file in files if file.presets is not None), None)
        """The config.json of an earlier run, where `--config` names one."""
        self._entries: dict[str, dict[str, _Entry]] = {}
        for section in SECTION_KEYS:
            entries = self._entries[section] = {}
            for file in files:
                for name, body in file.sections.get(section, {}).items():
                    entries[name] = _Entry(name, body, file.name, entries.get(name))
        self._presets = {
            kind: {name: self._read_preset(kind, entry) for name, entry in self._entries[f"{kind}_presets"].items()}
            for kind in SECTIONS
        }
        self.modes = {name: self._read_mode(entry) for name, entry in self._entries["modes"].items()}

    @classmethod
    def load(cls, extra: Path | None = None, shipped: Path | None = None) -> PresetBook:
        """Read the shipped book and, over it, the file given with `--config`.

        The shipped book is the current folder's, else the repository's, else the installed package's.

        Raises:
            ConfigError: naming the file and the mistake.
        """
        package = Path(__file__).resolve().parents[1]
        places = (Path("config") / NAME, package.parents[1] / "config" / NAME, package / NAME)
        shipped = shipped or next((path for path in places if path.is_file()), None)
        if shipped is None:
            raise ConfigError(
                f"the preset book config/{NAME} is not there: start from the repository, or install the package again"
            )
        files = [read_book_file(shipped, may_set=False)]
        if extra is not None:
            files.append(read_book_file(extra, may_set=True))
        return cls(files)

    def presets(self, kind: str) -> Mapping[str, Preset]:
        """Return all presets of a kind, in the order of the files."""
        return self._presets[kind]

    def preset(self, kind: str, name: str) -> Preset:
        """Return the preset of that name; raises ConfigError with the nearest names."""
        return _pick_preset(kind, name, self._presets[kind])

    def mode(self, name: str) -> Mode:
        """Return the mode of that name; raises ConfigError with the nearest names."""
        if name not in self.modes:
            raise ConfigError(f"there is no mode {quoted(name)}. {nearest(name, self.modes)}")
        return self.modes[name]

    def compose(
        self,
        presets: Mapping[str, str],
        command_line: Settings,
        *,
        mode: Mode | None = None,
        inherited: Settings | None = None,
        names: Mapping[str, str] | None = None,
    ) -> ComposedRun:
        """Lay all settings over one another and validate the result.

        Args:
            presets: kind of preset -> name.
            command_line: named flags and `--set`.
            mode: the mode whose own settings take part.
            inherited: settings of an earlier run, under the presets.
            names: what the run is composed of, where that is more than `presets` and `mode` tell.

        Raises:
            ConfigError: an unknown preset, or a value that does not fit, with its origin.
        """
        layers = [inherited] if inherited is not None else []
        layers += [self.preset(kind, name).settings for kind, name in presets.items()]
        layers += [mode.settings] if mode is not None else []
        settings = _over_defaults(*layers, *(file.settings for file in self.files), command_line)
        config = validate(settings)
        origins = {path: settings.origins.get(tuple(path.split(".")), DEFAULT) for path in config.by_path()}
        mode_name = {"mode": mode.name} if mode is not None else {}
        all_names = {**mode_name, **presets, **(names or {})}
        return ComposedRun(config, origins, all_names, list(dict.fromkeys(settings.notes)))

    def _read_preset(self, kind: str, entry: _Entry) -> Preset:
        """A preset with all that it inherits. One that extends its own name extends the entry that it replaces."""
        entries, chain = self._entries[f"{kind}_presets"], [entry]
        while "_extends" in chain[-1].body:
            child = chain[-1]
            name, where = child.text("_extends"), f"{kind} preset {child.name} ({child.file}): "
            parent = child.replaces if name == child.name else _pick_preset(kind, name, entries, where)
            if parent is None or parent in chain:
                circle = " -> ".join([*(entry.name for entry in chain), name])
                raise ConfigError(f"{where}{kind} presets form a circle: {circle}")
            chain.append(parent)
        settings = Settings()
        for ancestor in reversed(chain):
            values = nested(SECTIONS[kind], without_comments(ancestor.body))
            _put_file(settings, values, f"{kind} preset {ancestor.name} ({ancestor.source})")
        validate(_over_defaults(settings))
        return Preset(kind, entry.name, entry.text("_description"), entry.text("_use_case"), settings)

    def _read_mode(self, entry: _Entry) -> Mode:
        body, where = without_comments(entry.body), f"mode {entry.name} ({entry.source})"
        known = [*SECTIONS, "set", "fixes"]
        for key in body:
            if key not in known:
                raise ConfigError(f"{where}: unknown key {quoted(key)}. {nearest(key, known)}")
        names = {kind: entry.text(kind) for kind in SECTIONS if kind in body}
        for kind, name in names.items():
            _pick_preset(kind, name, self._presets[kind], f"{where}: ")
        fixes, changes = body.get("fixes"), body.get("set", {})
        if fixes is not None and not isinstance(fixes, str):
            raise ConfigError(f"{where}: fixes should be the folder of a run, as text")
        absent = [kind for kind in SECTIONS if kind not in names and kind not in OPTIONAL]
        if absent and fixes is None:
            raise ConfigError(f"{where}: it names no preset for {' and '.join(absent)}")
        if not isinstance(changes, Mapping):
            raise ConfigError(f'{where}: set should be an object of dotted paths, e.g. {{"loss.kl.weight": 2}}')
        settings, paths = Settings(), field_paths(RunConfig)
        for path, value in changes.items():
            if path not in REMOVED and (new_path(path) or path) not in paths:
                raise ConfigError(f"{where}: there is no setting {quoted(path)}. {suggest(path, paths)}")
            _put_file(settings, nested(path, value), where)
        return Mode(entry.name, entry.text("_description"), entry.text("_use_case"), names, settings, fixes)


def _pick_preset(kind: str, name: str, entries: Mapping[str, T], where: str = "") -> T:
    """The preset of that name; raises ConfigError with the nearest names."""
    if name not in entries:
        raise ConfigError(f"{where}there is no {kind} preset {quoted(name)}. {nearest(name, entries)}")
    return entries[name]


def without_comments(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object without keys that begin with `_`, at every depth."""
    return {
        key: without_comments(inner) if isinstance(inner, Mapping) else inner
        for key, inner in value.items()
        if not key.startswith("_")
    }


def _over_defaults(*layers: Settings) -> Settings:
    """Layers over the default of every field."""
    settings = Settings()
    settings.put(RunConfig().model_dump(), DEFAULT)
    for layer in layers:
        settings.put(layer.values, layer.origin)
        settings.notes += layer.notes
    return settings


def _put_file(settings: Settings, values: Mapping[str, Any], origin: str) -> None:
    """Lay what a file says over `settings`; the origin of a setting with an old name tells that name."""
    old_names: dict[Keys, str] = {}
    notes: list[str] = []
    try:
        values = rename(values, old_names, notes)
    except ConfigError as problem:
        raise ConfigError(f"{origin}: {problem}") from None

    def named(keys: Keys) -> str:
        old = next((old for path, old in old_names.items() if keys[: len(path)] == path), None)
        return origin if old is None else f"{origin}, as {old}"

    settings.put(values, named)
    settings.notes += [f"{origin}: {note}" for note in notes]


# --- files ------------------------------------------------------------------------------------------------------


def read_book_file(path: Path, *, may_set: bool) -> BookFile:
    """Read and check a file's outline; the presets' own contents are checked by `PresetBook`.

    Args:
        path: the file.
        may_set: whether settings and run records are welcome beside the sections (`--config`).
    """
    top, name = read_json(path), display_path(path)
    if may_set and "config" in top and not any(key in top for key in SECTION_KEYS):
        return _read_record(path, top, "config")
    known = [*SECTION_KEYS, *(RunConfig.model_fields if may_set else ())]
    for key in top:
        if key not in known and not key.startswith("_") and key != "$schema":
            raise ConfigError(f"{name}: unknown key {quoted(key)}. {nearest(key, known)}")
    sections = {
        section: {
            entry: _object(body, f"{section}.{entry}", name)
            for entry, body in _object(top[section], section, name).items()
            if not entry.startswith("_")
        }
        for section in SECTION_KEYS
        if section in top
    }
    settings = Settings()
    _put_file(settings, without_comments({key: top[key] for key in top if key in RunConfig.model_fields}), name)
    return BookFile(path, name, sections, settings)


def read_record(path: Path) -> BookFile:
    """Read the `config.json` that a run keeps in its folder: what was asked for, and the names of presets."""
    return _read_record(path, read_json(path), "requested")


def _read_record(path: Path, top: Mapping[str, Any], part: str) -> BookFile:
    """`part` is `requested`, with `auto` where that was said, or `config`, what it was resolved to."""
    name, settings = display_path(path), Settings()
    config = _object(top.get(part), part, name)
    names = _object(top.get("names", {}), "names", name)
    _put_file(settings, config, f"run {name}")
    if missing := missing_fields(settings.values.get("model")):
        settings.put({"model": missing}, f"run {name}, as it was before there was a choice")
    return BookFile(path, name, {}, settings, {key: str(value) for key, value in names.items()})


def _object(value: object, path: str, file: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{file}: {quoted(path)} should be an object in {{braces}}")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object, more strictly than the standard library does: see `parse_json`.

    Raises:
        ConfigError: the file is missing, unreadable, too large, not UTF-8 text or not strict JSON.
    """
    name = display_path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # checked before opening, which would wait for the writer of a pipe
            raise ConfigError(f"{name} is a folder, pipe or device; a JSON file is needed")
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
    value = parse_json(text, name)
    if not isinstance(value, dict):
        raise ConfigError(f"{name}: the file should be an object in {{braces}}")
    return value


def parse_json(text: str, name: str) -> Any:
    """Parse JSON; duplicate keys, NaN, infinities, half surrogate pairs and very deep nesting are refused.

    Args:
        name: of the source, for messages.

    Raises:
        ConfigError: with line and column of a mistake in the syntax, or the path of a value that is refused.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConfigError(f"{name}: the key {quoted(twice)} is given twice; remove one of them")
        return result

    def check(value: object, path: Keys) -> None:
        where = f"{name}: {truncate(dotted(path), MAX_WORD_LENGTH)}" if path else name
        if len(path) > MAX_DEPTH:
            raise ConfigError(f"{name}: nested more than {MAX_DEPTH} deep")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: NaN, infinities and numbers too large for a float are refused")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ConfigError(f"{where}: the text holds half of a surrogate pair")
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, below in inner:
            check(key, path)
            if isinstance(key, str) and len(key) > MAX_KEY:
                raise ConfigError(f"{where}: the key {quoted(key)} has more than {MAX_KEY} letters")
            check(below, (*path, key))

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        problem = error.msg[0].lower() + error.msg[1:]
        raise ConfigError(f"{name}:{error.lineno}:{error.colno}: {problem}") from None
    except RecursionError:
        raise ConfigError(f"{name}: nested more than {MAX_DEPTH} deep") from None
    except ConfigError:
        raise
    except ValueError as error:  # a whole number of thousands of digits
        raise ConfigError(f"{name}: {error}") from None
    check(value, ())
    return value


def display_path(path: Path) -> str:
    """Return a file as the user would name it: relative where it lies below the current folder."""
    try:
        return Path(os.path.realpath(path)).relative_to(os.path.realpath(Path.cwd())).as_posix()
    except ValueError:
        return str(path)


# --- the command line -------------------------------------------------------------------------------------------


def from_command_line(flags: Mapping[str, object | None], assignments: Sequence[str]) -> Settings:
    """Return the settings of the named flags, and over them those of `--set`.

    Args:
        flags: value of each flag in `FLAGS`; None where it was not given.
        assignments: the words after each `--set`, e.g. `training.optimizer.kind=sgd`. A value is JSON, or text where it
            is a bare word.

    Raises:
        ConfigError: a malformed assignment or an unknown path.
    """
    settings, known = Settings(), field_paths(RunConfig)
    for flag, value in flags.items():
        if value is not None:
            settings.put(nested(FLAGS[flag], value), flag)
    for text in assignments:
        path, equals, word = (part.strip() for part in text.partition("="))
        where = f"--set {truncate(text, MAX_WORD_LENGTH)}"
        if not equals or not path:
            raise ConfigError(f"{where}: write path=value, e.g. --set loss.kl.weight=2")
        if new := new_path(path):
            raise ConfigError(f"{where}: the setting {path} is now called {new}; write --set {new}=VALUE")
        if path in REMOVED:
            raise ConfigError(f"{where}: {REMOVED[path][1]}; leave the setting out")
        if replaced := REMOVED_VALUES.get(path, {}).get(word.strip('"')):
            raise ConfigError(f"{where}: {replaced[1]}; use {path}={replaced[0]}")
        if path not in known:
            raise ConfigError(f"{where}: there is no setting {quoted(path)}. {suggest(path, known)}")
        try:
            settings.put(nested(path, parse_json(word, f"--set {path}")), "--set")
        except ConfigError:
            if word[:1] in ("{", "[", '"'):
                raise
            settings.put(nested(path, word), "--set")
    return settings
