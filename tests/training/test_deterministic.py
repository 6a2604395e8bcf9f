"""The same bits on request: kernels without them are refused, and a GPU's interrupted run ends as one left alone."""

import pytest
import torch

from tests.helpers.runs import Recorder, outcome, request, train
from unified_vae.core.errors import EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.training.distributed import open_runtime
from unified_vae.training.train_step import VAEStep

SAME_BITS = {"training": {"deterministic": True}}
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


class _Pulled(Exception):
    pass


class _Plug(Observer):
    """Ends a run at a step as if the plug were pulled: nothing more is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def step_done(self, event):
        if event.step == self.step:
            raise _Pulled


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_an_interrupted_run_ends_in_the_same_bits(device, source, tmp_path):
    settings = {**SAME_BITS, "device": device}
    train(request(tmp_path / "whole", source, settings), [Recorder()])
    for step in (4, 9):
        with pytest.raises(_Pulled):
            train(request(tmp_path / "cut", source, settings), [_Plug(step)])
    train(request(tmp_path / "cut", source, settings), [Recorder()])
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_the_mode_ends_with_the_run():
    with open_runtime("cpu", "fp32", deterministic=True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_part_without_such_a_kernel_is_refused_in_a_sentence(source, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("max_pool3d_backward_cuda does not have a deterministic implementation, but you set ...")

    monkeypatch.setattr(VAEStep, "__call__", fail)
    with pytest.raises(EnvironmentProblem, match=r"no deterministic kernel .*max_pool3d_backward_cuda"):
        train(request(tmp_path / "run", source, SAME_BITS), [Recorder()])
