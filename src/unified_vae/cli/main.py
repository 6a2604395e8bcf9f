"""The command `unified-vae VERB ...`: what there is to do with a finished run or a model.

The verbs' modules import typer alone, so that `--help` and every wrong word answer at once; what they ask for
imports torch.
"""

from __future__ import annotations

import sys

import typer

from unified_vae.cli import run_diagnose
from unified_vae.cli.commands.decode import decode
from unified_vae.cli.commands.edit import edit
from unified_vae.cli.commands.encode import encode
from unified_vae.cli.commands.evaluate import compare, evaluate
from unified_vae.cli.commands.export import export
from unified_vae.cli.commands.pictures import interpolate, reconstruct, sample
from unified_vae.cli.commands.report import report
from unified_vae.cli.door import enter

PROGRAM = "unified-vae"
VERBS = (
    sample,
    reconstruct,
    interpolate,
    run_diagnose.diagnose,
    encode,
    decode,
    edit,
    evaluate,
    export,
    report,
)
"""In the order of `--help`: a function whose name is the verb, which returns a job."""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="What to do with a finished run or a model. To train one: train.py, train_unified.py.",
)
for verb in VERBS:
    app.command()(verb)
app.command(hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(compare)


@app.callback()
def _verbs() -> None:
    """Keeps the verb a word of the command line, also where there is only one."""


def main() -> int:
    """Run `unified-vae` with the words of the command line; gives the exit code."""
    return enter(app, PROGRAM, None if sys.argv[1:] else ["--help"])
