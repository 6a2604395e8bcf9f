"""Training in a process of one's own leaves it as it was: hooks, flags, threads, files and memory."""

import gc
import json
import os
import signal
import sys
import threading

import psutil
import pytest
import torch

from tests.helpers.runs import request, server, write_images
from unified_vae.pipeline.fit import fit

WARM_UP = 5  # runs after which the memory counts
MOST_GROWTH = 20e6  # bytes


def process_state():
    """What a library must not change."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
    cudnn = torch.backends.cudnn
    return {
        "threading.excepthook": repr(threading.excepthook),
        "sys.excepthook": repr(sys.excepthook),
        "signals": [str(signal.getsignal(getattr(signal, name))) for name in names if hasattr(signal, name)],
        "cudnn": [cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32],
        "deterministic": [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            getattr(torch.utils, "deterministic").fill_uninitialized_memory,  # noqa: B009  # a property of the module
        ],
        "torch": [
            str(torch.get_default_dtype()),
            torch.get_float32_matmul_precision(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_num_threads(),
        ],
        "random": torch.random.get_rng_state().sum().item(),
        "optimizer": sorted(vars(torch.optim.Optimizer.step)) + sorted(vars(torch.optim.Optimizer.zero_grad)),
        "environment": dict(os.environ),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "files": sorted(file.path for file in psutil.Process().open_files()),
    }


def train_often(folder, source, runs, answer):
    """In a process of its own: the state before the first and after each run, and the memory after each."""
    torch.set_num_threads(1)
    states, memory = [process_state()], []
    for number in range(runs):
        settings = {"max_steps": 6, "deterministic": number % 2 == 1}
        fit(request(folder / f"run-{number}", source, {"training": settings}), finalizers=())
        gc.collect()
        memory.append(psutil.Process().memory_info().rss)
        states.append(process_state())
    answer.write_text(json.dumps({"states": states, "memory": memory}))


@pytest.mark.skipif(sys.platform == "win32", reason="needs a fork server")
@pytest.mark.parametrize("runs", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_fit_leaves_the_process_as_it_was(tmp_path, runs):
    source = write_images(tmp_path / "images.npy")
    process = server().Process(target=train_often, args=(tmp_path, source, runs, tmp_path / "answer.json"))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    answer = json.loads((tmp_path / "answer.json").read_text())
    before, *after = answer["states"]
    assert len(after) == runs
    for state in after:
        assert state == before
    if runs > WARM_UP:
        growth = answer["memory"][-1] - answer["memory"][WARM_UP - 1]
        assert growth < MOST_GROWTH, [round(value / 1e6, 1) for value in answer["memory"]]
