"""Settings in layers that remember the origin of every value, and the errors of pydantic as sentences about them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from unified_vae.config.base import TAGS, Keys, dotted, field_paths, flatten, models_at, nested, suggest, tag_of
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import ConfigError, nearest, truncate

DEFAULT = "default"  # the origin of a value that nobody gave
MAX_WORD_LENGTH = 80  # letters of a wrong word that an error repeats


@dataclass
class Settings:
    """Settings under construction: later layers override earlier ones, and each leaf keeps its origin.

    A nested object is merged key by key; anything else is replaced. An object that changes its `kind` starts from that
    kind's own defaults: the learning rate of AdamW means nothing to SGD.

    Attributes:
        values: a tree of plain objects.
        origins: path of each leaf -> where it came from, e.g. `--beta` or `loss preset mse_l1 (FILE)`.
        notes: lines about settings that were left out.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[Keys, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def put(self, values: Mapping[str, object], origin: str | Callable[[Keys], str]) -> None:
        """Lay `values` over what is there.

        Args:
            origin: of all of them, or a function from the path of a value to its origin.
        """
        self._merge(self.values, values, (), origin if callable(origin) else lambda _: origin)

    def only(self, paths: Sequence[str]) -> Settings:
        """Return the part of these settings that lies at or below the given dotted paths."""
        result = Settings()
        for keys, value in flatten(self.values):
            if any(f"{dotted(keys)}.".startswith(f"{path}.") for path in paths):
                result.put(nested(dotted(keys), value), self.origins[keys])
        return result

    def origin(self, keys: Keys) -> str:
        """Return where the value at `keys` came from: its own origin, else one inside it, else one around it."""
        if keys in self.origins:
            return self.origins[keys]
        inside = [origin for path, origin in self.origins.items() if path[: len(keys)] == keys and origin != DEFAULT]
        if inside:
            return inside[-1]
        return self.origin(keys[:-1]) if keys else DEFAULT

    def _merge(
        self, into: dict[str, Any], values: Mapping[str, object], at: Keys, origin: Callable[[Keys], str]
    ) -> None:
        if any(tag in values and tag in into and values[tag] != into[tag] for tag in TAGS):
            into.clear()
            self._forget(at)
        for key, value in values.items():
            keys = (*at, key)
            if isinstance(value, Mapping) and isinstance(into.get(key), dict):
                self._merge(into[key], value, keys, origin)
                continue
            self._forget(keys)
            if isinstance(value, Mapping) and value:
                into[key] = {}
                self._merge(into[key], value, keys, origin)
            else:
                into[key] = list(value) if isinstance(value, list) else {} if isinstance(value, Mapping) else value
                self.origins[keys] = origin(keys)

    def _forget(self, at: Keys) -> None:
        for path in [path for path in self.origins if path[: len(at)] == at]:
            del self.origins[path]


def validate(settings: Settings) -> RunConfig:
    """Build a run's config from complete settings.

    Raises:
        ConfigError: one sentence about the first mistake, which begins with its origin, and how many more there are.
    """
    try:
        return RunConfig.model_validate(settings.values)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        paths = [_keys(error, settings.values) for error in errors]
        # a value that several types are tried for, one of them "auto" say, has an error of each
        same = [error for error, keys in zip(errors, paths, strict=True) if keys == paths[0]]
        error = min(same, key=lambda error: error["type"] == "literal_error")
        words = [str(other["ctx"]["expected"]) for other in same if other["type"] == "literal_error" != error["type"]]
        sentence = _sentence(error, paths[0], settings.values, "".join(f" or {word}" for word in words))
        others = len(set(paths)) - 1
        more = f" (and {others} more)" if others else ""
        raise ConfigError(f"{settings.origin(paths[0])}: {sentence}{more}") from None


def _keys(error: Any, values: Mapping[str, object]) -> Keys:
    """The path of the value at fault: pydantic's, without the tags of unions that it puts in between."""
    keys: list[str | int] = []
    here: object = values
    for key in error["loc"]:
        of_union = isinstance(here, Mapping) and key not in here and key in (here.get(tag) for tag in TAGS)
        if of_union or (
            keys and not isinstance(here, Mapping) and not (isinstance(here, list) and isinstance(key, int))
        ):
            continue
        keys.append(key)
        if isinstance(here, Mapping):
            here = here.get(key)
        elif isinstance(here, list) and isinstance(key, int):
            here = here[key]
    if error["type"] == "union_tag_invalid":
        keys.append(_tag(error))
    return tuple(keys)


def _tag(error: Any) -> str:
    """The field that chooses among the members of a union: kind or family."""
    return str(error["ctx"]["discriminator"]).strip("'")


def _sentence(error: Any, keys: Keys, values: Mapping[str, object], words: str = "") -> str:
    kind, context, path = error["type"], error.get("ctx", {}), dotted(keys)
    value = truncate(json.dumps(error.get("input"), ensure_ascii=False, default=str), MAX_WORD_LENGTH)
    got = f"got the text {value}" if isinstance(error.get("input"), str) else f"got {value}"
    match kind:
        case "extra_forbidden":
            return _unknown_key(keys, values)
        case "union_tag_invalid":
            given, known = str(context["tag"]), context["expected_tags"].replace("'", "")
            return f"{path}: {quoted(given)} is not known. {nearest(given, known.split(', '))}"
        case "union_tag_not_found":
            return f"{path} needs {_tag(error)}"
        case "string_pattern_mismatch" | "string_too_short" | "too_short":
            owner = models_at(RunConfig, keys[:-1], values)[0]
            meaning = (owner.model_fields[str(keys[-1])].description or "").rstrip(".")
            return f"{path}: {got}; it takes: {meaning}"
        case "string_unicode":
            return f"{path}: {got}; it holds bytes that are no text (not UTF-8), so it cannot be kept: rename it"
        case "value_error":
            text = str(context["error"])
            return text if text.startswith(f"{path}.") else f"{path}: {text}" if path else text
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{path}: should be an object in {{braces}}, {got}"
        case _:
            return f"{path}: {error['msg'].removeprefix('Input ')}{words}, {got}"


def _unknown_key(keys: Keys, values: Mapping[str, object]) -> str:
    """An unknown key, with the setting that was meant; or the kind that it belongs to."""
    around: list[type[BaseModel]] = models_at(RunConfig, keys[:-1], values)
    owner, key, known = dotted(keys[:-1]), str(keys[-1]), field_paths(RunConfig)
    of = f" in {owner}" if owner else ""
    tag = tag_of(around[0]) if len(around) == 1 else None
    if tag is not None and dotted(keys) in known:
        return f"unknown key {quoted(key)}{of}: it belongs to another {tag[0]} than {tag[1]!r}"
    if any(path.endswith(f".{key}") for path in known):
        return f"unknown key {quoted(key)}{of}. {suggest(key, known)}"
    siblings = [name for candidate in around for name in candidate.model_fields]
    return f"unknown key {quoted(key)}{of}. {nearest(key, siblings, f'{owner}.' if owner else '')}"


def quoted(word: str) -> str:
    """Return a word in quotes, of a long one its beginning."""
    return repr(truncate(word, MAX_WORD_LENGTH))
