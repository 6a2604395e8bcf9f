"""What happens around every command: parse, then act, and turn mistakes into one line and an exit code.

Exit codes: 0 finished, 2 wrong options, config or data, 3 environment, 4 diverged, 130 interrupted.
A run that stops inside the loop brings its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from unified_vae.cli.closed_stream import discard
from unified_vae.core.errors import UserError
from unified_vae.core.shell import uv_run

Job = Callable[[str], int]
"""What a command line asks for; takes the command that starts it again and gives the exit code."""

PRESET_OPTIONS = tuple(f"--{kind}-preset" for kind in ("loss", "training", "model", "dataset", "augment"))

_INTERRUPTED = "interrupted outside the training loop; there was nothing to save"

_SHOW_CURSOR = b"\x1b[?25h"

# The parser's base class of wrong words, which typer does not export by name.
_WrongWords: Any = typer.BadParameter.__base__


def enter(app: typer.Typer, script: str, words: Sequence[str] | None = None) -> int:
    """Parse `words` with a command that returns a job, and do the job.

    Args:
        app: its single command only parses; what it asks for is done here, outside the parser's own handlers.
        script: name of the door's file, or of the command, for help and messages.
        words: the command line without the script; sys.argv's unless given.

    Returns:
        The exit code. An exception that is no mistake of the user's is a bug of ours and passes through.
    """
    arguments = list(sys.argv[1:] if words is None else words)
    _never_fail_on_a_letter()
    _end_in_words_when_terminated()
    try:
        Path.cwd()
    except OSError:
        return _fail("the current folder was deleted; change to one that is there", 3)
    try:
        job = app(args=arguments, prog_name=script, standalone_mode=False)
        is_file = script.endswith(".py")  # else the name of a command, wherever it is installed
        called = Path(sys.argv[0]).as_posix() if is_file and words is None else script
        return job if isinstance(job, int) else job(restart_command(called, arguments))
    except UserError as error:
        return _fail(str(error), error.exit_code, error.details)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED, 130)
    except _WrongWords as error:
        return _fail(_of_other_door(script, error) or error.format_message(), 2)
    except OSError as error:
        if error.filename is None:  # no file is to blame
            raise
        return _fail(f"{error.filename}: {error.strerror}; see to its disk and permissions, then run it again", 3)


def _of_other_door(script: str, error: Any) -> str | None:
    """What to do about an option that the other door has; None for every other mistake."""
    option = getattr(error, "option_name", None)
    if script == "train.py" and option in PRESET_OPTIONS:
        return (
            f"train.py takes a mode, which names all presets; {option} is an option of train_unified.py, which takes "
            "them one by one: uv run train_unified.py --help. (--list-presets shows those of a mode; --set changes any "
            "single setting of it.)"
        )
    if script == "train_unified.py" and option == "--mode":
        return (
            "--mode is an option of train.py: uv run train.py --mode NAME. train_unified.py takes the presets one by "
            f"one: {', '.join(PRESET_OPTIONS)}."
        )
    return None


def restart_command(script: str, words: Sequence[str]) -> str:
    """The command that starts the same run again: the words given, without those that would set it aside."""
    kept = [word for word in words if word != "--no-resume"]
    if words and not kept:
        kept = ["--resume"]  # without any word, train_unified.py shows its help
    return uv_run(*_launcher(), script, *kept)


def _launcher() -> list[str]:
    """torchrun with its numbers of processes, where it started this one; a cluster adds its own meeting point."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    machines = ["--standalone"] if here == everywhere else ["--nnodes", str(everywhere // here)]
    return ["torchrun", *machines, "--nproc-per-node", str(here)]


def _fail(message: str, exit_code: int, details: Sequence[str] = ()) -> int:
    said = "\n".join(["error: " + " ".join(filter(None, map(str.strip, message.splitlines()))), *details])
    for stream, words in ((sys.stdout, ""), (sys.stderr, said + "\n")):
        try:
            stream.write(words)
            stream.flush()
        except OSError:  # nobody reads it any more: a Ctrl-C ends `tee` too
            discard(stream)
    return exit_code


def _end_in_words_when_terminated() -> None:
    """While a run prepares, SIGTERM and SIGINT end it with a line, and SIGUSR1 finds nothing that it could save.

    The training loop, which has to save, brings its own.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as nohup and & ask for
        signal.signal(signal.SIGINT, _interrupt)
    if hasattr(signal, "SIGUSR1"):  # Windows has none
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by default it would end the process


def _terminate(number: int, frame: FrameType | None) -> None:
    words = "terminated outside the training loop; there was nothing to save"
    _leave_imports(frame, words, 128 + number)
    raise SystemExit(_fail(words, 128 + number))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _leave_imports(frame, _INTERRUPTED, 128 + number)
    raise KeyboardInterrupt


def _leave_imports(frame: FrameType | None, words: str, exit_code: int) -> None:
    """End the process where a module is being imported: an exception might be lost there.

    Python drops those that are raised in the callbacks of its import locks, and packages catch what keeps them from
    importing what is optional. Torch alone takes seconds.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            with suppress(OSError):  # nobody reads it any more
                if os.isatty(1):
                    os.write(1, _SHOW_CURSOR)  # bars hide it
                os.write(2, f"error: {words}\n".encode())
            os._exit(exit_code)
        frame = frame.f_back


def _never_fail_on_a_letter() -> None:
    """A file name that the terminal's encoding lacks is shown escaped instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
