"""A stop of the real command while Python starts, torch is imported, images are packed, and in a validation."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.faults.fault_rows import report
from tests.helpers.commands import ended, said_by, settings_file, started
from tests.helpers.runs import leftovers, merged, outcome, state_of
from unified_vae.core.retention import saved_steps

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and a fork server")
SCRIPT = Path(__file__).parents[2] / "train_unified.py"
PATIENCE_SECONDS = 300
SIDE = 300
IMAGES = 250  # most of them to validate on, so that this takes as long as the steps
CHANGE = {
    "training": {"epochs": 3, "log_every_steps": 1000, "checkpoint": {"every_minutes": 10.0}},
    "data": {"validation_fraction": 0.9},
}


def _pictures(folder: Path) -> Path:
    """PNG files that take seconds to pack."""
    folder.mkdir()
    for number in range(IMAGES):
        ramp = Image.linear_gradient("L").rotate(number % 360).resize((SIDE, SIDE))
        plain = Image.new("L", ramp.size, number % 256)
        Image.merge("RGB", [ramp, plain, ramp]).save(folder / f"{number}.png", compress_level=1)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return _pictures(tmp_path_factory.mktemp("data") / "pictures")


def _settings(folder: Path, pictures: Path) -> Path:
    """Settings of a run with a cache of its own, so that the images are packed anew."""
    folder.mkdir()
    own = {"data": {"source": str(pictures), "cache_dir": str(folder / "cache")}}
    return settings_file(folder, merged(CHANGE, own))


_HELD = """
import runpy, sys, time
from pathlib import Path
from unified_vae.training import validation

inside, further, batches = Path(sys.argv[1]), Path(sys.argv[2]), validation.validation_batches

def held(*given, **named):
    for number, batch in enumerate(batches(*given, **named)):
        if number == 1:
            inside.touch()
            while not further.exists():
                time.sleep(0.01)
        yield batch

validation.validation_batches, sys.argv = held, sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The command, but its validations wait in their second batch until a file is there: however fast the machine is."""


class _Command:
    """The real command in a process of its own; what it says goes to a file.

    Attributes:
        inside: a file that is there as soon as a validation has begun, where `held`.
        further: another, which it then waits for.
    """

    def __init__(self, config: Path, run_dir: Path, held: bool = False) -> None:
        self.said = run_dir.with_name(f"{run_dir.name}.said")
        self.said.write_bytes(b"")
        self.inside, self.further = (self.said.with_suffix(f".{name}") for name in ("inside", "further"))
        for file in (self.inside, self.further):
            file.unlink(missing_ok=True)
        before = ["-c", _HELD, str(self.inside), str(self.further)] if held else []
        words = [sys.executable, *before, str(SCRIPT), "--config", str(config), "--run-dir", str(run_dir)]
        with self.said.open("ab") as out:
            self.process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def says(self, part: str) -> bool:
        return part in self.said.read_text()

    def stopped(self, when: Callable[[], bool], name: str) -> int:
        """Send the signal when it is time; the exit code."""
        limit = time.monotonic() + PATIENCE_SECONDS
        while not when():
            assert self.process.poll() is None and time.monotonic() < limit, self.said.read_text()
            time.sleep(0.001)
        self.process.send_signal(getattr(signal, name))
        self.further.touch()
        try:
            return self.process.wait(PATIENCE_SECONDS)
        finally:
            self.process.kill()


def _rows(run_dir: Path, split: str) -> list[int]:
    """Steps of the metrics file."""
    path = run_dir / "metrics.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [entry["step"] for entry in entries if entry["split"] == split]


def _in_python(config: Path, run_dir: Path, name: str) -> int:
    """Before the first line of ours: the system's way."""
    for _ in range(5):
        command = _Command(config, run_dir)
        code = command.stopped(lambda: True, name)
        if not command.said.read_text():  # else we were late, and it was there to say something
            break
    return code


def _in_the_import(config: Path, run_dir: Path, name: str) -> int:
    command = _Command(config, run_dir)
    code = command.stopped(lambda: command.says("settings"), name)  # shown last before torch is loaded
    assert not command.says("Traceback")
    return code


def _in_packing(config: Path, run_dir: Path, name: str) -> int:
    command = _Command(config, run_dir)
    code = command.stopped(lambda: command.says("packing images"), name)
    assert not command.says("Traceback") and not command.says("run started")
    return code


def _in_validation(config: Path, run_dir: Path, name: str) -> int:
    """The first validation of three: it is finished, and saved."""
    command = _Command(config, run_dir, held=True)
    code = command.stopped(command.inside.exists, name)
    assert not command.says("Traceback")
    (step,) = _rows(run_dir, "train")
    assert saved_steps(run_dir / "checkpoints")[0] == step
    assert state_of(run_dir / "checkpoints" / f"step-{step:09d}")["train"]["validated_step"] == step
    assert _rows(run_dir, "validation") == [step]
    return code


PHASES = {
    "Python's start": _in_python,
    "import of torch": _in_the_import,
    "packing": _in_packing,
    "validation": _in_validation,
}


def _code(phase: str, name: str) -> int:
    """Once its handlers are up, 128 + number; those of SIGHUP are the loop's, which has something to save."""
    number = int(getattr(signal, name))
    ours = phase == "validation" or (phase != "Python's start" and name != "SIGHUP")
    return 128 + number if ours else -number


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("SIGTERM",), marks=pytest.mark.slow),
        pytest.param(("SIGTERM", "SIGINT", "SIGHUP"), marks=pytest.mark.long),
    ],
    ids=["one", "all"],
)
def test_a_stop_in_each_phase_and_on_to_the_same_bits(names, pictures, tmp_path) -> None:
    """One folder goes through all of them: each start takes up what the stop before it left."""
    tried = 0
    for name in names:
        folder = tmp_path / name
        config = _settings(folder, pictures)
        for phase, stop in PHASES.items():
            if (phase, name) == ("Python's start", "SIGINT"):  # of which Python itself makes what it likes
                continue
            assert stop(config, folder / "run", name) == _code(phase, name), (phase, name)
            tried += 1
        assert ended(started(config, folder / "run")) == 0, said_by(folder / "run").read_text()
        assert ended(started(config, folder / "undisturbed")) == 0
        assert outcome(folder / "run") == outcome(folder / "undisturbed")
        assert leftovers(folder) == []
    report(
        fault=f"{', '.join(names)} during Python's start, import, packing, validation",
        target="exit code 128 + number, resumable",
        result=f"{tried} of {tried} codes; {len(names)} of {len(names)} runs bit-identical",
    )
