"""The trainer is open: other networks, optimizers and loops are trained, killed and resumed to the same bits.

Everything that such a step needs is in this file; nothing of the package knows it.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.runs import Recorder, outcome, request, state_of, train, write_images
from tests.helpers.train_steps import CPU, optimizer_tensors, small_step, take
from unified_vae.config.loss import L1Config, LossConfig, MSEConfig
from unified_vae.config.model import ConvConfig
from unified_vae.config.optim import AdamWConfig, CosineLR
from unified_vae.config.training import CheckpointConfig, TrainingConfig
from unified_vae.core import checkpoint_format
from unified_vae.core.events import Observer
from unified_vae.core.retention import newest_good
from unified_vae.data.dataset import PackedSplit
from unified_vae.pipeline.build import build_vae_step
from unified_vae.pipeline.fit import INITIALIZERS
from unified_vae.training.checkpointer import Checkpointer, JsonState, OptimizerState
from unified_vae.training.loggers import MetricsLog
from unified_vae.training.memory import MicroBatches
from unified_vae.training.state import TrainSchedule, TrainState
from unified_vae.training.train_step import GradientUpdater, TrainStep, VAEStep, to_unit_range
from unified_vae.training.trainer import Trainer

EXTENDING = Path(__file__).parents[2] / "docs" / "extending.md"
STEPS, EVERY = 24, 4
KILLS = [3, 9, 18]  # one before the first save, two between saves


class Killed(BaseException):
    """Not an Exception, so that nothing takes care of it: only what is on the disk is left."""


class Kill(Recorder):
    """Ends a run after a step, counted from 1."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def step_done(self, event):
        if event.step == self.step:
            raise Killed


@pytest.fixture
def split(tmp_path):
    """44 packed training images of 16 px."""
    images = np.load(write_images(tmp_path / "images.npy"))
    images.tofile(tmp_path / "train.u8")
    return PackedSplit(tmp_path / "train.u8", images.shape, [f"row {number}" for number in range(len(images))])


# --- a second network with an optimizer of its own ---------------------------------------------------


class AdversarialStep:
    """An autoencoder and a discriminator of its reconstructions, whose weight follows their losses."""

    names = ("loss.error", "loss.adversarial", "loss.discriminator", "gradient.norm_discriminator", "gradient.norm")

    def __init__(self, runtime):
        self.runtime, self.weight = runtime, 0.1
        with torch.random.fork_rng():
            torch.manual_seed(0)
            layers = nn.Flatten(), nn.Linear(3 * 16**2, 8), nn.Linear(8, 3 * 16**2), nn.Unflatten(1, (3, 16, 16))
            self.autoencoder = nn.Sequential(*layers)
            self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16**2, 4), nn.SiLU(), nn.Linear(4, 1))
        self.micro_batches = MicroBatches(runtime, 2)
        self.optimizers = {
            "autoencoder": torch.optim.AdamW(self.autoencoder.parameters(), lr=1e-2, fused=True),
            "discriminator": torch.optim.SGD(self.discriminator.parameters(), lr=1e-2, momentum=0.9),
        }
        self.updaters = {
            name: GradientUpdater(runtime, [optimizer], getattr(self, name).parameters(), self.micro_batches, 1.0)
            for name, optimizer in self.optimizers.items()
        }

    @property
    def stateful(self):
        return {
            "model": self.autoencoder,
            "discriminator": self.discriminator,
            **{f"{name}_optimizer": OptimizerState([o], getattr(self, name)) for name, o in self.optimizers.items()},
            **{f"{name}_scaler": JsonState(updater.scaler) for name, updater in self.updaters.items()},
            "adversarial": JsonState(self),
        }

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]

    def __call__(self, batch, step):
        def discriminator_loss(images, num_micro_batches):
            with torch.no_grad():
                fake = self.autoencoder(images)
            loss = (F.softplus(-self.discriminator(images)) + F.softplus(self.discriminator(fake))).mean()
            return loss, loss.detach().reshape(1)

        def autoencoder_loss(images, num_micro_batches):
            fake = self.autoencoder(images)
            error, adversarial = F.mse_loss(fake, images), F.softplus(-self.discriminator(fake)).mean()
            return error + self.weight * adversarial, torch.stack([error, adversarial]).detach()

        images = [to_unit_range(self.runtime.to_device(batch.images))]
        judged, _ = self.updaters["discriminator"].apply_gradients(discriminator_loss, images)
        rebuilt, _ = self.updaters["autoencoder"].apply_gradients(autoencoder_loss, images)
        self.weight += 0.01 * (float(judged[0]) - self.weight)
        return torch.cat([rebuilt[:-1], judged, rebuilt[-1:]])

    def metrics_to_log(self, means, step):
        return {**means, "weight": self.weight}

    def find_non_finite(self, batch, step):
        return {}


def run_trainer(train_step: TrainStep, folder, split, observer):
    """Train from the newest checkpoint of a folder, if there is one, to the end."""
    schedule = TrainSchedule(seed=0, total_steps=STEPS, steps_per_epoch=6, batch_size=8, selection_start_step=0)
    training = TrainingConfig(
        optimizer=AdamWConfig(lr=1e-2),
        lr_schedule=CosineLR(),
        log_every_steps=3,
        checkpoint=CheckpointConfig(every_steps=EVERY),
    )
    folder.mkdir(exist_ok=True)
    checkpointer = Checkpointer(
        folder / "checkpoints",
        training.checkpoint,
        train_step.stateful,
        steps_per_epoch=schedule.steps_per_epoch,
        runtime=CPU,
        observer=observer,
        record={},
    )
    saved = newest_good(folder / "checkpoints", observer.notice)
    state = checkpointer.restore(saved) if saved else TrainState()
    log = MetricsLog(folder / "metrics.jsonl", state.metrics_rows, observer.notice)
    trainer = Trainer(
        train_step, schedule, training, split, state, checkpointer, runtime=CPU, observer=observer, metrics_log=log
    )
    with checkpointer:
        trainer.train()
    return train_step


def files(folder):
    """What has to be the same to the last bit: the newest checkpoint, the metrics."""
    newest = max((folder / "checkpoints").iterdir())
    tensors = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    return tensors | {"state": state_of(newest), "metrics": (folder / "metrics.jsonl").read_bytes()}


def test_a_discriminator_with_its_own_optimizer(split, tmp_path):
    run_trainer(AdversarialStep(CPU), tmp_path / "whole", split, Observer())
    for step in KILLS:
        torch.manual_seed(step)  # what another process would have
        with pytest.raises(Killed):
            run_trainer(AdversarialStep(CPU), tmp_path / "cut", split, Kill(step))
    resumed = run_trainer(AdversarialStep(CPU), tmp_path / "cut", split, Observer())
    result = files(tmp_path / "cut")
    assert result == files(tmp_path / "whole")
    assert {"discriminator.safetensors", "discriminator_optimizer.safetensors"} <= result.keys()
    assert result["state"]["adversarial"] == {"weight": resumed.weight} != {"weight": 0.1}
    fresh = AdversarialStep(CPU)
    for name in ("autoencoder", "discriminator"):
        before, after = getattr(fresh, name).state_dict(), getattr(resumed, name).state_dict()
        assert not any(torch.equal(before[key], after[key]) for key in before), "both are trained"
    assert resumed.optimizers["discriminator"].param_groups[0]["lr"] < 1e-3, "and both follow the schedule"


# --- optimizers with different state in one step -----------------------------------------------------


class MuonLike(torch.optim.Optimizer):
    """Normalized momentum for matrices; its state is a matrix, a vector of another dtype and Python numbers."""

    def __init__(self, parameters, lr, momentum=0.9):
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                state, gradient = self.state[parameter], parameter.grad.flatten(1)
                if not state:
                    state.update(momentum=torch.zeros_like(parameter.grad), steps=0, bias=1.0)
                    state["rows"] = torch.ones(len(gradient), dtype=torch.float64)
                state["steps"] += 1
                state["bias"] *= group["momentum"]
                state["rows"].lerp_(gradient.norm(dim=1).double(), 1 / (state["steps"] + 1))
                state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                scale = state["rows"].add(1e-3).view(-1, *[1] * (parameter.ndim - 1))
                parameter.sub_((group["lr"] / (1 - state["bias"]) * state["momentum"] / scale).float())


def with_muon(train_step: VAEStep) -> VAEStep:
    """The step with AdamW for vectors and tables of latents, and another optimizer for its convolutions."""
    parameters = [p for p in train_step.model.parameters() if p.requires_grad]
    train_step.optimizers = {
        "main": torch.optim.AdamW([p for p in parameters if p.ndim != 4], lr=3e-3, fused=True),
        "muon": MuonLike([p for p in parameters if p.ndim == 4], lr=1e-4),
    }
    train_step.updater.optimizers = list(train_step.optimizers.values())
    return train_step


def test_muon_and_adamw_with_different_state_in_one_step(tmp_path):
    def build(config, data, runtime):
        return with_muon(build_vae_step(config, data, runtime))

    source = write_images(tmp_path / "images.npy")
    change = {"training": {"max_steps": STEPS, "checkpoint": {"every_minutes": 60.0, "every_steps": EVERY}}}
    whole, cut = (request(tmp_path / name, source, change) for name in ("whole", "cut"))
    train(whole, build_step=build)
    for step in KILLS:
        with pytest.raises(Killed):
            train(cut, [Kill(step)], build_step=build)
    assert train(cut, build_step=build).outcome == "finished"
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    newest = checkpoint_format.load(tmp_path / "cut" / "checkpoints", STEPS)
    slots = {frozenset(slot for name, slot in keys) for keys in by_parameter(newest.tensors("optimizer")).values()}
    assert slots == {
        frozenset({"step", "exp_avg", "exp_avg_sq"}),
        frozenset({"momentum", "rows", "steps#int", "bias#float"}),
    }


def by_parameter(tensors):
    """(parameter, slot) pairs of an optimizer's state, by parameter."""
    keys = [tuple(key.rsplit("/", 1)) for key in tensors]
    return {name: [key for key in keys if key[0] == name] for name, _ in keys}


def test_nan_changes_neither_of_two_kinds_of_optimizers():
    model = ConvConfig(image_size=16, latents=4, base_channels=4, channels=3)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    loss = LossConfig(mse=MSEConfig(weight=1.0), l1=L1Config(weight=0.2))
    train_step = with_muon(small_step(model, loss, images))
    take(train_step, images, 0)
    before = {**train_step.model.state_dict(), **optimizer_tensors(train_step)}
    before = {name: value.clone() for name, value in before.items()}
    assert not torch.isfinite(take(train_step, images * float("nan"), 1)[-1])
    after = {**train_step.model.state_dict(), **optimizer_tensors(train_step)}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# --- a frozen encoder --------------------------------------------------------------------------------


def test_a_frozen_encoder(tmp_path):
    frozen = {"parameter_groups": [{"pattern": "encoder.*", "frozen": True}], "max_steps": STEPS}
    change = {"training": {**frozen, "checkpoint": {"every_minutes": 60.0, "every_steps": EVERY}}}
    source, start = write_images(tmp_path / "images.npy"), {}

    def remember(job):
        start.update({name: value.clone() for name, value in job.train_step.model.state_dict().items()})

    whole, cut = (request(tmp_path / name, source, change) for name in ("whole", "cut"))
    train(whole, initializers=[*INITIALIZERS, remember])
    for step in KILLS:
        with pytest.raises(Killed):
            train(cut, [Kill(step)])
    recorder = Recorder()
    assert train(cut, [recorder]).outcome == "finished"
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    newest = checkpoint_format.load(tmp_path / "cut" / "checkpoints", STEPS)
    for name, value in newest.tensors("model").items():
        assert not name.startswith("encoder.") or torch.equal(value, start[name]), name
    assert any(not torch.equal(value, start[name]) for name, value in newest.tensors("model").items())
    assert not [name for name in newest.tensors("optimizer") if name.startswith("encoder.")]
    assert "of them fixed" in dict(recorder.started[0].facts)["model"]


# --- a reason to stop ---------------------------------------------------------------------------------


def test_a_run_is_stopped_for_a_reason_and_resumed(tmp_path):
    class Budget(Recorder):
        """Stops the run after some steps, whatever a user's reason is."""

        def step_done(self, event):
            if event.step == 9:
                self.control.stop("the budget is spent")

    source, observer = write_images(tmp_path / "images.npy"), Budget()
    whole, cut = (request(tmp_path / name, source, {"training": {"epochs": 3}}) for name in ("whole", "cut"))
    train(whole)
    stopped = train(cut, [observer], prepare=lambda job: setattr(observer, "control", job.control))
    assert (stopped.outcome, stopped.step, stopped.exit_code) == ("interrupted", 9, 0)
    assert stopped.signal == "the budget is spent"
    train(cut)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


# --- a loop of one's own -----------------------------------------------------------------------------


def test_the_loop_in_the_docs(split, tmp_path, monkeypatch):
    section = EXTENDING.read_text(encoding="utf-8").split("## A loop of your own")[1].split("\n## ")[0]
    imports, loop = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(loop.splitlines()) <= 12
    call, last = VAEStep.__call__, [0]

    def killed(train_step, batch, step):
        if step == last[0]:
            raise Killed
        return call(train_step, batch, step)

    monkeypatch.setattr(VAEStep, "__call__", killed)
    model = ConvConfig(image_size=16, latents=4, base_channels=4, channels=3)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def run(folder, stop):
        last[0] = stop
        train_step = small_step(model, LossConfig(mse=MSEConfig(weight=1.0)), images)
        names = {"train_step": train_step, "images": split, "runtime": CPU, "folder": folder}
        exec(imports + loop, names)
        return names["state"].step

    steps = run(tmp_path / "whole", -1)
    for step in KILLS:
        with pytest.raises(Killed):
            run(tmp_path / "cut", step)
    assert run(tmp_path / "cut", -1) == steps > max(KILLS)
    newest = [max((tmp_path / name).iterdir()) for name in ("whole", "cut")]
    whole, cut = ({path.name: path.read_bytes() for path in folder.glob("*.safetensors")} for folder in newest)
    assert whole == cut and {"model.safetensors", "ema.safetensors", "optimizer.safetensors"} <= whole.keys()
