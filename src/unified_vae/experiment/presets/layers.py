"""Settings in layers: each later layer overrides the earlier ones, and every value keeps where it came from.

A nested object is merged key by key; anything else is replaced. An object that changes its `kind` starts from
that kind's own defaults: the learning rate of AdamW means nothing to SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unified_vae.experiment.presets.field_paths import Keys

TAGS = ("kind", "family")


@dataclass(frozen=True)
class Origin:
    """Where a value came from.

    Attributes:
        text: as shown beside the value, e.g. `loss preset mse_l1 (config/config_unified.json:12)`.
        where: as put before an error about it, e.g. `config/config_unified.json:12:7`.
    """

    text: str
    where: str


DEFAULT = Origin("default", "default")


@dataclass
class Settings:
    """Values under construction, as a tree of plain objects, and the origin of each leaf."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[Keys, Origin] = field(default_factory=dict)

    def put(self, values: Mapping[str, object], origin: Callable[[Keys], Origin]) -> None:
        """Lay `values` over what is there; `origin` names the source of the value at a path inside them."""
        self._merge(self.values, values, (), origin)

    def put_at(self, keys: tuple[str, ...], value: object, origin: Origin) -> None:
        """Lay a single value, which may be an object, over what is there."""
        for key in reversed(keys):
            value = {key: value}
        assert isinstance(value, dict)
        self.put(value, lambda _: origin)

    def put_settings(self, other: Settings) -> None:
        """Lay finished settings over these, with their own origins."""
        self.put(other.values, lambda keys: other.origin(keys))

    def below(self, *prefix: str) -> Settings:
        """The same settings, as a part of something larger."""
        result = Settings()
        values: dict[str, object] = self.values
        for key in reversed(prefix):
            values = {key: values}
        result.put(values, lambda keys: self.origin(keys[len(prefix) :]))
        return result

    def only(self, paths: Sequence[str]) -> Settings:
        """The part of these settings that lies at or below the given dotted paths."""
        result = Settings()
        for keys, origin in self.origins.items():
            path = ".".join(map(str, keys))
            if any(path == wanted or path.startswith(f"{wanted}.") for wanted in paths):
                result.put_at(tuple(map(str, keys)), self.value(keys), origin)
        return result

    def value(self, keys: Keys) -> object:
        """What stands at `keys`."""
        value: object = self.values
        for key in keys:
            assert isinstance(value, Mapping)
            value = value[str(key)]
        return value

    def origin(self, keys: Keys) -> Origin:
        """Where the value at `keys` came from: its own origin, else one inside it, else one around it."""
        if keys in self.origins:
            return self.origins[keys]
        inside = [origin for path, origin in self.origins.items() if path[: len(keys)] == keys and origin != DEFAULT]
        if inside:
            return inside[-1]
        return self.origin(keys[:-1]) if keys else DEFAULT

    def _merge(
        self,
        into: dict[str, object],
        values: Mapping[str, object],
        at: Keys,
        origin: Callable[[Keys], Origin],
    ) -> None:
        if any(tag in values and tag in into and values[tag] != into[tag] for tag in TAGS):
            into.clear()
            self._forget(at)
        for key, value in values.items():
            keys = (*at, key)
            below = into.get(key)
            if isinstance(value, Mapping) and isinstance(below, dict):
                self._merge(below, value, keys, origin)
                continue
            self._forget(keys)
            into[key] = _copy(value)
            for leaf in leaves(value, keys):
                self.origins[leaf] = origin(leaf)

    def _forget(self, at: Keys) -> None:
        for path in [path for path in self.origins if path[: len(at)] == at]:
            del self.origins[path]


def _copy(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value


def leaves(value: object, at: Keys = ()) -> Iterator[Keys]:
    """The paths of everything that is not an object, in order."""
    if not isinstance(value, Mapping) or not value:
        yield at
        return
    for key, inner in value.items():
        yield from leaves(inner, (*at, key))
