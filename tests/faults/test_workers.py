"""Loader processes that are killed, stopped or cannot read: replaced a few times, then the run is saved; no hang."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from figures import report
from lives import Recorder, outcome, request, server, write_images

from unified_vae.config.data import DataConfig
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.data import loader
from unified_vae.data.loader import LoadingFailed, load
from unified_vae.data.open import open_data
from unified_vae.data.order import Order
from unified_vae.data.packing.packed import PackedSplit

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
STEPS, WORKERS = range(3, 40), 2
SILENCE = 2.0  # seconds, in place of 45


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images.npy")


@pytest.fixture
def split(source: Path, tmp_path: Path) -> PackedSplit:
    return open_data(DataConfig(source=str(source), cache_dir=str(tmp_path / "cache")), 16, None, lambda *_: None).train


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(loader, "SILENCE_SECONDS", SILENCE)


def loaders() -> list[int]:
    """The numbers of this process's living loader processes."""
    return [child.pid for child in multiprocessing.active_children() if child.name == "loader"]


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it went between the two questions
        return True


def disturbed(split: PackedSplit, disturb: Callable[[int], None]) -> tuple[list[np.ndarray], list[str]]:
    """All batches, `disturb` called with their number before each is asked for, and the lines that were told."""
    lines: list[str] = []
    batches = load(split, Order(7, len(split), 8), STEPS, WORKERS, lines.append)
    found = []
    for number in range(len(STEPS)):
        disturb(number)
        found.append(next(batches))
    assert next(batches, None) is None
    return found, lines


def expected(split: PackedSplit) -> Iterator[np.ndarray]:
    order = Order(7, len(split), 8)
    return (np.asarray(split.images)[order.indices(step)] for step in STEPS)


def same(found: list[np.ndarray], split: PackedSplit) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected(split), strict=True))


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "was killed by SIGKILL"), (signal.SIGSTOP, "was silent")]
)
def test_a_killed_or_stopped_process_is_replaced(split, impatient, number, words) -> None:
    def disturb(batch: int) -> None:
        if batch == 5:
            os.kill(loaders()[0], number)

    found, lines = disturbed(split, disturb)
    assert same(found, split)
    assert lines and all(words in line and "the result is the same" in line for line in lines), lines
    assert not loaders()


def test_neither_the_group_s_signals_nor_a_death_disturb(split) -> None:
    """Ctrl-C and a scheduler's SIGUSR1 go to all processes of the group; DataLoader raises wherever the main one is."""

    def disturb(batch: int) -> None:
        if batch == 5:
            for process in loaders():
                for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    os.kill(process, number)
        if batch == 15:
            for process in loaders():
                os.kill(process, signal.SIGKILL)
            time.sleep(0.5)

    found, lines = disturbed(split, disturb)
    assert same(found, split) and len(lines) == 1
    assert "killed by SIGKILL" in lines[0]


def test_after_so_many_failures_loading_is_given_up(split, monkeypatch) -> None:
    monkeypatch.setattr(loader, "RESTARTS", 1)

    def disturb(batch: int) -> None:
        for process in loaders()[:1]:
            os.kill(process, signal.SIGKILL)

    with pytest.raises(LoadingFailed, match=r"failed 2 times.*killed by SIGKILL"):
        disturbed(split, disturb)
    assert not loaders()


def test_a_process_that_cannot_read_says_why(split, monkeypatch) -> None:
    monkeypatch.setattr(loader, "RESTARTS", 0)
    split.path.rename(split.path.with_name("elsewhere"))
    with pytest.raises(LoadingFailed, match=r"failed \(FileNotFoundError: .*train\.u8"):
        disturbed(split, lambda _: None)
    assert not loaders()


def _until(there: Callable[[], object], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not there() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(there())


class Wounder(Recorder):
    """Sends a signal to a loader process at some steps."""

    def __init__(self, number: int, steps: tuple[int, ...]) -> None:
        super().__init__()
        self.number, self.steps = number, steps

    def step_done(self, event) -> None:
        for process in loaders()[:1] if event.step in self.steps else []:
            os.kill(process, self.number)


def _wounded_life(some, number: int, steps: tuple[int, ...], told) -> None:
    """A run whose first loader process gets a signal at some steps; the notices are put into `told`."""
    import torch

    from unified_vae.experiment.fitting.fit import fit

    torch.set_num_threads(1)
    loader.SILENCE_SECONDS, loader.RESTARTS = SILENCE, 1
    seen = Wounder(number, steps)
    try:
        code = fit(some, [seen]).exit_code
    except EnvironmentProblem as problem:
        seen.notices.append(str(problem))
        code = problem.exit_code
    told.put(seen.notices)
    raise SystemExit(code)


def wounded(some, number: int, steps: tuple[int, ...]) -> tuple[int, list[str]]:
    told = server().Queue()
    process = server().Process(target=_wounded_life, args=(some, number, steps, told))
    process.start()
    notices = told.get(timeout=300)
    process.join(60)
    return process.exitcode, notices


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert wounded(request(run_dir, source), 0, ())[0] == 0
    return run_dir


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_goes_on_to_the_same_bits(source, undisturbed, tmp_path, number) -> None:
    some = request(tmp_path / "run", source, {"data": {"workers": WORKERS}})
    code, notices = wounded(some, number, (4,))
    assert code == 0
    assert sum("a loader process" in notice for notice in notices) == 1, notices
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_a_run_that_cannot_load_saves_and_says_so(source, undisturbed, tmp_path) -> None:
    some = request(
        tmp_path / "run", source, {"data": {"workers": WORKERS}, "training": {"checkpoint": {"every_minutes": 1e3}}}
    )
    code, notices = wounded(some, signal.SIGKILL, tuple(range(3, 12)))
    assert code == 3
    stopped = re.search(r"could not be loaded after step (\d+) .*data\.workers=0", notices[-1])
    assert stopped, notices[-1]
    saved = max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == f"step-{int(stopped[1]):09d}" and int(stopped[1]) >= 3
    assert (
        wounded(request(tmp_path / "run", source, {"training": {"checkpoint": {"every_minutes": 1e3}}}), 0, ())[0] == 0
    )
    assert outcome(tmp_path / "run")["model/model.safetensors"] == outcome(undisturbed)["model/model.safetensors"]


def _long_life(split: PackedSplit, told) -> None:
    batches = load(split, Order(7, len(split), 8), range(10**6), WORKERS, told.put)
    next(batches)
    told.put(loaders())
    time.sleep(60)


@pytest.mark.figure
def test_a_killed_main_process_leaves_no_orphans(split) -> None:
    told = server().Queue()
    process = server().Process(target=_long_life, args=(split, told))
    process.start()
    orphans = [psutil.Process(pid) for pid in told.get(timeout=60)]
    assert len(orphans) == WORKERS
    process.kill()
    begun = time.monotonic()
    assert _until(lambda: all(map(gone, orphans)), 20)
    report(
        fault="main process killed with 2 loader processes",
        target="0 orphans",
        result=f"0 orphans after {time.monotonic() - begun:.1f} s",
    )


def test_the_real_patience_is_within_a_minute() -> None:
    assert max(loader.SILENCE_SECONDS, loader.START_SECONDS) + loader._END_SECONDS < 60


_IN_A_FULL_PLACE = """
import sys, tempfile
from pathlib import Path
from unified_vae.data import loader
from unified_vae.data.order import Order
from unified_vae.data.packing.packed import PackedSplit

# not below `if __name__ == "__main__"`: a script without it has to do as well
loader.RESTARTS, path = 1, Path(sys.argv[1])
split = PackedSplit(path, (40, 64, 64, 3), [""] * 40)
try:
    found = list(loader.load(split, Order(7, 40, 8), range(6), 2, print))
    order = Order(7, 40, 8)
    print(all((pixels == split.images[order.indices(step)]).all() for step, pixels in enumerate(found)))
except loader.LoadingFailed as failure:
    print("failed:", failure)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")
@pytest.mark.parametrize(("full", "words"), [("/dev/shm", "True"), ("/dev/shm /tmp", "killed by SIGBUS")])
def test_memory_for_sharing_that_is_full(full: str, words: str, tmp_path: Path) -> None:
    """Where /dev/shm is full, another place is taken; where all are, the processes' end is noticed and told."""
    if any(Path(sys.executable).absolute().is_relative_to(place) for place in full.split()):
        pytest.skip("the interpreter itself lies in the place that is to be full")
    np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8).tofile(tmp_path / "train.u8")
    (tmp_path / "script.py").write_text(_IN_A_FULL_PLACE)
    mounts = " && ".join(f"mount -t tmpfs -o size=64k full {place}" for place in full.split())
    keep = f"mount --bind {tmp_path} /mnt && {mounts}"
    line = f"{keep} && exec {sys.executable} /mnt/script.py /mnt/train.u8"
    command = ["unshare", "--mount", "sh", "-c", line]
    if subprocess.run(["unshare", "--mount", "sh", "-c", keep], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    assert words in done.stdout, done.stdout + done.stderr
