"""What a run shows: beta and every weight, all settings, no control characters, no wide lines."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from unified_vae import console as console_module
from unified_vae.cli.train import config_lines, listing_lines
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.console import (
    LogFile,
    RunLines,
    TerminalProgress,
    TimeLeft,
    clock_text,
    joined,
    started_lines,
    table,
    wrapped,
)
from unified_vae.core.events import (
    Difference,
    LossesLogged,
    Memory,
    Observer,
    Observers,
    RunFinished,
    RunStarted,
    StepDone,
    TermRow,
    Validated,
)

BOOK = PresetBook.load(shipped=Path(__file__).resolve().parents[2] / "config" / "config_unified.json")
MAX_WIDTH = 110
TERMS = [
    TermRow("loss.mse", 1.0, "constant", 1.0),
    TermRow("loss.perceptual", 0.02, "constant", 1.0, "VGG-16"),
    TermRow("loss.lpips", 0.0, "constant", 1.0),
    TermRow("loss.kl", 2.5, "linear warm-up from x0 over the first 10% of the run", 0.4),
]
LOSSES = {"loss.total": 1.25, "loss.mse": 0.008, "loss.l1": 0.05, "loss.perceptual": 0.4, "loss.ms_ssim": 0.15}


class Clock:
    """Seconds that pass when a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def started(run_dir: Path, *, resumed: bool = False) -> RunStarted:
    facts = [("device", "cuda:0, bf16"), ("data", "2,000 images from " + "photos/" * 20), ("sigma", "0.08")]
    changes = [Difference("loss.kl.weight", 1.0, 2.5), Difference("data.max_images", None, 5)] if resumed else []
    return RunStarted(run_dir, 10 if resumed else 0, 200, 20, 64, resumed, facts, TERMS, changes)


def logged(step: int) -> LossesLogged:
    memory = Memory(2 << 30, 3 << 30, 4 << 30, 5 << 30, 80 << 30)
    return LossesLogged(step, {**LOSSES, "lr": 4e-4, "beta": 2.5, "rate.nats": 500.0}, 812.0, memory)


def validated(step: int, *, best: bool) -> Validated:
    distortion = {"loss.nll": -5067.2, "bits_per_dim": 7.4193}
    values = {"psnr": 24.31, "rate.nats": 512.3, "posterior.gap": 31.4, "active_units": 250.0, **distortion, **LOSSES}
    return Validated(step, step // 20, values, [1.0] * 256, best, True, 0 if best else 3, 10, 1.5)


def act(watcher: Observer, run_dir: Path, clock: Clock, *, resumed: bool = False) -> None:
    """A short run, from preparation to its end."""
    for done in range(0, 101, 10):
        watcher.phase("packing images", done, 100)
    watcher.notice("3 files could not be used: named in " + "a/" * 60)
    watcher.run_started(started(run_dir, resumed=resumed))
    for step in range(11 if resumed else 1, 201):
        clock.now += 2.0
        watcher.step_done(StepDone(step, 200, 20, 64))
        if step % 5 == 0:
            watcher.losses_logged(logged(step))
        if step % 20 == 0:
            watcher.validated(validated(step, best=step == 40))
    advice = ("look at the pictures: runs/x/samples",)
    watcher.run_finished(RunFinished("finished", run_dir, 200, {"psnr": 24.31}, 40, 400.0, None, "", 0, advice))


def plain_run(tmp_path: Path, *, resumed: bool = False) -> list[str]:
    clock, stream = Clock(), io.StringIO()
    act(RunLines(stream, clock), tmp_path, clock, resumed=resumed)
    return stream.getvalue().split("\n")


def assert_plain(lines: list[str]) -> None:
    for line in lines:
        assert line.isascii(), line
        assert line.isprintable(), line
        assert len(line) <= MAX_WIDTH or max(map(len, line.split())) > 50, line  # a long path is not broken


@pytest.mark.parametrize("mode", BOOK.modes)
def test_every_used_setting_is_shown_with_value_and_origin(mode: str) -> None:
    command_line = from_command_line({"--beta": 3.25}, ["data.source=" + "long/" * 30 + "photos.zip"])
    run = BOOK.compose(BOOK.mode(mode).presets, command_line)
    lines = config_lines(run)
    assert_plain(lines)
    text = "\n".join(lines)
    assert re.search(r"^\* kl\.weight \(beta\) +3\.25 +--beta$", text, re.M)
    for name, term in run.config.loss:
        if hasattr(term, "weight") and name != "kl":
            assert re.search(rf"^[* ] {name}\.weight +{term.weight}", text, re.M)
    for path, origin in run.origins.items():
        inner = path.partition(".")[2] or path
        if origin != "default" and path != "loss.kl.weight":
            assert re.search(rf"^\* {re.escape(inner)} ", text, re.M), path
        elif not path.startswith("loss."):
            assert re.search(rf"^  {re.escape(inner)} .* default$", text, re.M), path


def test_the_listing_is_plain() -> None:
    assert_plain(listing_lines(BOOK))


@pytest.mark.parametrize("resumed", [False, True])
def test_a_run_in_a_pipe_is_plain_and_complete(tmp_path: Path, resumed: bool) -> None:
    lines = plain_run(tmp_path, resumed=resumed)
    assert_plain(lines)
    text = "\n".join(lines)
    assert re.search(r"loss\.kl \(beta\) +2\.5 +1 +linear warm-up", text)
    for term in TERMS:
        assert re.search(rf"{re.escape(term.name)}.* {term.weight:g} ", text)
    assert ("settings changed since the checkpoint" in text) == resumed
    assert bool(re.search(r"loss\.kl\.weight +1\.0 +2\.5", text)) == resumed
    assert bool(re.search(r"data\.max_images +null +5", text)) == resumed
    assert "best validation PSNR 24.31 dB at step 40" in text
    assert "look at the pictures: runs/x/samples" in text


def test_an_epoch_line_has_everything(tmp_path: Path) -> None:
    lines = plain_run(tmp_path)
    place = next(n for n, line in enumerate(lines) if line.startswith("epoch 2/10"))
    text = " ".join(lines[place : place + 4])
    for part in (
        "PSNR 24.31 dB (best)",
        "KL 512.3 nats",
        "gap 31.4 nats",
        "NLL -5067 nats",
        "7.419 bits/dim",
        "active units 250/256",
        "val loss 1.25",
        "mse 0.008",
        "lr 0.0004",
    ):
        assert part in text
    for part in ("beta 2.5", "812 img/s", "3.0 used, 4.0 reserved, 5.0 peak of 80.0 GiB", "left", "patience 0/10"):
        assert part in text
    other = next(line for line in lines if line.startswith("epoch 3/10"))
    assert "best" not in other


@pytest.mark.parametrize(
    ("num_bad_epochs", "best", "ending"),
    [(0, True, "patience 0/10"), (1, False, "patience 1/10"), (1, True, "patience 1/10 (gain too small)")],
)
def test_a_best_with_too_small_a_gain_is_marked(num_bad_epochs: int, best: bool, ending: str) -> None:
    stream = io.StringIO()
    event = dataclasses.replace(validated(40, best=best), num_bad_epochs=num_bad_epochs)
    RunLines(stream, Clock()).validated(event)
    assert stream.getvalue().rstrip().endswith(ending)


def test_a_pipe_gets_a_line_per_epoch_and_per_half_minute(tmp_path: Path) -> None:
    lines = plain_run(tmp_path)
    assert sum(line.startswith("epoch ") for line in lines) == 10
    beats = [int(match.group(1)) for line in lines if (match := re.match(r"step (\d+)/200 ", line))]
    assert beats
    assert all(later - earlier >= 15 for earlier, later in itertools.pairwise(beats))  # 2 s a step
    assert sum("packing images" in line for line in lines) == 2


def test_beta_comes_first_and_weights_of_zero_are_shown(tmp_path: Path) -> None:
    lines = started_lines(started(tmp_path))
    assert "loss.kl (beta)" in lines[lines.index("objective: beta and all loss weights") + 2]
    assert any(re.search(r"loss\.lpips +0 +0 +off", line) for line in lines)


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    stream = io.StringIO()
    clock = Clock()
    watcher = RunLines(stream, clock)
    stream.close()
    act(watcher, tmp_path, clock)


def test_the_log_file_has_the_piped_lines_and_is_continued(tmp_path: Path) -> None:
    for resumed in (False, True):
        clock = Clock()
        log = LogFile("uv run train.py --mode quick_test")
        log.clock, log.time_left = clock, TimeLeft(clock)
        log._last_line = clock()
        log.show(["settings"])
        act(log, tmp_path, clock, resumed=resumed)
        log.close()
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").split("\n")
    heads = [n for n, line in enumerate(lines) if line.startswith("--- ")]
    assert len(heads) == 2
    assert all(lines[n].endswith("uv run train.py --mode quick_test") for n in heads)
    assert lines[1] == "settings"
    assert lines[2 : heads[1]] == plain_run(tmp_path)[:-1]


def test_a_log_that_cannot_be_opened_is_noted_once(tmp_path: Path) -> None:
    clock, stream = Clock(), io.StringIO()
    (tmp_path / "log.txt").mkdir()
    act(Observers([RunLines(stream, clock), LogFile("x")]), tmp_path, clock)
    assert stream.getvalue().count("log.txt cannot be written") == 1
    assert "run finished" in stream.getvalue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_the_log_and_not_the_run(tmp_path: Path) -> None:
    clock, stream, log = Clock(), io.StringIO(), LogFile("x")
    (tmp_path / "log.txt").symlink_to("/dev/full")
    act(Observers([RunLines(stream, clock), log]), tmp_path, clock)
    log.close()
    assert stream.getvalue().count("log.txt cannot be written (No space left on device)") == 1
    assert "run finished" in stream.getvalue()


def test_a_terminal_gets_the_lines_and_bars_and_is_left_clean(tmp_path: Path) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None, highlight=False)
    watcher, clock = TerminalProgress(console), Clock()
    watcher.clock, watcher.time_left = clock, TimeLeft(clock)
    act(watcher, tmp_path, clock)
    watcher.close()
    text = stream.getvalue()
    for part in ("epoch 2/10", "PSNR 24.31 dB (best)", "loss.kl (beta)", "run finished", "200/200"):
        assert part in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is shown again


# --- time left ---------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=200), st.integers(0, 1000))
def test_time_left_is_never_negative_and_right_for_an_even_pace(paces: list[float], target: int) -> None:
    clock = Clock()
    left = TimeLeft(clock)
    assert left.seconds_to(target) is None
    for step, seconds in enumerate(paces, 1):
        clock.now += seconds
        left.step(step)
    estimate = left.seconds_to(target)
    assert estimate is not None
    assert estimate >= 0
    assert min(paces) * 0.99 * max(target - len(paces), 0) <= estimate
    assert estimate <= max(paces) * 1.01 * max(target - len(paces), 0)


def test_the_first_step_does_not_slow_the_estimate() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    clock.now += 60
    for step in range(1, 11):
        left.step(step)
        clock.now += 1
    assert left.seconds_to(110) == pytest.approx(100)


def test_a_new_pace_is_believed_after_ten_minutes() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    for step in range(1, 2001):
        clock.now += 1 if step < 1000 else 10
        left.step(step)
    assert left.seconds_to(2100) == pytest.approx(1000)


def test_only_the_monotonic_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = types.SimpleNamespace(monotonic=console_module.time.monotonic)  # no time(): it would fail
    monkeypatch.setattr(console_module, "time", calls)
    left = TimeLeft(calls.monotonic)
    left.step(1)
    left.step(2)
    assert (left.seconds_to(3) or 0.0) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "--:--"), (0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (90061, "1d 1:01:01")]
)
def test_seconds_in_words(seconds: float | None, text: str) -> None:
    assert clock_text(seconds) == text


# --- layout ------------------------------------------------------------------------------------------

_WORDS = st.text("abc-/", min_size=1, max_size=20)


@given(st.lists(_WORDS, min_size=1, max_size=60))
def test_wrapping_loses_nothing(words: list[str]) -> None:
    for lines in (wrapped(" ".join(words), "  "), joined(words)):
        assert " ".join(lines).split() == words
        assert all(len(line) <= MAX_WIDTH for line in lines)


@given(st.lists(st.tuples(_WORDS, _WORDS, st.lists(_WORDS, min_size=1, max_size=30).map(" ".join)), min_size=1))
def test_a_table_keeps_its_words_and_its_columns(rows: list[tuple[str, str, str]]) -> None:
    lines = table(rows)
    assert " ".join(lines).split() == " ".join(" ".join(row) for row in rows).split()
    assert all(len(line) <= MAX_WIDTH for line in lines)
    start = 2 + max(len(row[0]) for row in rows) + 2
    firsts = [line for line in lines if line[2] != " "]
    assert len(firsts) == len(rows)
    assert all(line[start] != " " and line[start - 1] == " " for line in firsts)
