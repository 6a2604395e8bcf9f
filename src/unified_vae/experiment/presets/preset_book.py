"""The preset book: named partial configs, the modes that combine them, and their composition into one run.

Precedence, lowest first: field default, the run that is being fixed, preset, the mode's own `set`,
the settings of the user's `--config` file, named flags, `--set`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unified_vae.core.errors import ConfigError, nearest
from unified_vae.experiment.presets.book_file import (
    SECTIONS,
    BookFile,
    Entry,
    Section,
    entries_of,
    read_book_file,
    shipped_path,
    without_comments,
)
from unified_vae.experiment.presets.explain import validate
from unified_vae.experiment.presets.field_paths import Keys, dotted, field_paths, suggest
from unified_vae.experiment.presets.json_with_lines import shortened
from unified_vae.experiment.presets.layers import DEFAULT, Origin, Settings, leaves
from unified_vae.experiment.request import ComposedRun
from unified_vae.experiment.run_config import RunConfig


@dataclass(frozen=True)
class Preset:
    """A named part of a run.

    Attributes:
        kind: loss, training, model, dataset or augment.
        settings: its values and those it inherits by `_extends`, each with its origin.
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
        fixes: for a mode that cures an earlier run, the folder of that run unless told otherwise; else None.
    """

    name: str
    description: str
    use_case: str
    presets: Mapping[str, str]
    settings: Settings
    fixes: str | None


class PresetBook:
    """All presets and modes of the shipped file and, over them, of the user's own.

    Every preset is checked when the book is loaded, also those that the run does not use.
    """

    def __init__(self, files: list[BookFile]) -> None:
        self.files = files
        self._entries = {
            section.kind: {entry.name: entry for entry in entries_of(files, section.key)}
            for section in SECTIONS.values()
        }
        self._presets = {
            section.kind: {name: self._read_preset(section, name) for name in self._entries[section.kind]}
            for section in SECTIONS.values()
        }
        self.modes = {entry.name: self._read_mode(entry) for entry in entries_of(files, "modes")}

    @classmethod
    def load(cls, extra: Path | None = None, shipped: Path | None = None) -> PresetBook:
        """Read the shipped book and, over it, the file given with `--config`.

        Raises:
            ConfigError: naming file, line and column.
        """
        files = [read_book_file(shipped or shipped_path(), may_set=False)]
        if extra is not None:
            files.append(read_book_file(extra, may_set=True))
        return cls(files)

    @property
    def record(self) -> Path | None:
        """The config.json of an earlier run, where that is what `--config` names."""
        return next((file.path for file in self.files if file.names is not None), None)

    @property
    def record_names(self) -> Mapping[str, str]:
        """What the recorded run was composed of; empty without a record."""
        return next((file.names for file in self.files if file.names is not None), {})

    def presets(self, kind: str) -> Mapping[str, Preset]:
        """All presets of a kind, in the order of the files."""
        return self._presets[kind]

    def preset(self, kind: str, name: str) -> Preset:
        """The preset of that name, or a ConfigError with the nearest names."""
        if name not in self._presets[kind]:
            raise ConfigError(f"there is no {kind} preset {name!r}. {nearest(name, self._presets[kind])}")
        return self._presets[kind][name]

    def mode(self, name: str) -> Mode:
        """The mode of that name, or a ConfigError with the nearest names."""
        if name not in self.modes:
            raise ConfigError(f"there is no mode {name!r}. {nearest(name, self.modes)}")
        return self.modes[name]

    def compose(
        self,
        presets: Mapping[str, str],
        command_line: Settings,
        *,
        mode: Mode | None = None,
        carried: Settings | None = None,
        names: Mapping[str, str] | None = None,
    ) -> ComposedRun:
        """Lay all settings over one another and validate the result.

        Args:
            presets: kind of preset -> name.
            command_line: named flags and `--set`.
            mode: the mode whose own settings take part.
            carried: what an earlier run hands on, under the presets.
            names: what the run is composed of, where that is more than `presets` and `mode` tell.

        Raises:
            ConfigError: an unknown preset, or a value that does not fit, with its origin.
        """
        settings = defaults(RunConfig)
        if carried is not None:
            settings.put_settings(carried)
        for kind, name in presets.items():
            settings.put_settings(self.preset(kind, name).settings.below(*SECTIONS[kind].keys))
        if mode is not None:
            settings.put_settings(mode.settings)
        for file in self.files:
            settings.put_settings(file.settings)
        settings.put_settings(command_line)
        config = validate(RunConfig, settings.values, lambda keys: settings.origin(keys).where)
        mode_name = {"mode": mode.name} if mode is not None else {}
        return ComposedRun(config, _origins(config, settings), {**mode_name, **presets, **(names or {})})

    def _read_preset(self, section: Section, name: str) -> Preset:
        entry = self._entries[section.kind][name]
        settings = Settings()
        for ancestor in self._ancestry(section, entry):
            _put_entry(settings, section, ancestor)
        whole = defaults(RunConfig)
        whole.put_settings(settings.below(*section.keys))
        validate(RunConfig, whole.values, lambda keys: whole.origin(keys).where)
        return Preset(section.kind, name, entry.text("_description"), entry.text("_use_case"), settings)

    def _ancestry(self, section: Section, entry: Entry) -> list[Entry]:
        """The entries that make up a preset, the farthest first.

        One that extends its own name extends the entry that it replaces.
        """
        chain = [entry]
        while "_extends" in chain[-1].body:
            child = chain[-1]
            name = child.text("_extends")
            parent = child.replaces if name == child.name else self._entries[section.kind].get(name)
            if parent is None and name != child.name:
                advice = nearest(name, self._entries[section.kind])
                raise ConfigError(
                    f"{child.where('_extends')}: there is no {section.kind} preset {shortened(name)}. {advice}"
                )
            if parent is None or any(parent is known for known in chain):
                circle = " -> ".join([*(known.name for known in chain), name])
                raise ConfigError(f"{child.where('_extends')}: {section.kind} presets form a circle: {circle}")
            chain.append(parent)
        return chain[::-1]

    def _read_mode(self, entry: Entry) -> Mode:
        body = without_comments(entry.body)
        known = [*SECTIONS, "set", "fixes"]
        for key in body:
            if key not in known:
                raise ConfigError(
                    f"{entry.where(key)}: unknown key {key!r} in mode {entry.name!r}. {nearest(key, known)}"
                )
        names = {kind: self._named(entry, kind) for kind in SECTIONS if kind in body}
        fixes = body.get("fixes")
        if fixes is not None and not isinstance(fixes, str):
            raise ConfigError(f"{entry.where('fixes')}: fixes should be the folder of a run, as text")
        absent = [kind for kind, section in SECTIONS.items() if kind not in names and not section.optional]
        if absent and fixes is None:
            raise ConfigError(f"{entry.where()}: mode {entry.name!r} names no preset for {' and '.join(absent)}")
        return Mode(
            entry.name,
            entry.text("_description"),
            entry.text("_use_case"),
            names,
            _mode_settings(entry, body),
            fixes,
        )

    def _named(self, entry: Entry, kind: str) -> str:
        name = entry.text(kind)
        if name not in self._presets[kind]:
            advice = nearest(name, self._presets[kind])
            raise ConfigError(f"{entry.where(kind)}: there is no {kind} preset {shortened(name)}. {advice}")
        return name


def defaults(model: type[RunConfig]) -> Settings:
    """Every field's default, as the lowest layer."""
    settings = Settings()
    settings.put(model().model_dump(), lambda _: DEFAULT)
    return settings


def _put_entry(settings: Settings, section: Section, entry: Entry) -> None:
    def origin(keys: Keys) -> Origin:
        return Origin(f"{section.kind} preset {entry.name} ({entry.source(keys)})", entry.where(*keys))

    settings.put(without_comments(entry.body), origin)


def _mode_settings(entry: Entry, body: Mapping[str, object]) -> Settings:
    settings = Settings()
    changes = body.get("set", {})
    if not isinstance(changes, Mapping):
        raise ConfigError(
            f'{entry.where("set")}: set should be an object of dotted paths, e.g. {{"loss.kl.weight": 2}}'
        )
    known = field_paths(RunConfig)
    for path, value in changes.items():
        if path not in known:
            raise ConfigError(f"{entry.where('set', path)}: there is no setting {path!r}. {suggest(path, known)}")
        origin = Origin(f"mode {entry.name} ({entry.source(('set', path))})", entry.where("set", path))
        settings.put_at(tuple(path.split(".")), value, origin)
    return settings


def _origins(config: RunConfig, settings: Settings) -> dict[str, str]:
    return {dotted(keys): settings.origins.get(keys, DEFAULT).text for keys in leaves(config.model_dump())}
