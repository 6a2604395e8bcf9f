"""The dotted paths of a config's fields, such as `loss.kl.schedule.warmup`, found by looking at its types."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Union, get_args, get_origin

from pydantic import BaseModel

from unified_vae.core.errors import nearest
from unified_vae.core.spelling import alike

Keys = tuple[str | int, ...]


def dotted(keys: Keys) -> str:
    """`("loss", "kl", "weight")` as `loss.kl.weight`."""
    return ".".join(str(key) for key in keys)


def members(annotation: object) -> list[type[BaseModel]]:
    """The config classes that a field may hold: one, the members of a tagged union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in members(part)]
    return []


def tag_of(model: type[BaseModel]) -> tuple[str, str] | None:
    """The field that tells this member of a tagged union from the others, and its value: kind, adamw."""
    for name in ("kind", "family"):
        field = model.model_fields.get(name)
        if field is not None:
            return name, str(field.default)
    return None


def field_paths(model: type[BaseModel]) -> list[str]:
    """Every dotted path below `model`, inner ones and leaves, over all members of its unions."""
    return list(dict.fromkeys(_walk(model, "")))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for member in members(field.annotation):
            yield from _walk(member, f"{prefix}{name}.")


def models_at(model: type[BaseModel], keys: Keys, values: object) -> list[type[BaseModel]]:
    """The classes that describe the object at `keys`; tags found in `values` choose among union members."""
    candidates = [model]
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
        fields = [candidate.model_fields[str(key)] for candidate in candidates if str(key) in candidate.model_fields]
        candidates = [member for field in fields for member in members(field.annotation)]
        tagged = [member for member in candidates if _carries_tag(member, values)]
        candidates = tagged or candidates
    return candidates


def _carries_tag(model: type[BaseModel], values: object) -> bool:
    tag = tag_of(model)
    return tag is not None and isinstance(values, Mapping) and values.get(tag[0]) == tag[1]


def suggest(path: str, known: list[str]) -> str:
    """The end of an error sentence: full paths that an unknown one may have meant.

    Its ending elsewhere (`kl.weight`), its last word further below (`training.lr`), or its first wrong part put
    right; where none of these is there, what stands beside that part.
    """
    ending = [name for name in known if name.endswith(f".{path}")] or _further_below(path, known)
    if not ending:
        right, wrong, rest = _first_wrong(path.split("."), known)
        beside = [name for name in known if name.startswith(right) and "." not in name.removeprefix(right)]
        mended = [".".join([name, *rest]) for name in alike(right + wrong, beside)]
        ending = [name for name in mended if name in known]
        if not ending:
            return nearest(right + wrong, beside)
    return "Did you mean " + " or ".join(repr(name) for name in ending[:3]) + "?"


def _further_below(path: str, known: list[str]) -> list[str]:
    """Names below the same owner, or the owner of that, which end in the same word."""
    owner, _, last = path.rpartition(".")
    while owner in known:
        if inside := [name for name in known if name.startswith(f"{owner}.") and name.endswith(f".{last}")]:
            return inside
        owner = owner.rpartition(".")[0]
    return []


def _first_wrong(parts: list[str], known: list[str]) -> tuple[str, str, list[str]]:
    """The right beginning with its dot, the first part that is wrong there, and what follows."""
    count = next((n for n in range(len(parts)) if ".".join(parts[: n + 1]) not in known), len(parts) - 1)
    return "".join(f"{part}." for part in parts[:count]), parts[count], parts[count + 1 :]
