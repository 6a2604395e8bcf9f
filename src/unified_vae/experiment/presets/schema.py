"""The JSON schema of preset files, for editors: the config classes, with the docstrings of their fields."""

from __future__ import annotations

import copy
from typing import Any

from unified_vae.experiment.presets.book_file import SECTIONS
from unified_vae.experiment.run_config import RunConfig

_COMMENTS = {"^_": {"description": "A comment: ignored."}}
_WORDS = {
    "_description": {"type": "string", "description": "What it is; shown by --list-presets."},
    "_use_case": {"type": "string", "description": "Whom it serves; shown by --list-presets."},
}


def book_schema() -> dict[str, Any]:
    """The schema of config_unified.json and of a user's own file for `--config`."""
    run = RunConfig.model_json_schema()
    definitions = {name: _open_to_comments(body) for name, body in run["$defs"].items()}
    for section in SECTIONS.values():
        families = [_preset(definitions[member.__name__]) for member in section.configs]
        definitions[f"{section.kind}_preset"] = families[0] if len(families) == 1 else {"anyOf": families}
    definitions["mode"] = _mode()
    properties: dict[str, Any] = {
        "$schema": {"type": "string"},
        "modes": _table("mode", "What train.py --mode offers."),
    }
    for section in SECTIONS.values():
        words = f"What --{section.kind}-preset offers; each is a part of the settings under {section.field!r}."
        properties[section.key] = _table(f"{section.kind}_preset", words)
    for name, body in run["properties"].items():
        words = body.get("description", f"Settings under {name!r}.")
        properties[name] = {
            **body,
            "description": f"{words} Only in a file for --config: overrides all presets.",
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Presets of unified-vae",
        "type": "object",
        "properties": properties,
        "patternProperties": _COMMENTS,
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }


def _open_to_comments(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "patternProperties": _COMMENTS} if body.get("type") == "object" else body


def _preset(config: dict[str, Any]) -> dict[str, Any]:
    body = copy.deepcopy(config)
    extends = {"type": "string", "description": "Another preset of this section to start from."}
    body["properties"] = {**_WORDS, "_extends": extends, **body["properties"]}
    return body


def _mode() -> dict[str, Any]:
    names = {kind: {"type": "string", "description": f"One of the {kind} presets."} for kind in SECTIONS}
    return {
        "type": "object",
        "description": "A combination of presets.",
        "properties": {
            **_WORDS,
            **names,
            "set": {"type": "object", "description": "Dotted path -> value, laid over the presets."},
            "fixes": {"type": "string", "description": "The folder of an earlier run that this mode cures."},
        },
        "patternProperties": _COMMENTS,
        "additionalProperties": False,
    }


def _table(definition: str, words: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": words,
        "patternProperties": _COMMENTS,
        "additionalProperties": {"$ref": f"#/$defs/{definition}"},
    }
