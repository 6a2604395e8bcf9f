"""One file of presets: where it is, what it may hold, and its entries with their places.

The shipped file holds six sections. A user's own file may hold the same sections, and settings beside them
(`loss`, `training`, `model`, `data`, `seed`, `device`); a run's own `config.json` is also understood.
Keys that begin with `_` are comments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from unified_vae.core.errors import ConfigError, nearest
from unified_vae.experiment.presets.field_paths import Keys, models_at
from unified_vae.experiment.presets.json_with_lines import LocatedJSON, read_json
from unified_vae.experiment.presets.layers import Origin, Settings
from unified_vae.experiment.run_config import RunConfig
from unified_vae.models.config import left_out

NAME = "config_unified.json"


@dataclass(frozen=True)
class Section:
    """A kind of preset.

    Attributes:
        kind: as in `--loss-preset`: loss, training, model, dataset or augment.
        field: dotted path of the part of the run that it fills.
        optional: a mode need not name one; defaults stand where it names none.
    """

    kind: str
    field: str
    optional: bool = False

    @property
    def configs(self) -> list[type[BaseModel]]:
        """The classes that the part may be of."""
        return models_at(RunConfig, self.keys, None)

    @property
    def keys(self) -> tuple[str, ...]:
        """The path of the part, key by key."""
        return tuple(self.field.split("."))

    @property
    def key(self) -> str:
        """Its name in the file."""
        return f"{self.kind}_presets"


SECTIONS = {
    section.kind: section
    for section in (
        Section("loss", "loss"),
        Section("training", "training"),
        Section("model", "model"),
        Section("dataset", "data"),
        Section("augment", "data.augment", optional=True),
    )
}


@dataclass(frozen=True)
class Entry:
    """A preset or mode as it stands in a file.

    Attributes:
        body: its object, comments included.
        document: the file.
        keys: its path in the file.
        replaces: the entry of the same name in an earlier file.
    """

    name: str
    body: Mapping[str, object]
    document: LocatedJSON
    keys: Keys
    replaces: Entry | None = None

    def where(self, *inner: str | int) -> str:
        """`file:line:column` of the entry or of a value in it."""
        return self.document.where(*self.keys, *inner)

    def source(self, keys: Keys) -> str:
        """`file:line` of a value in it, and what the whole entry replaces."""
        line = self.document.line(*self.keys, *keys)
        return line if self.replaces is None else f"{line}, replaces {self.replaces.source(())}"

    def text(self, key: str) -> str:
        """A comment that is shown to users, `_description` or `_use_case`; empty where absent."""
        value = self.body.get(key, "")
        if not isinstance(value, str):
            raise ConfigError(f"{self.where(key)}: {key} should be text")
        return value


@dataclass(frozen=True)
class BookFile:
    """A file of presets, settings, or both.

    Attributes:
        entries: section key -> its entries by name.
        settings: what the file sets directly, over all presets.
        names: for a run's own config.json, the presets that the run was composed of; None for other files.
    """

    path: Path
    document: LocatedJSON
    entries: Mapping[str, Mapping[str, Entry]]
    settings: Settings
    names: Mapping[str, str] | None = None


def shipped_path() -> Path:
    """The preset book in use: the current folder's, else the repository's, else the installed package's."""
    package = Path(__file__).resolve().parents[2]
    candidates = [Path("config") / NAME, package.parents[1] / "config" / NAME, package / NAME]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"the preset book config/{NAME} is not there: start from the repository, or install the package again"
    )


def read_book_file(path: Path, *, may_set: bool) -> BookFile:
    """Read and check a file's outline; the presets' own contents are checked by `PresetBook`.

    Args:
        path: the file.
        may_set: whether settings and run records are welcome beside the sections (`--config`).
    """
    document = read_json(path)
    top = _object(document, ())
    if may_set and "config" in top and not any(key in top for key in section_keys()):
        return _read_record(path, document, "config")
    known = [*section_keys(), *(RunConfig.model_fields if may_set else ())]
    for key in top:
        if key not in known and not _is_comment(key) and key != "$schema":
            raise ConfigError(f"{document.where(key)}: unknown key {key!r}. {nearest(key, known)}")
    entries = {key: _entries(document, key) for key in section_keys() if key in top}
    settings = Settings()
    direct = {key: value for key, value in top.items() if key in RunConfig.model_fields}
    settings.put(without_comments(direct), lambda keys: Origin(document.line(*keys), document.where(*keys)))
    return BookFile(path, document, entries, settings)


def section_keys() -> list[str]:
    """The six sections, modes first."""
    return ["modes", *(section.key for section in SECTIONS.values())]


def without_comments(value: Mapping[str, object]) -> dict[str, object]:
    """The object without keys that begin with `_`, at every depth."""
    return {
        key: without_comments(inner) if isinstance(inner, Mapping) else inner
        for key, inner in value.items()
        if not _is_comment(key)
    }


def read_record(path: Path) -> BookFile:
    """Read the `config.json` that a run keeps in its folder: what was asked for, and the names of presets."""
    return _read_record(path, read_json(path), "requested")


def _read_record(path: Path, document: LocatedJSON, part: str) -> BookFile:
    """`part` is `requested`, with `auto` where that was said, or `config`, what it was resolved to."""
    config = _object(document, (part,))
    names = _object(document, ("names",)) if "names" in _object(document, ()) else {}
    settings = Settings()
    if before := left_out(config.get("model")):
        settings.put({"model": before}, lambda _: Origin("as before there was a choice", document.where(part, "model")))
    settings.put(
        config,
        lambda keys: Origin(f"run {document.line(part, *keys)}", document.where(part, *keys)),
    )
    return BookFile(path, document, {}, settings, {key: str(name) for key, name in names.items()})


def _entries(document: LocatedJSON, section: str) -> dict[str, Entry]:
    return {
        name: Entry(name, _object(document, (section, name)), document, (section, name))
        for name in _object(document, (section,))
        if not _is_comment(name)
    }


def _object(document: LocatedJSON, keys: Keys) -> Mapping[str, object]:
    value = document.value
    for key in keys:
        value = value.get(str(key)) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping):
        what = f"{'.'.join(map(str, keys))!r}" if keys else "the file"
        raise ConfigError(f"{document.where(*keys)}: {what} should be an object in {{braces}}")
    return value


def _is_comment(key: str) -> bool:
    return key.startswith("_")


def entries_of(files: list[BookFile], section: str) -> Iterator[Entry]:
    """A section's entries over several files; a later entry of the same name replaces the earlier one."""
    found: dict[str, Entry] = {}
    for file in files:
        for name, entry in file.entries.get(section, {}).items():
            found[name] = Entry(name, entry.body, entry.document, entry.keys, found.get(name))
    yield from found.values()
