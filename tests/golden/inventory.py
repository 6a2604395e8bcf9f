"""List what users can name, one sorted line an item: uv run python -m tests.golden.inventory

Commands with their options, settings, presets, files, exit codes and the Python API. The list is committed, so that the
difference of two versions shows what was added, renamed or dropped. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import re
import tomllib
import types
from collections.abc import Iterator
from enum import Enum, EnumMeta
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel

from unified_vae.cli.app import PROGRAM, SCRIPTS, VERBS, make_parser
from unified_vae.config.base import members, tag_of
from unified_vae.config.presets import SECTIONS, PresetBook
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PATH = Path(__file__).with_name("inventory.txt")
RUN_FILES = (
    "checkpoints/step-NNNNNNNNN/MANIFEST.json",
    "checkpoints/step-NNNNNNNNN/ema.safetensors",
    "checkpoints/step-NNNNNNNNN/model.safetensors",
    "checkpoints/step-NNNNNNNNN/objective.safetensors",
    "checkpoints/step-NNNNNNNNN/optimizer.safetensors",
    "checkpoints/step-NNNNNNNNN/scaler.safetensors (fp16)",
    "checkpoints/step-NNNNNNNNN/state.json",
    "before.json (resume_fix)",
    "closing.json",
    "config.json",
    "diagnosis.json (diagnose)",
    "diagnosis.png (diagnose)",
    "evaluation.json (evaluate)",
    "images-HASH.tsv",
    "log.txt (commands)",
    "metrics.jsonl",
    "preflight.json",
    "quarantine.txt (bad files)",
    "report.html",
    "samples/epoch-NNNN-interpolation.png",
    "samples/epoch-NNNN-reconstructions.png",
    "samples/epoch-NNNN-samples.png",
    "samples/final-samples.png",
    "skipped.jsonl (skipped steps)",
    "tensorboard/events.out.tfevents.*",
    "timing.jsonl",
)
"""In brackets: what a file is written by or because of; those without are in the folder of every finished run."""
MODEL_FILES = (
    "README.md",
    "config.json",
    "density.safetensors",
    "latent_stats.safetensors",
    "model.safetensors",
    "samples.png",
)


def inventory() -> str:
    """The content of the file."""
    lines = [
        *(line for name in SCRIPTS for line in command_lines(name, make_parser(name))),
        *(line for verb in VERBS for line in command_lines(f"{PROGRAM} {verb}", make_parser(PROGRAM, [verb]), verb)),
        *setting_lines(RunConfig, "", RunConfig()),
        *preset_lines(),
        *(f"run file {name}" for name in RUN_FILES),
        *(f"model file {name}" for name in MODEL_FILES),
        *exit_code_lines(),
        *api_lines(),
        *environment_lines(),
    ]
    return "\n".join(sorted(set(lines))) + "\n"


def command_lines(title: str, parser: typer.Typer, verb: str | None = None) -> Iterator[str]:
    """A command; each argument and option with its type, and its default or that it is required."""
    command: Any = typer.main.get_command(parser)
    command = command.commands[verb] if verb else command
    callback = next(entry.callback for entry in parser.registered_commands if entry.name == verb)
    assert callback is not None
    annotations = get_type_hints(callback)
    yield f"command {title}"
    for each in command.params:
        default = "required" if each.required else f"= {_plain(each.default)}"
        options = "/".join([*each.opts, *each.secondary_opts])
        written = each.metavar or each.name.upper() if each.param_type_name == "argument" else options
        yield f"command {title} {written}: {type_name(annotations[each.name])} {default}"


def setting_lines(model: type[BaseModel], prefix: str, values: BaseModel) -> Iterator[str]:
    """Each setting below `model`, over all members of its unions, with the default that it has in `values`."""
    for name, field in model.model_fields.items():
        inner, value = members(field.annotation), getattr(values, name)
        if not inner:
            yield f"setting {prefix}{name}: {type_name(field.annotation)} = {_plain(value)}"
        if len(inner) > 1 or (inner and value is None):
            kinds = " | ".join(_kind(member) for member in inner)
            chosen = "null" if value is None else _kind(type(value))
            yield f"setting {prefix}{name}: {kinds} = {chosen}"
        for member in inner:
            label = f"({_kind(member)})" if len(inner) > 1 else ""
            own = value if type(value) is member else member()
            yield from setting_lines(member, f"{prefix}{name}{label}.", own)


def _kind(model: type[BaseModel]) -> str:
    tag = tag_of(model)
    return model.__name__ if tag is None else tag[1]


def type_name(annotation: Any) -> str:
    """A type in words, e.g. `int | 'auto'`."""
    arguments = get_args(annotation)
    if annotation in (None, type(None)):
        return "null"
    if get_origin(annotation) is Annotated:
        return type_name(arguments[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return " | ".join(map(type_name, arguments))
    if get_origin(annotation) is Literal:
        return " | ".join(map(repr, arguments))
    if isinstance(annotation, EnumMeta):
        return " | ".join(repr(member.value) for member in annotation)
    if arguments:
        return f"{get_origin(annotation).__name__}[{', '.join(map(type_name, arguments))}]"
    return str(getattr(annotation, "__name__", annotation))


def _plain(value: Any) -> str:
    """A default, the same on every machine."""
    value = value.value if isinstance(value, Enum) else value
    return value.as_posix() if isinstance(value, Path) else str(value)


def preset_lines() -> Iterator[str]:
    """Modes and presets of the book that is shipped."""
    book = PresetBook.load(shipped=ROOT / "config" / "config_unified.json")
    yield from (f"mode {name}" for name in book.modes)
    yield from (f"preset {kind} {name}" for kind in SECTIONS for name in book.presets(kind))


def exit_code_lines() -> Iterator[str]:
    """Exit codes, with the errors that have them."""
    yield "exit code 0: finished, stopped early by patience, or already finished"
    yield "exit code 128 + N: stopped by signal N"
    errors = [UserError]
    for error in errors:
        errors += error.__subclasses__()
        yield f"exit code {error.exit_code}: {error.__name__}"


def api_lines() -> Iterator[str]:
    """Names of the package and members of its classes with their signatures, read from the source."""
    for statement in ast.walk(_source("unified_vae")):
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("unified_vae."):
            for alias in statement.names:
                yield f"api unified_vae.{alias.name}"
                yield from _member_lines(statement.module or "", alias.name)
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        for module, names in re.findall(
            r"^\s*from (unified_vae[\w.]*) import ([\w, ]+)", page.read_text("utf-8"), re.M
        ):
            yield from (f"api {module}.{name.strip()} (in the docs)" for name in names.split(","))


def _member_lines(module: str, name: str) -> Iterator[str]:
    """The signature of a function of the package, or the members of a class; a variable has none."""
    definition = next((node for node in _source(module).body if getattr(node, "name", None) == name), None)
    if isinstance(definition, ast.FunctionDef):
        yield f"api unified_vae.{name}{_signature(definition)}"
    for node in definition.body if isinstance(definition, ast.ClassDef) else ():
        if isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
            yield f"api unified_vae.{name}.{node.name}{_signature(node)}"
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            for target in re.findall(r"self\.([a-z]\w*) =", ast.unparse(node)):
                yield f"api unified_vae.{name}.{target}"
        if isinstance(node, ast.Assign):
            yield f"api unified_vae.{name}.{ast.unparse(node)}"


def _signature(node: ast.FunctionDef) -> str:
    """Parameters and result; of a property the result alone."""
    is_property = "property" in [ast.unparse(decorator) for decorator in node.decorator_list]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return result if is_property else f"({ast.unparse(node.args)}){result}"


def _source(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, f"no module {module}"
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def environment_lines() -> Iterator[str]:
    """Variables that the program reads, its extras and its console commands."""
    for file in sorted((ROOT / "src").rglob("*.py")):
        yield from (f"environment {name}" for name in re.findall(r"UNIFIED_VAE_[A-Z]+", file.read_text("utf-8")))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    yield from (f"extra {name}" for name in project["optional-dependencies"])
    yield from (f"script {name}" for name in project["scripts"])


if __name__ == "__main__":
    PATH.write_text(inventory(), encoding="utf-8", newline="\n")
    print(f"wrote {PATH.relative_to(ROOT)}")
