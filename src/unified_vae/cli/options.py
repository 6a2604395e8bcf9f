"""The options that both doors share: few and frozen, because `--set` reaches every field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from unified_vae.config.explain import Settings
from unified_vae.config.presets import PresetBook, from_command_line

Data = Annotated[
    str | None,
    typer.Option(help="Images: a folder, .zip, .tar, .npy, .npz, torchvision:NAME, hf:owner/name, or builtin."),
]
RunDir = Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="below runs/")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue the run in the folder, or start afresh.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images.")]
BatchSize = Annotated[
    str | None,
    typer.Option(
        metavar="N|auto", help="Images per optimizer step, over all devices; auto finds the largest that fits."
    ),
]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Beta = Annotated[float | None, typer.Option(help="KL weight (loss.kl.weight); 1 is the ELBO.")]
Seed = Annotated[int | None, typer.Option(help="Decides weights, order, augmentation and noise.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Set any field, e.g. loss.kl.weight=2; may be repeated."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Your own presets and settings, or the config.json of a run to repeat."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the run with every value's origin, and stop.")]
Profile = Annotated[
    bool, typer.Option("--profile", help="Take some steps, show where their time goes, write a trace, and stop.")
]
ListPresets = Annotated[bool, typer.Option("--list-presets", help="Show all modes and presets, and stop.")]


def number_or_word(text: str | None) -> int | str | None:
    """A whole number where it is one."""
    return int(text) if text is not None and text.strip().isascii() and text.strip().isdecimal() else text


@dataclass(frozen=True)
class Shared:
    """The shared options as given.

    Attributes:
        flags: `--epochs` and the like -> value, None where not given.
        assignments: the words after each `--set`.
    """

    flags: Mapping[str, object | None]
    assignments: Sequence[str]
    run_dir: Path | None
    resume: bool
    config: Path | None
    dry_run: bool
    list_presets: bool
    profile: bool = False

    def command_line(self) -> Settings:
        """The settings that the command line makes."""
        return from_command_line(self.flags, self.assignments)

    def book(self) -> PresetBook:
        """The preset book, with the user's own file over it."""
        return PresetBook.load(extra=self.config)
