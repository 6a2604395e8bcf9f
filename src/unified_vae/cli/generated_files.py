"""Write the JSON schema of preset files and docs/presets.md: uv run python -m unified_vae.cli.generated_files"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unified_vae.config.base import dotted, flatten, models_at
from unified_vae.config.presets import SECTIONS, PresetBook
from unified_vae.config.run import RunConfig
from unified_vae.config.settings import Settings
from unified_vae.console import gibibytes, number, value_text

SCHEMA = Path("config") / "config_unified.schema.json"
PAGE = Path("docs") / "presets.md"
COSTED_IMAGES = 16

_COMMENTS = {"^_": {"description": "A comment: ignored."}}
_ABOUT = {
    "_description": {"type": "string", "description": "What it is; shown by --list-presets."},
    "_use_case": {"type": "string", "description": "Whom it serves; shown by --list-presets."},
}
_INTRODUCTION = """\
# Modes and presets

Generated from `config/config_unified.json` by `uv run python -m unified_vae.cli.generated_files`; a test
keeps it current. Settings that a preset leaves out keep their defaults, which are documented in
`src/unified_vae/config` and in `config/config_unified.schema.json`. A dotted path is spelled here as in the JSON and
after `--set`. Loss weights are parts of one energy that is calibrated as a whole, so only their ratios matter;
`loss.kl.weight` is beta.
"""


def schema_text() -> str:
    """Return the schema of config_unified.json and of a user's own file for `--config`."""
    run = RunConfig.model_json_schema()
    definitions = {
        name: {**body, "patternProperties": _COMMENTS} if body.get("type") == "object" else body
        for name, body in run["$defs"].items()
    }
    properties: dict[str, Any] = {
        "$schema": {"type": "string"},
        "modes": _entries("mode", "What train.py --mode offers."),
    }

    # a preset has the fields of its section, over all members of a union
    extends = {"type": "string", "description": "Another preset of this section to start from."}
    for kind, path in SECTIONS.items():
        families = []
        for member in models_at(RunConfig, tuple(path.split(".")), {}):
            body = definitions[member.__name__]
            families.append({**body, "properties": {**_ABOUT, "_extends": extends, **body["properties"]}})
        definitions[f"{kind}_preset"] = families[0] if len(families) == 1 else {"anyOf": families}
        offered = f"What --{kind}-preset offers; each is a part of the settings under {path!r}."
        properties[f"{kind}_presets"] = _entries(f"{kind}_preset", offered)

    definitions["mode"] = {
        "type": "object",
        "description": "A combination of presets.",
        "properties": {
            **_ABOUT,
            **{kind: {"type": "string", "description": f"One of the {kind} presets."} for kind in SECTIONS},
            "set": {"type": "object", "description": "Dotted path -> value, laid over the presets."},
            "fixes": {"type": "string", "description": "The folder of an earlier run that this mode fixes."},
        },
        "patternProperties": _COMMENTS,
        "additionalProperties": False,
    }
    for name, body in run["properties"].items():
        about = body.get("description", f"Settings under {name!r}.")
        properties[name] = {**body, "description": f"{about} Only in a file for --config: overrides all presets."}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Presets of unified-vae",
        "type": "object",
        "properties": properties,
        "patternProperties": _COMMENTS,
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }
    return json.dumps(schema, indent=2) + "\n"


def _entries(definition: str, description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "patternProperties": _COMMENTS,
        "additionalProperties": {"$ref": f"#/$defs/{definition}"},
    }


def presets_page(book: PresetBook) -> str:
    """Return the page of all modes and presets, as Markdown."""
    lines = [_INTRODUCTION, "## Modes", "", "`uv run train.py --mode NAME`", ""]
    for mode in book.modes.values():
        absent = "defaults" if mode.fixes is None else "that run's"
        presets = (f"{kind}: {f'`{mode.presets[kind]}`' if kind in mode.presets else absent}" for kind in SECTIONS)
        lines += [f"- **`{mode.name}`**: {mode.description} ({mode.use_case}).", f"  Presets: {', '.join(presets)}."]
    for kind in SECTIONS:
        lines += ["", f"## {kind.capitalize()} presets", "", f"`uv run train_unified.py --{kind}-preset NAME`", ""]
        for preset in book.presets(kind).values():
            settings = [f"`{dotted(keys)}={value_text(value)}`" for keys, value in flatten(preset.settings.values)]
            lines.append(f"- **`{preset.name}`**: {preset.description} ({preset.use_case}).")
            lines += textwrap.wrap(
                ", ".join(settings),
                120,
                initial_indent="  ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        if kind == "model":
            lines += ["", *_cost_lines(book)]
    return "\n".join(lines) + "\n"


def _cost_lines(book: PresetBook) -> list[str]:
    """Describe what each model costs, for images of three channels."""
    from unified_vae.analysis.model_cost import model_cost

    rows = []
    for name in book.presets("model"):
        figures = model_cost(book.compose({"model": name}, Settings()).config.model)
        millions = (f"{count / 1e6:.1f} million" for count in (figures.parameters, figures.fixed))
        operations = (f"{number(flops / 1e9)} GFLOP" for flops in (figures.forward_flops, figures.step_flops))
        rows.append((f"`{name}`", *millions, *operations, f"{gibibytes(figures.step_bytes(COSTED_IMAGES))} GiB"))
    heading = ("Preset", "Parameters", "Fixed", "Forward, per image", "Step, per image")
    text = (
        "Costs without the networks of loss terms; a multiplication and an addition count as two operations. The "
        f"memory is about that of a step of {COSTED_IMAGES} images at once in fp32; `--dry-run` shows it for any run."
    )
    return [text, "", *_table((*heading, f"Memory of {COSTED_IMAGES} images"), rows)]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    for path, text in ((SCHEMA, schema_text()), (PAGE, presets_page(PresetBook.load()))):
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {path}")
