"""Several processes train as one: two on the CPU with gloo, from the fork server, and started by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.commands import ended, said_by, settings_file, started, started_together
from tests.helpers.runs import leftovers, outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun with gloo is tested on Linux")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(config, run_dir):
    """train_unified.py under torchrun."""
    return [sys.executable, *TORCHRUN, "train_unified.py", "--config", str(config), "--run-dir", str(run_dir)]


def train_rows(run_dir):
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == "train"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return settings_file(tmp_path_factory.mktemp("data"), {"training": {"epochs": 3, "log_every_steps": 1}})


@pytest.fixture(scope="module")
def of_two(config, tmp_path_factory):
    """The folder of a run of two processes that is left alone."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    assert [ended(process) for process in started_together(config, run_dir)] == [0, 0]
    return run_dir


def test_two_ranks_train_what_one_trains(config, of_two, tmp_path):
    assert ended(started(config, tmp_path / "one")) == 0
    one, two = train_rows(tmp_path / "one"), train_rows(of_two)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for name in ("loss.total", "loss.mse", "rate.nats", "gradient.norm"):
        # the first step to rounding; later ones to what Adam, which divides by small numbers, makes of rounding
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-5)
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=0.05)


def test_every_rank_but_the_first_keeps_silent(of_two):
    first, second = (said_by(of_two, rank).read_text() for rank in (0, 1))
    assert first.count("run started in") == 1 and "2 processes" in first
    assert "run started" not in second and "2 processes" not in second


@pytest.mark.slow
def test_torchrun_starts_the_same_run(config, of_two, tmp_path):
    words = command(config, tmp_path / "run")
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run started in") == 1 and "2 processes" in done.stdout
    assert outcome(tmp_path / "run") == outcome(of_two)


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_to_the_same_bits(config, of_two, tmp_path):
    for run_dir in (tmp_path / f"cut-{number}" for number in range(5)):
        cut = command(config, run_dir)
        process = subprocess.Popen(cut, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
        while not list(run_dir.glob("checkpoints/step-*")):
            assert process.poll() is None or list(run_dir.glob("checkpoints/step-*")), process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        if process.returncode != 0:  # else it was over before the signal came
            break
    assert process.returncode != 0
    assert subprocess.run(cut, capture_output=True, timeout=240, env=ENVIRONMENT, check=False).returncode == 0
    assert outcome(run_dir) == outcome(of_two)
    assert leftovers(run_dir) == []
