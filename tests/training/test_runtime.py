"""Device, precision and signals: what is chosen, what is refused, in words."""

import os
import signal
import sys

import pytest
import torch

from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.training.control import TrainControl, handle_signals
from unified_vae.training.distributed import open_runtime

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@NO_GPU
def test_auto_is_the_cpu_in_fp32_where_there_is_nothing_better():
    with open_runtime("auto", "auto") as runtime:
        assert (runtime.device.type, runtime.dtype) in [("cpu", torch.float32), ("mps", torch.float32)]
        assert runtime.is_main and runtime.world_size == 1
        assert "fp32" in runtime.describe()


@NO_GPU
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(EnvironmentProblem, match="--device cpu"), open_runtime(device, "auto"):
        pass


def test_fp16_needs_a_gpu():
    with pytest.raises(ConfigError, match="bf16"), open_runtime("cpu", "fp16"):
        pass


def test_bf16_runs_the_network_in_bf16():
    with open_runtime("cpu", "bf16") as runtime, runtime.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_memory_is_counted():
    with open_runtime("cpu", "fp32") as runtime:
        memory = runtime.memory()
        assert memory.process > 10_000_000 and (memory.device_peak is None) == (runtime.device.type != "cuda")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP and no SIGUSR1")
def test_signals_set_flags_while_handled_and_only_then():
    before = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")}
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        control = TrainControl()
        with handle_signals(control):
            os.kill(os.getpid(), getattr(signal, name))
            assert control.stop_reason == name and not control.save_requested
    control = TrainControl()
    with handle_signals(control):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert control.save_requested and not control.stop_reason
    assert {name: signal.getsignal(getattr(signal, name)) for name in before} == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("heard", [True, False], ids=["heard", "whoever read what is said has gone"])
def test_a_second_interrupt_leaves_at_once(heard):
    child = os.fork()
    if child == 0:
        if not heard:
            read, write = os.pipe()
            os.dup2(write, 2)
            os.close(write)
            os.close(read)
        with handle_signals(TrainControl()):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
