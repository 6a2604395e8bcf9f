"""How a step is computed: what `auto` takes, when it measures, and that a continued run keeps it."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from tests.helpers.runs import Recorder, merged, outcome, request, train, write_images
from unified_vae.config.run import RunConfig, RunRecord
from unified_vae.config.training import TrainingConfig
from unified_vae.core.run_dir import RunFolder
from unified_vae.pipeline import autotune
from unified_vae.pipeline.autotune import LONG_SECONDS, LONG_STEPS, choose_compile, with_kernels
from unified_vae.pipeline.build import ResolvedConfig
from unified_vae.pipeline.resume import differences
from unified_vae.training.distributed import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
GPU = Runtime(torch.device("cuda"), torch.bfloat16)  # said, never used: the trial below answers for it


class Trial:
    """Answers instead of a device, and keeps its calls."""

    def __init__(self, plain, compiled=None):
        self.seconds = {False: plain, True: compiled}
        self.calls = []

    def __call__(self, compiled):
        self.calls.append(compiled)
        return self.seconds[compiled]


def resumed(requested, recorded):
    """Memory format and compilation of a run that goes on."""
    data = SimpleNamespace(train=range(6400))
    resolved = ResolvedConfig(RunConfig(training=requested), (), {})
    training = with_kernels(resolved, data, GPU, recorded, Recorder()).config.training
    return training.memory_format, training.compile


@pytest.mark.parametrize(("runtime", "steps"), [(CPU, 10**6), (GPU, LONG_STEPS - 1)])
def test_a_cpu_and_a_short_run_measure_nothing(runtime, steps):
    trial = Trial(0.1, 0.05)
    assert not choose_compile(False, runtime, steps, trial)[0] and trial.calls == []


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (torch.bfloat16, "cuda", "channels_last"),
        (torch.float32, "cuda", "contiguous"),
        (torch.bfloat16, "cpu", "contiguous"),
    ],
)
def test_a_gpu_computes_in_16_bits_channels_last(dtype, device, expected):
    resolved = ResolvedConfig(RunConfig(training=TrainingConfig(compile=False)), (), {})
    result = with_kernels(resolved, None, Runtime(torch.device(device), dtype), None, Recorder())
    assert result.config.training.memory_format == expected
    assert device in result.reasons["training.memory_format"]


@pytest.mark.parametrize(("compiled", "expected"), [(0.08, True), (0.099, False), (None, False)])
def test_a_long_run_compiles_where_that_is_faster(compiled, expected):
    trial = Trial(0.1, compiled)
    assert choose_compile(False, GPU, int(LONG_SECONDS / 0.1) + 1, trial)[0] == expected
    assert trial.calls == [False, True]


def test_a_run_of_minutes_says_that_it_does_not_compile():
    trial = Trial(0.1)
    compiled, reason = choose_compile(False, GPU, int(LONG_SECONDS / 0.1) - 1, trial)
    assert not compiled and trial.calls == [False]
    assert reason == "auto: a run of about 20 min is too short to repay compiling"


@pytest.mark.parametrize(
    ("deterministic", "steps", "trial", "why"),
    [
        (True, 10**6, Trial(0.1), "training.deterministic"),
        (False, 10**6, Trial(None), "not enough memory"),
        (False, 10**6, Trial(0.1, None), "not enough memory"),
        (False, 999, Trial(0.1), "999 steps do not repay a trial"),
    ],
)
def test_the_record_says_why_a_run_is_not_compiled(deterministic, steps, trial, why):
    compiled, reason = choose_compile(deterministic, GPU, steps, trial)
    assert not compiled and why in reason and "too short" not in reason


def test_compiled_and_deterministic_exclude_each_other():
    with pytest.raises(ValidationError, match=r"training\.compile=true .* leave one of them out"):
        TrainingConfig(compile=True, deterministic=True)
    recorded = TrainingConfig(memory_format="channels_last", compile=True)
    assert resumed(TrainingConfig(deterministic=True), recorded) == ("channels_last", False)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (TrainingConfig(), ("contiguous", False)),  # before there was a choice
        (TrainingConfig(memory_format="channels_last", compile=True), ("channels_last", True)),
    ],
)
def test_a_resumed_run_measures_nothing(recorded, expected, monkeypatch):
    monkeypatch.setattr(autotune, "_seconds_per_step", lambda *_: pytest.fail("a step was timed"))
    assert resumed(TrainingConfig(epochs=10**6), recorded) == expected
    requested = TrainingConfig(memory_format="channels_last", compile=False)
    assert resumed(requested, recorded) == ("channels_last", False), "what is requested now is taken"


def test_what_is_asked_for_is_taken():
    assert resumed(TrainingConfig(memory_format="contiguous", compile=True), None) == ("contiguous", True)


def test_a_resumed_run_keeps_channels_last_bit_exactly(tmp_path):
    """Its record has what `auto` came to; here the settings of the first start stand for a GPU's measurement."""
    torch.set_num_threads(1)
    source = write_images(tmp_path / "images.npy")
    short = {"training": {"epochs": 2}}
    channels_last = merged(short, {"training": {"memory_format": "channels_last"}})
    train(request(tmp_path / "whole", source, channels_last), [Recorder()])
    train(request(tmp_path / "cut", source, channels_last), [_StopAt(7)])
    train(request(tmp_path / "cut", source, short), [Recorder()])
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    train(request(tmp_path / "other", source, short), [Recorder()])
    assert outcome(tmp_path / "other") != outcome(tmp_path / "whole")
    folder = RunFolder(tmp_path / "cut")
    record = RunRecord.from_json(json.loads(folder.config.read_text(encoding="utf-8")), folder.root)
    assert record.resolved.training.memory_format == "channels_last"
    assert record.resolved.training.compile is False
    assert differences(record, request(tmp_path / "cut", source, short).run.config) == []


class _StopAt(Recorder):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def step_done(self, event):
        if event.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
