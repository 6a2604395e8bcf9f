"""Entry point of every command: the command table, parsing, signals, and errors as one line and an exit code.

The module of a command is imported when the command is called, and imports no torch before its arguments are checked.
This is the only module with effects on the whole process.

Exit codes: 0 finished, 2 wrong options, config or data, 3 environment, 4 diverged, 128 + N stopped by signal N.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from unified_vae.console import discard
from unified_vae.core.errors import ConfigError, UserError, uv_run

PROGRAM = "unified-vae"
SCRIPTS = {
    "train.py": ("train", "train"),
    "train_unified.py": ("train", "train_unified"),
    "diagnose.py": ("commands.diagnose", "diagnose"),
}
"""Script -> module below `cli`, and its function."""

VERBS = {
    "sample": ("generate", "Draw new images: a sheet, or a folder of files."),
    "reconstruct": ("generate", "Encode and decode images: beside the originals, or as files."),
    "interpolate": ("generate", "Walk from one image to another: a sheet, files or a movie."),
    "diagnose": ("diagnose", "Name the cause of blur or poor samples, and the command to run next."),
    "encode": ("encode", "Turn a whole data source into latents with names and labels."),
    "decode": ("encode", "Turn latents back into images by name."),
    "edit": ("edit", "Change an attribute of images, learned from labels."),
    "evaluate": ("evaluate", "Measure models, each metric with a 95 % interval; several side by side."),
    "export": ("export", "Write a model as files for other programs, load them back and compare."),
    "report": ("report", "Write one HTML page of a run."),
}
"""Verb of `unified-vae`, in the order of `--help` -> module below `cli.commands`, summary."""

PRESET_OPTIONS = tuple(f"--{kind}-preset" for kind in ("loss", "training", "model", "dataset", "augment"))

MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")  # see mallopt(3)

_SHOW_CURSOR = b"\x1b[?25h"

# the parser's base class of wrong arguments, which typer does not export by name
_UsageError: Any = typer.BadParameter.__base__


def main(program: str = PROGRAM, argv: Sequence[str] | None = None) -> int:
    """Run a program and return its exit code.

    Args:
        program: a key of SCRIPTS, or `unified-vae`.
        argv: its arguments; those of the process unless given. Some programs show their help where those are empty.

    Returns:
        The exit code. An exception that is not the user's mistake is a bug of ours and passes through.
    """
    called = Path(sys.argv[0]).as_posix() if argv is None and program in SCRIPTS else program
    if argv is None:
        argv = sys.argv[1:] or (["--help"] if program in (PROGRAM, "train_unified.py") else [])
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal's encoding lacks is shown escaped
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    _handle_signals()
    try:
        Path.cwd()
    except OSError:
        return _fail("the current folder was deleted; change to one that exists", 3)
    try:
        if program == PROGRAM and list(argv[:1]) == ["compare"]:
            command = uv_run(PROGRAM, "evaluate", *argv[1:])
            raise ConfigError(f"compare is now evaluate with several models: {command}")
        call = parse(program, argv, restart_command(called, argv))
        return call if isinstance(call, int) else call() or 0
    except UserError as error:
        return _fail(str(error), error.exit_code, error.details)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted outside the training loop; there was nothing to save", 130)
    except _UsageError as error:
        return _fail(_option_of_other_script(program, error) or error.format_message(), 2)
    except OSError as error:
        if error.filename is None:  # no file is to blame
            raise
        return _fail(f"{error.filename}: {error.strerror}; check its disk and permissions, then run it again", 3)


def parse(program: str, argv: Sequence[str], restart: str = "") -> int | Callable[[], int | None]:
    """Return the call that `argv` asks for, so that its exceptions do not meet the parser's own handlers.

    Args:
        restart: the command that continues the same run; `context.obj` of a command.

    Returns:
        The call, or the exit code where there is nothing to do, as after `--help`.
    """
    call: int | Callable[[], int | None] = make_parser(program, argv)(
        args=list(argv), prog_name=program, standalone_mode=False, obj=restart
    )
    return call


def make_parser(program: str, argv: Sequence[str] = ()) -> typer.Typer:
    """Return the parser of a program, which gives the parsed call.

    Args:
        argv: says which verb of `unified-vae` gets its options; the modules of the others are not imported.
    """
    about = "Use a finished run or a model. To train one: train.py, train_unified.py."
    parser = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, help=about)
    if program in SCRIPTS:
        module, name = SCRIPTS[program]
        parser.command()(_recorded(getattr(import_module(f"{__package__}.{module}"), name)))
        return parser
    called = next((word for word in argv if not word.startswith("-")), None)
    for verb, (module, summary) in VERBS.items():
        function: Callable[..., Any] = lambda: None  # noqa: E731  # of the others the name is enough
        if verb == called:
            function = _recorded(getattr(import_module(f"{__package__}.commands.{module}"), verb))
        parser.command(verb, short_help=summary)(function)
    return parser


def _recorded(function: Callable[..., int | None]) -> Callable[..., Callable[[], int | None]]:
    """Return a function with the parameters of `function` that returns the call instead of making it.

    A parameter that is a dataclass is replaced by its fields: options that several commands share.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation):
            group: Any = parameter.annotation
            groups[parameter.name] = group
            parameters += inspect.signature(group, eval_str=True).parameters.values()
        else:
            parameters.append(parameter)

    def record(**arguments: Any) -> Callable[[], int | None]:
        for name, options in groups.items():
            arguments[name] = options(**{field.name: arguments.pop(field.name) for field in fields(options)})
        return functools.partial(function, **arguments)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    record.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    record.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    record.__doc__ = function.__doc__
    return record


def _option_of_other_script(program: str, error: Any) -> str | None:
    """What to do about an option that the other training script has; None for every other mistake."""
    option = getattr(error, "option_name", None)
    if program == "train.py" and option in PRESET_OPTIONS:
        return (
            f"train.py takes a mode, which names all presets; {option} is an option of train_unified.py, which takes "
            "them one by one: uv run train_unified.py --help. (--list-presets shows those of a mode; --set changes any "
            "single setting of it.)"
        )
    if program == "train_unified.py" and option == "--mode":
        return (
            "--mode is an option of train.py: uv run train.py --mode NAME. train_unified.py takes the presets one by "
            f"one: {', '.join(PRESET_OPTIONS)}."
        )
    return None


def restart_command(script: str, argv: Sequence[str]) -> str:
    """Return the command that continues the same run: the arguments given, without the one that would set it aside."""
    kept = [word for word in argv if word != "--no-resume"]
    if argv and not kept:
        kept = ["--resume"]  # without any argument, train_unified.py shows its help
    launcher: list[str] = []
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun started this process; a cluster adds its own rendezvous
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        machines = ["--standalone"] if local == world else ["--nnodes", str(world // local)]
        launcher = ["torchrun", *machines, "--nproc-per-node", str(local)]
    return uv_run(*launcher, script, *kept)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next step, until `ComputeDevice.empty_cache`.

    glibc gives large blocks back to the system as soon as they are freed: those of 32 MiB and more at once, the others
    where the end of the heap is free for twice that. A training step allocates and frees the same activations over and
    over, so the system takes each page away and hands it out again, cleared: a fifth of a step of a network whose maps
    take 32 MiB (docs/performance.md). Bits do not change. Other C libraries are left alone, and so is a process whose
    user has set glibc's own variables.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    user_decides = "glibc.malloc." in tunables or any(map(os.environ.get, MALLOC_VARIABLES))
    if user_decides or sys.platform != "linux" or not hasattr(library := ctypes.CDLL(None), "gnu_get_libc_version"):
        return
    trim_threshold, mmap_threshold, never = -1, -3, -1  # numbers of mallopt(3)
    if not library.mallopt(mmap_threshold, 2**30):
        library.mallopt(mmap_threshold, 32 * 2**20)  # the most that glibc before 2.35 accepts
    library.mallopt(trim_threshold, never)


def set_process_defaults(cache_dir: str | None) -> None:
    """Set up a process that only trains, before it imports torch: memory, compiled kernels, quiet threads.

    Args:
        cache_dir: the setting `data.cache_dir`.
    """
    from unified_vae.data.cache import cache_root

    keep_freed_memory()
    # compiled kernels outlast the machine's restart, which clears the temporary folder that torch takes
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root(cache_dir) / "compiled"))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes to stderr
    hook = threading.excepthook

    def quiet_hook(args: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread hands its error on to whoever writes next; printed, it would look like a crash."""
        if type(args.thread).__name__ != "_AsyncWriterThread" or not isinstance(args.exc_value, OSError):
            hook(args)

    threading.excepthook = quiet_hook


def _fail(message: str, exit_code: int, details: Sequence[str] = ()) -> int:
    text = "\n".join(["error: " + " ".join(filter(None, map(str.strip, message.splitlines()))), *details])
    for stream, content in ((sys.stdout, ""), (sys.stderr, text + "\n")):
        try:
            stream.write(content)
            stream.flush()
        except OSError:  # its reader has gone: a Ctrl-C ends `tee` too
            discard(stream)
    return exit_code


def _handle_signals() -> None:
    """Until training begins, SIGTERM and SIGINT end the process with a line, and SIGUSR1 is ignored.

    The trainer, which has something to save, installs its own handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as nohup and & ask for
        signal.signal(signal.SIGINT, _stop)
    if hasattr(signal, "SIGUSR1"):  # Windows has none
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by default it would end the process


def _stop(number: int, frame: FrameType | None) -> None:
    verb = "interrupted" if number == signal.SIGINT else "terminated"
    message = f"{verb} outside the training loop; there was nothing to save"
    # An exception may be lost while a module is imported, which takes seconds for torch: Python drops those raised in
    # the callbacks of its import locks, and packages catch what keeps them from importing what is optional.
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            with suppress(OSError):  # its reader has gone
                if os.isatty(1):
                    os.write(1, _SHOW_CURSOR)  # bars hide it
                os.write(2, f"error: {message}\n".encode())
            os._exit(128 + number)
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(_fail(message, 128 + number))
