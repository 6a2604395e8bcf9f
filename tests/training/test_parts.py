"""The small parts of training: averaged weights, optimizer state, the metrics file, noise, the training state."""

import json
import math

import pytest
import torch
from torch import nn

from unified_vae.config.optim import AdamWConfig, SGDConfig
from unified_vae.core.errors import CheckpointError
from unified_vae.core.events import RolledBack, StepSkipped
from unified_vae.core.rng import fixed_noise, latent_noise
from unified_vae.optim.build import build_optimizers
from unified_vae.training.checkpointer import OptimizerState
from unified_vae.training.ema import EMA
from unified_vae.training.loggers import MetricsLog, SkippedLog, TimingLog
from unified_vae.training.state import TrainState

CPU = torch.device("cpu")


def small_model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_the_average_follows_its_formula():
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, decay=0.9)
    expected = model.weight.item()
    for step in range(1, 200):
        with torch.no_grad():
            model.weight += 0.1
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.item()
    assert ema.model.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_average_copies_buffers_and_never_trains():
    model = small_model()
    ema = EMA(model, decay=0.5)
    model(torch.randn(8, 3))
    ema.update(1)
    assert torch.equal(ema.model[1].num_batches_tracked, model[1].num_batches_tracked)
    assert torch.equal(ema.model[1].running_mean, model[1].running_mean)
    assert not any(p.requires_grad for p in ema.model.parameters()) and not ema.model.training


def test_no_decay_means_the_weights_themselves():
    model = small_model()
    ema = EMA(model, decay=0.0)
    with torch.no_grad():
        model[0].weight += 1
    ema.update(1)
    assert torch.equal(ema.model[0].weight, model[0].weight)


@pytest.mark.parametrize("config", [AdamWConfig(weight_decay=0.1), SGDConfig()])
def test_a_restored_optimizer_takes_the_same_next_step(config):
    def steps(model, optimizer, count):
        for number in range(count):
            optimizer.zero_grad()
            model(torch.full((4, 3), float(number)) + torch.arange(12.0).view(4, 3)).square().sum().backward()
            optimizer.step()

    first = small_model()
    first_optimizer = build_optimizers(config, first, fused=True)["main"]
    steps(first, first_optimizer, 3)
    tensors = OptimizerState([first_optimizer], first).state_dict()
    saved = {name: value.clone() for name, value in tensors.items()}
    second = small_model()
    second.load_state_dict(first.state_dict())
    second_optimizer = build_optimizers(config, second, fused=True)["main"]
    OptimizerState([second_optimizer], second).load_state_dict(saved)
    steps(first, first_optimizer, 2)
    steps(second, second_optimizer, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_another_model_s_optimizer_state_is_refused():
    model = small_model()
    state = OptimizerState(build_optimizers(AdamWConfig(), model, fused=True).values(), model)
    with pytest.raises(CheckpointError, match="other"):
        state.load_state_dict({"other.weight/exp_avg": torch.zeros(1)})


def test_the_metrics_file_is_cut_to_the_kept_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0, print)
    for step in range(5):
        log.write("train", step, step / 3, {"loss": 0.1 * step})
    log.close()
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    with path.open("ab") as file:
        file.write(b'{"split": "tr')  # a row cut by the kill
    again = MetricsLog(path, 3, print)
    assert again.rows == 3 and path.read_bytes() == b"".join(kept)
    again.write("train", 3, 1.0, {"loss": 0.3})
    again.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_the_file_of_skipped_steps_is_cut_to_complete_rows(tmp_path):
    path = tmp_path / "skipped.jsonl"
    log = SkippedLog(path, 0)
    for step in (3, 5, 8):
        log.step_skipped(StepSkipped(step, 0, 0, ["loss.mse"], ["a.png"]))
    whole = path.read_bytes().splitlines(keepends=True)
    SkippedLog(path, 2)
    assert path.read_bytes() == b"".join(whole[:2])
    path.write_bytes(b"".join(whole)[:-4])  # the last row is cut by the kill
    SkippedLog(path, 3)
    assert path.read_bytes() == b"".join(whole[:2])


def test_the_timing_file_is_cut_by_step_and_loses_broken_rows(tmp_path):
    path = tmp_path / "timing.jsonl"
    path.write_text('{"step": 1}\n[]\n{"step": "x"}\n{"other": 1}\n{"step": 4}\n{"step": 5}\n{"st')
    TimingLog(path).rolled_back(RolledBack(4))
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'


def test_noise_depends_on_seed_and_step_and_not_on_ranks():
    whole = latent_noise(1, 5, 8, 3, 0, 1, CPU)
    shares = [latent_noise(1, 5, 8, 3, rank, 4, CPU) for rank in range(4)]
    assert torch.equal(whole, torch.cat(shares))
    assert not torch.equal(whole, latent_noise(1, 6, 8, 3, 0, 1, CPU))
    assert not torch.equal(whole, latent_noise(2, 5, 8, 3, 0, 1, CPU))
    assert torch.equal(fixed_noise(1, "a", 4, 3, CPU), fixed_noise(1, "a", 4, 3, CPU))


def test_training_state_survives_json_bit_for_bit():
    state = TrainState(step=7, best_psnr=1 / 3, log_sums={"x": 0.1 + 0.2}, log_count=2)
    assert TrainState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False))) == state
    state.plateau.best = 21.123456789
    assert TrainState.from_json(json.loads(json.dumps(state.to_json()))) == state


def test_patience_counts_validations_without_gain():
    state = TrainState()
    seen = [(state.update_best(psnr, 0.1), state.num_bad_epochs) for psnr in (20.0, 20.05, 20.2, 19.0)]
    assert seen == [(True, 0), (True, 1), (True, 0), (False, 1)]
    assert state.best_psnr == 20.2
    assert math.isinf(TrainState().plateau.best)
