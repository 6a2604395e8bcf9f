"""Several processes train as one: started by torchrun, here two on the CPU with gloo."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.runs import SETTINGS, leftovers, merged, outcome, write_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun with gloo is tested on Linux")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(run_dir, source, ranks, *options):
    """train_unified.py, under torchrun where there are ranks."""
    settings = merged(
        SETTINGS, {"training": {"epochs": 3, "log_every_steps": 1}, "data": {"cache_dir": str(source.parent / "cache")}}
    )
    config = source.parent / "settings.json"
    config.write_text(json.dumps(settings))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks else []
    words = ["train_unified.py", "--data", str(source), "--config", str(config), "--run-dir", str(run_dir), *options]
    return [sys.executable, *launcher, *words]


def run(words):
    """Run a command to its end."""
    return subprocess.run(words, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, check=False)


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npy")


def trained(run_dir, source, ranks):
    """A run that is left alone."""
    process = run(command(run_dir, source, ranks))
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("run started in") == 1, "every rank but the first keeps silent"
    assert ("2 processes" in process.stdout) == (ranks == 2)
    return run_dir


@pytest.fixture(scope="module")
def of_two(source, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("two") / "run", source, 2)


def test_two_ranks_train_what_one_trains(source, of_two, tmp_path):
    of_one = trained(tmp_path / "one", source, 0)
    one, two = ([row for row in rows(run_dir) if row["split"] == "train"] for run_dir in (of_one, of_two))
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for name in ("loss.total", "loss.mse", "rate.nats", "gradient.norm"):
        # the first step to rounding; later ones to what Adam, which divides by small numbers, makes of rounding
        assert two[0][name] == pytest.approx(one[0][name], rel=1e-5)
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=0.05)


@pytest.mark.slow
def test_two_ranks_stop_together_and_go_on_to_the_same_bits(source, of_two, tmp_path):
    for run_dir in (tmp_path / f"cut-{number}" for number in range(5)):
        cut = command(run_dir, source, 2)
        process = subprocess.Popen(cut, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
        while not list(run_dir.glob("checkpoints/step-*")):
            assert process.poll() is None or list(run_dir.glob("checkpoints/step-*")), process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        if process.returncode != 0:  # else it was over before the signal came
            break
    assert process.returncode != 0
    assert run(cut).returncode == 0
    assert outcome(run_dir) == outcome(of_two)
    assert leftovers(run_dir) == []
