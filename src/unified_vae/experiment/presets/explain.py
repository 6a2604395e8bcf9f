"""pydantic's errors in plain sentences: where, what was found, what is possible."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unified_vae.core.errors import ConfigError, nearest
from unified_vae.experiment.presets.field_paths import Keys, dotted, field_paths, models_at, suggest, tag_of
from unified_vae.experiment.presets.json_with_lines import shortened

Model = TypeVar("Model", bound=BaseModel)

_TYPES = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": 'text in "double quotes"',
    "list_type": "a list in [brackets]",
    "finite_number": "a finite number",
}
_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}
_BOUND_KEYS = {"greater_than": "gt", "greater_than_equal": "ge", "less_than": "lt", "less_than_equal": "le"}


def validate(model: type[Model], values: Mapping[str, object], where: Callable[[Keys], str], prefix: str = "") -> Model:
    """Build a config from plain values.

    Args:
        model: the config's class.
        values: its fields as read from JSON or the command line.
        where: names the source of the value at a path, e.g. `config/config_unified.json:12:7` or `--beta`.
        prefix: dotted path of `model` in the whole run, put before the paths in messages.

    Raises:
        ConfigError: one sentence about the first mistake, and how many more there are.
    """
    try:
        return model.model_validate(values)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        keys = _keys(errors[0], values)
        sentence = f"{where(keys)}: {_sentence(model, errors[0], keys, values, prefix)}"
        if len(errors) > 1:
            sentence += f" (and {len(errors) - 1} more)"
        raise ConfigError(sentence) from None


def _keys(error: Any, values: Mapping[str, object]) -> Keys:
    """The path of the value at fault: pydantic's, without the tags of unions that it puts in between."""
    keys: list[str | int] = []
    here: object = values
    for key in error["loc"]:
        if isinstance(here, Mapping) and key not in here and key in (here.get("kind"), here.get("family")):
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


def _sentence(model: type[BaseModel], error: Any, keys: Keys, values: Mapping[str, object], prefix: str) -> str:
    kind, context = error["type"], error.get("ctx", {})
    path = dotted((prefix, *keys) if prefix else keys)
    got = f"got {display(error.get('input'))}"
    match kind:
        case "extra_forbidden":
            return _unknown_key(model, keys, values, prefix)
        case "union_tag_invalid":
            given, known = str(context["tag"]), context["expected_tags"].replace("'", "")
            return f"{path}: {shortened(given)} is not known. {nearest(given, known.split(', '))}"
        case "union_tag_not_found":
            return f"{path} needs {_tag(error)}"
        case "literal_error":
            return f"{path}: expected {context['expected']}, {got}"
        case "string_pattern_mismatch" | "string_too_short" | "too_short":
            return f"{path}: {got}; {_meaning(model, keys, values)}"
        case "string_unicode":
            return f"{path}: {got}; it holds bytes that are no text (not UTF-8), so it cannot be kept: rename it"
        case "value_error":
            text = str(context["error"])
            return text if text.startswith(f"{path}.") else f"{path}: {text}" if path else text
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{path}: expected an object in {{braces}}, {got}"
        case _ if kind in _TYPES:
            return f"{path}: expected {_TYPES[kind]}, {got}"
        case _ if kind in _BOUNDS:
            return f"{path}: must be {_BOUNDS[kind]} {context[_BOUND_KEYS[kind]]}, {got}"
        case _:
            return f"{path}: {error['msg'][0].lower()}{error['msg'][1:]}, {got}"


def _unknown_key(model: type[BaseModel], keys: Keys, values: Mapping[str, object], prefix: str) -> str:
    """An unknown key, with its nearest neighbours; or the kind that it belongs to."""
    around = models_at(model, keys[:-1], values)
    owner = dotted((prefix, *keys[:-1]) if prefix else keys[:-1])
    key = str(keys[-1])
    tag = tag_of(around[0]) if len(around) == 1 else None
    of = f" in {owner}" if owner else ""
    if tag is not None and f"{dotted(keys)}" in field_paths(model):
        return f"unknown key {key!r}{of}: it belongs to another {tag[0]} than {tag[1]!r}"
    siblings = [f"{owner}.{name}" if owner else name for candidate in around for name in candidate.model_fields]
    everything = [f"{prefix}.{path}" if prefix else path for path in field_paths(model)]
    full = f"{owner}.{key}" if owner else key
    advice = (
        suggest(key, everything) if any(path.endswith(f".{key}") for path in everything) else nearest(full, siblings)
    )
    return f"unknown key {key!r}{of}. {advice}"


def _meaning(model: type[BaseModel], keys: Keys, values: Mapping[str, object]) -> str:
    """What a field takes, in the words of its own documentation."""
    owner = models_at(model, keys[:-1], values)[0]
    return f"it takes: {(owner.model_fields[str(keys[-1])].description or '').rstrip('.')}"


def display(value: object) -> str:
    """A value as written in JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"the text {text}" if isinstance(value, str) else text
