"""From a plan to a run under way: show what it is, set up those who watch, hand it to the experiment."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing

from unified_vae.cli.closed_stream import discard
from unified_vae.cli.display import config_lines
from unified_vae.cli.log_file import LogFile
from unified_vae.cli.options import Shared
from unified_vae.cli.profile_lines import model_lines, profile_lines
from unified_vae.cli.run_lines import RunLines
from unified_vae.cli.text import wrapped
from unified_vae.core.malloc import keep_freed_memory
from unified_vae.data.cache import cache_root
from unified_vae.experiment.planning.plan import Plan, check, has_its_model
from unified_vae.experiment.request import RunRequest


def show(lines: Iterable[str]) -> int:
    """Print lines; the exit code of having done so, also where the reader has gone, as `head` does."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        discard(sys.stdout)
    return 0


def start(plan: Plan, shared: Shared, command: str) -> int:
    """Start the planned run, or only show it with `--dry-run`; gives the exit code."""
    lines = config_lines(plan.run)
    check(plan)
    if shared.dry_run:
        return _only_show(plan, lines)
    if shared.profile:
        return _profile(plan, lines)
    request = RunRequest(plan.run, plan.run_dir, shared.resume, command, plan.fix_from)
    if shared.resume and has_its_model(plan):
        lines = wrapped(f"settings: as those of the run in {plan.run_dir.as_posix()}; --dry-run shows them", "  ")
    with ExitStack() as open_until_the_end:
        watchers = [] if _is_follower() else [to_screen(), LogFile(command)]
        for watcher in watchers:
            open_until_the_end.callback(watcher.close)
            watcher.show(lines)
        from unified_vae.pipeline.fit import fit  # imports torch: seconds, so only now that the settings are good

        set_process_defaults(plan.run.config.data.cache_dir)
        return fit(request, watchers).exit_code


def set_process_defaults(cache_dir: str | None) -> None:
    """What a training process is better off with, and a library must not do: memory, caches, a quiet thread."""
    keep_freed_memory()
    # compiled kernels outlast the machine's restart, which clears the temporary folder that torch takes
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root(cache_dir) / "compiled"))
    hook = threading.excepthook

    def quiet_hook(args: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread hands its error on to whoever writes next; printed, it would look like a crash."""
        if type(args.thread).__name__ != "_AsyncWriterThread" or not isinstance(args.exc_value, OSError):
            hook(args)

    threading.excepthook = quiet_hook


def _only_show(plan: Plan, lines: Sequence[str]) -> int:
    """The settings at once; then, when torch was loaded, what the model costs."""
    show([*lines, "", f"run folder: {plan.run_dir.as_posix()}"])
    from unified_vae.experiment.model_figures import model_figures

    config = plan.run.config
    batch_size = config.training.batch_size
    known = None if batch_size == "auto" else batch_size
    figures = model_lines(model_figures(config.model), known, config.training.gradient_accumulation_steps)
    return show([*figures, "", "--dry-run: nothing was started"])


def _profile(plan: Plan, lines: Sequence[str]) -> int:
    """Measure the planned run's step."""
    with closing(to_screen()) as screen:
        screen.show(lines)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks to stderr; read when torch is loaded
        from unified_vae.pipeline.profile import profile, profile_folder

        set_process_defaults(plan.run.config.data.cache_dir)
        folder = profile_folder(plan.run_dir)
        found = profile(plan.run, folder, screen)
    return show(profile_lines(found, folder))


def to_screen() -> RunLines:
    """Bars on a terminal, plain lines in a pipe or a file."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        from unified_vae.cli.progress import TerminalProgress

        return TerminalProgress()
    return RunLines(sys.stdout)


def _is_follower() -> bool:
    """Under torchrun every rank but the first keeps silent."""
    return int(os.environ.get("RANK", "0")) > 0
