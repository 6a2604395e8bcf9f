"""The training commands: `train.py --mode MODE`, and `train_unified.py` with every preset chosen one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Context, Option

from unified_vae.cli.app import set_process_defaults
from unified_vae.config.presets import FLAGS, SECTIONS, Mode, Preset, PresetBook, from_command_line
from unified_vae.config.run import ComposedRun
from unified_vae.config.settings import Settings
from unified_vae.console import (
    WIDTH,
    LogFile,
    gibibytes,
    memory_text,
    number,
    open_console,
    show,
    table,
    value_text,
    wrapped,
)
from unified_vae.core.errors import ConfigError
from unified_vae.pipeline.plan import (
    DEFAULT_PRESETS,
    RunRequest,
    check_request,
    plan_mode,
    plan_presets,
    seems_finished,
)

if TYPE_CHECKING:
    from unified_vae.analysis.model_cost import ModelCost
    from unified_vae.pipeline.profile import Profile


@dataclass(frozen=True)
class TrainOptions:
    """The options of both training commands. Few, because `--set` reaches every field."""

    data: Annotated[
        str | None,
        Option(help="Images: a folder, .zip, .tar, .npy, .npz, torchvision:NAME, hf:owner/name, or builtin."),
    ] = None
    run_dir: Annotated[Path | None, Option(help="Folder of the run.", show_default="below runs/")] = None
    resume: Annotated[bool, Option("--resume/--no-resume", help="Continue the run in the folder, or start afresh.")] = (
        True
    )
    epochs: Annotated[int | None, Option(help="Passes over the training images.")] = None
    batch_size: Annotated[
        str | None,
        Option(metavar="N|auto", help="Images per optimizer step, over all devices; auto finds the largest that fits."),
    ] = None
    lr: Annotated[float | None, Option(help="Peak learning rate.")] = None
    beta: Annotated[float | None, Option(help="KL weight (loss.kl.weight); 1 is the ELBO.")] = None
    seed: Annotated[int | None, Option(help="Decides weights, order, augmentation and noise.")] = None
    device: Annotated[str | None, Option(help="auto, cpu, cuda, cuda:N or mps.")] = None
    precision: Annotated[str | None, Option(help="auto, fp32, bf16 or fp16.")] = None
    assignments: Annotated[
        list[str] | None,
        Option("--set", metavar="PATH=VALUE", help="Set any field, e.g. loss.kl.weight=2; may be repeated."),
    ] = None
    config: Annotated[
        Path | None, Option(help="Your own presets and settings, or the config.json of a run to repeat.")
    ] = None
    dry_run: Annotated[bool, Option("--dry-run", help="Show the run with every value's origin, and stop.")] = False
    profile: Annotated[
        bool, Option("--profile", help="Take some steps, show where their time goes, write a trace, and stop.")
    ] = False
    list_presets: Annotated[bool, Option("--list-presets", help="Show all modes and presets, and stop.")] = False

    def settings(self) -> Settings:
        """Return the settings that the command line makes."""
        flags: dict[str, object | None] = {flag: getattr(self, flag[2:].replace("-", "_")) for flag in FLAGS}
        if re.fullmatch(r"\s*[0-9]+\s*", self.batch_size or ""):
            flags["--batch-size"] = int(self.batch_size or "")
        return from_command_line(flags, self.assignments or [])


def train(
    context: Context,
    mode: Annotated[str | None, Option(help="What to train; --list-presets shows all modes.")] = None,
    *,
    options: TrainOptions,
) -> int:
    """Train an image VAE by a named mode, e.g. --mode fast_high_quality --data photos/."""
    book = PresetBook.load(extra=options.config)
    if options.list_presets:
        show(listing_lines(book))
        return 0
    if mode is not None:
        return _start(plan_mode(book, mode, options.settings(), options.run_dir), options, context.obj)
    if book.record is not None:
        return _start(plan_presets(book, {}, options.settings(), options.run_dir), options, context.obj)
    start = "Start with: uv run train.py --mode quick_test"
    raise ConfigError("--mode is missing; choose one:", ["", *mode_lines(book), "", start])


def train_unified(
    context: Context,
    loss_preset: Annotated[str | None, Option(help="What is minimized.", show_default=DEFAULT_PRESETS["loss"])] = None,
    training_preset: Annotated[
        str | None, Option(help="How long and how fast.", show_default=DEFAULT_PRESETS["training"])
    ] = None,
    model_preset: Annotated[
        str | None, Option(help="Image size, latents, width.", show_default=DEFAULT_PRESETS["model"])
    ] = None,
    dataset_preset: Annotated[
        str | None, Option(help="How many images.", show_default=DEFAULT_PRESETS["dataset"])
    ] = None,
    augment_preset: Annotated[
        str | None, Option(help="Random changes of the training images.", show_default=DEFAULT_PRESETS["augment"])
    ] = None,
    *,
    options: TrainOptions,
) -> int:
    """Train an image VAE from five presets: loss, training, model, dataset and augment."""
    book = PresetBook.load(extra=options.config)
    if options.list_presets:
        show(listing_lines(book))
        return 0
    chosen = {
        "loss": loss_preset,
        "training": training_preset,
        "model": model_preset,
        "dataset": dataset_preset,
        "augment": augment_preset,
    }
    return _start(plan_presets(book, chosen, options.settings(), options.run_dir), options, context.obj)


def _start(request: RunRequest, options: TrainOptions, command: str) -> int:
    """Train, profile or only show the planned run; returns the exit code."""
    lines = config_lines(request.run)
    check_request(request)
    config = request.run.config
    if options.dry_run:
        # the settings at once; then, when torch is loaded, what the model costs
        show([*lines, "", f"run folder: {request.run_dir.as_posix()}"])
        from unified_vae.analysis.model_cost import model_cost

        batch_size = None if config.training.batch_size == "auto" else config.training.batch_size
        costs = model_lines(model_cost(config.model), batch_size, config.training.gradient_accumulation_steps)
        show([*costs, "", "--dry-run: nothing was started"])
        return 0

    if options.profile:
        with open_console() as console:
            console.show(lines)
            set_process_defaults(config.data.cache_dir)
            from unified_vae.pipeline.profile import profile, profile_folder

            folder = profile_folder(request.run_dir)
            result = profile(request.run, folder, console)
        show(profile_lines(result, folder))
        return 0

    if options.resume and seems_finished(request):
        text = f"settings: as those of the run in {request.run_dir.as_posix()}; --dry-run shows them"
        lines = wrapped(text, "  ")
    is_main = int(os.environ.get("RANK", "0")) == 0  # under torchrun the other processes show nothing
    with ExitStack() as stack:
        observers = [stack.enter_context(each) for each in ((open_console(), LogFile(command)) if is_main else ())]
        for observer in observers:
            observer.show(lines)
        set_process_defaults(config.data.cache_dir)
        from unified_vae.pipeline.fit import fit  # imports torch: seconds, so only now that the settings are good

        return fit(replace(request, resume=options.resume, command=command), observers).exit_code


def mode_lines(book: PresetBook) -> list[str]:
    """List each mode, what it is and what it is for."""
    rows = [(mode.name, _about(mode)) for mode in book.modes.values()]
    return table([("mode", "what it is"), *rows])


def listing_lines(book: PresetBook) -> list[str]:
    """List all modes with the presets that they combine, and all presets by section."""
    rows = [("mode", ", ".join(SECTIONS))]
    for mode in book.modes.values():
        absent = "defaults" if mode.fixes is None else "the run's"
        rows.append((mode.name, ", ".join(mode.presets.get(kind, absent) for kind in SECTIONS)))
    lines = ["modes (train.py --mode NAME)", *mode_lines(book), "", "modes combine", *table(rows)]
    for kind in SECTIONS:
        presets = book.presets(kind).values()
        lines += ["", f"{kind} presets (train_unified.py --{kind}-preset NAME)"]
        lines += table([(preset.name, _about(preset)) for preset in presets])
    return [*lines, "", *(f"from {file.name}" for file in book.files)]


def _about(entry: Mode | Preset) -> str:
    return ": ".join(filter(None, (entry.description, entry.use_case)))


def config_lines(run: ComposedRun) -> list[str]:
    """List every setting with its origin, by section; `*` marks what a preset, a file or the command line gave."""
    values = run.config.by_path()
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for path, value in values.items():
        section, _, name = path.partition(".") if "." in path else ("", "", path)
        origin = run.origins[path]
        # other defaults of a loss term whose weight is 0 say nothing about the run
        term, _, field = name.partition(".")
        if section == "loss" and origin == "default" and field != "weight" and values.get(f"loss.{term}.weight") == 0:
            continue
        name = "kl.weight (beta)" if path == "loss.kl.weight" else name
        sections.setdefault(section, []).append((name, value_text(value), origin))

    names = ", ".join(f"{kind} {name}" for kind, name in run.names.items())
    lines = [
        *wrapped(f"settings ({names})" if names else "settings", "  "),
        "  * given by a preset, a file or the command line; the rest are defaults",
    ]
    for section, rows in sections.items():
        lines += ["", *([f"{section}."] if section else [])]
        name_width = max(len(name) for name, _, _ in rows)
        value_width = min(max(len(value) for _, value, _ in rows), 14)
        for name, value, origin in rows:
            mark = " " if origin == "default" else "*"
            line = f"{mark} {name:<{name_width}}  {value:<{value_width}}"
            # without what the section's heading says already, and with the file's name instead of its path
            short = re.sub(r"^(loss|training|model|dataset|augment) preset ", "preset ", origin)
            short = re.sub(r"[^\s()]*[/\\]([^\s()/\\]+\.json)", r"\1", short)
            if len(line) + 2 + len(short) <= WIDTH:
                lines.append(f"{line}  {short}")
            else:
                lines += [line.rstrip(), *(f"      {rest}" for rest in wrapped(short))]
    return lines + [line for note in run.notes for line in ("", *wrapped(f"note: {note}", "  "))]


def model_lines(figures: ModelCost, batch_size: int | None, micro_batches: int) -> list[str]:
    """Describe parameters, operations and memory of a model.

    Args:
        batch_size: None where it is not known yet.
        micro_batches: of a batch.
    """
    fixed = f", {figures.fixed:,} of them fixed (PCA)" if figures.fixed else ""
    rows = [
        ("parameters", f"{figures.parameters:,}{fixed}"),
        ("operations", f"{_giga(figures.forward_flops)} per image forward, {_giga(figures.step_flops)} in a step"),
    ]
    if batch_size is not None:
        local = -(-batch_size // micro_batches)
        size = gibibytes(figures.step_bytes(local))
        rows.append(("memory", f"about {size} GiB for a step of {local} images at once in fp32 on one device"))
    return ["", "model, without the networks of loss terms", *table(rows)]


def profile_lines(result: Profile, folder: Path) -> Sequence[str]:
    """Show the time of each part of a step, the speed, and where the trace is."""
    total = sum(result.parts.values())
    rows = [("part of a step", "ms", "share")]
    rows += [(name, f"{1e3 * seconds:9.3f}", f"{seconds / total:6.1%}") for name, seconds in result.parts.items()]
    rows.append(("all parts, synchronized one by one", f"{1e3 * total:9.3f}", "100.0%"))
    facts = [
        ("step", f"{1e3 * result.step_seconds:.3f} ms for {result.batch_size} images, median of {result.steps} steps"),
        ("speed", f"{number(result.batch_size / result.step_seconds)} img/s"),
        ("memory", memory_text(result.memory).removeprefix("mem ")),
        ("device", result.device),
    ]
    files = f"written to {folder.as_posix()}: profile.json, and trace.json for chrome://tracing or ui.perfetto.dev"
    return ["", *table(rows), "", *table(facts), "", *wrapped(files, "  "), "--profile: nothing was trained"]


def _giga(flops: float) -> str:
    return f"{number(flops / 1e9)} GFLOP"
