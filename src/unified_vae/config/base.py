"""The base of every config class, and the dotted paths of its fields, such as `loss.kl.schedule.warmup`."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from unified_vae.core.errors import ConfigError, close_names, nearest

TAGS = ("kind", "family")
"""Fields that choose among the members of a union."""

Keys = tuple[str | int, ...]


class Config(BaseModel):
    """A part of a run's settings. Unknown keys, wrong types, NaN and infinities are refused.

    The docstring under a field is its help text and goes into the JSON schema.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    def by_path(self) -> dict[str, Any]:
        """Return every setting by its dotted path, as plain values."""
        return {dotted(keys): value for keys, value in flatten(self.model_dump(mode="json"))}

    def replace(self, **changes: object) -> Self:
        """Return a validated copy with other values, by dotted path: `config.replace(**{"training.epochs": 3})`.

        Raises:
            ConfigError: a value does not fit, or there is no such setting.
        """
        values: dict[str, Any] = self.model_dump()
        for path, value in changes.items():
            *owners, last = path.split(".")
            here = values
            for owner in owners:
                here = here.setdefault(owner, {})
            here[last] = value
        try:
            return self.model_validate(values)
        except ValidationError as failure:
            first = failure.errors(include_url=False)[0]
            where = dotted(first["loc"])
            raise ConfigError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def dotted(keys: Keys) -> str:
    """Write `("loss", "kl", "weight")` as `loss.kl.weight`."""
    return ".".join(map(str, keys))


def nested(path: str, value: object) -> dict[str, object]:
    """Return `loss.kl.weight` and a value as an object of objects."""
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def flatten(value: object, at: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Yield the path and value of everything in a tree of plain values that is not an object, in order."""
    if not isinstance(value, Mapping) or not value:
        yield at, value
        return
    for key, inner in value.items():
        yield from flatten(inner, (*at, key))


def members(annotation: object) -> list[type[BaseModel]]:
    """Return the config classes that a field may hold: one, the members of a tagged union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in members(part)]
    return []


def tag_of(model: type[BaseModel]) -> tuple[str, str] | None:
    """Return the field that tells this member of a union from the others, and its value: kind, adamw."""
    return next(((tag, str(model.model_fields[tag].default)) for tag in TAGS if tag in model.model_fields), None)


def field_paths(model: type[BaseModel]) -> list[str]:
    """Return every dotted path below `model`, inner ones and leaves, over all members of its unions."""

    def walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
        for name, field in model.model_fields.items():
            yield prefix + name
            for member in members(field.annotation):
                yield from walk(member, f"{prefix}{name}.")

    return list(dict.fromkeys(walk(model, "")))


def models_at(model: type[BaseModel], keys: Keys, values: object) -> list[type[BaseModel]]:
    """Return the classes that describe the object at `keys`; tags in `values` choose among union members."""
    candidates = [model]
    for key in map(str, keys):
        values = values.get(key) if isinstance(values, Mapping) else None
        fields = [candidate.model_fields[key] for candidate in candidates if key in candidate.model_fields]
        candidates = [member for field in fields for member in members(field.annotation)]
        tags = values if isinstance(values, Mapping) else {}
        tagged = [member for member in candidates if (tag := tag_of(member)) and tags.get(tag[0]) == tag[1]]
        candidates = tagged or candidates
    return candidates


def suggest(path: str, known: list[str]) -> str:
    """Return the end of an error sentence: the settings that an unknown path may have meant.

    First those that end in it (`kl.weight`), then those with its last word further below its owner (`training.lr`),
    then those with its first wrong part put right; where there are none, what stands beside that part.
    """
    owner, _, last = path.rpartition(".")
    guesses = [name for name in known if name.endswith(f".{path}")]
    while owner in known and not guesses:
        guesses = [name for name in known if name.startswith(f"{owner}.") and name.endswith(f".{last}")]
        owner = owner.rpartition(".")[0]
    if not guesses:
        parts = path.split(".")
        count = next((n for n in range(len(parts)) if ".".join(parts[: n + 1]) not in known), len(parts) - 1)
        right = "".join(f"{part}." for part in parts[:count])
        siblings = [name.removeprefix(right) for name in known if name.startswith(right)]
        siblings = [name for name in siblings if "." not in name]
        corrected = [".".join([right + name, *parts[count + 1 :]]) for name in close_names(parts[count], siblings)]
        guesses = [name for name in corrected if name in known]
        if not guesses:
            return nearest(parts[count], siblings, right)
    return "Did you mean " + " or ".join(map(repr, guesses[:3])) + "?"
