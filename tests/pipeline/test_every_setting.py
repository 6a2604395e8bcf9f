"""Every field of a run's config changes what the run does. A field that reaches nothing fails here."""

import hashlib
import json
import re

import pytest
import torch

from tests.helpers.runs import Recorder, merged, request, train, write_images
from unified_vae.core.errors import EnvironmentProblem

BASE = {
    "training": {"epochs": 3, "checkpoint": {"every_minutes": 100.0}, "samples": {"every_epochs": 3}},
    "loss": {"l1": {"weight": 0.1}},
    "model": {"latents": 1},  # for which these images are not few
    "data": {"augment": {"horizontal_flip": False}},
    "density": {"fit": "normal"},
}
RAMP = {"kind": "linear", "warmup": 0.9, "start": 0.2}


def constrained(**settings):
    return {"loss": {"kl": {"constraint": settings}}}


CAPACITY = constrained(kind="capacity", capacity=40.0)
SHARP, VAGUE = constrained(kind="geco", psnr=45.0), constrained(kind="geco", psnr=5.0)

LEARNS = {"model": {"latents": 4}}  # each epoch is better than the one before

# dotted path -> the value it is changed to, and what else has to be so for it to matter
CHANGES = {
    "seed": (1, {}),
    "loss.mse.weight": (0.5, {}),
    "loss.mse.schedule": (RAMP, {}),
    "loss.l1.weight": (0.0, {}),
    "loss.l1.schedule": (RAMP, {}),
    "loss.charbonnier.weight": (0.1, {}),
    "loss.charbonnier.schedule": (RAMP, {"loss": {"charbonnier": {"weight": 0.1}}}),
    "loss.charbonnier.epsilon": (0.005, {"loss": {"charbonnier": {"weight": 0.1}}}),
    "loss.laplacian.weight": (0.1, {}),
    "loss.laplacian.schedule": (RAMP, {"loss": {"laplacian": {"weight": 0.1}}}),
    "loss.focal_frequency.weight": (0.1, {}),
    "loss.focal_frequency.schedule": (RAMP, {"loss": {"focal_frequency": {"weight": 0.1}}}),
    "loss.focal_frequency.alpha": (2.0, {"loss": {"focal_frequency": {"weight": 0.1}}}),
    "loss.perceptual.weight": (0.1, {}),
    "loss.perceptual.schedule": (RAMP, {"loss": {"perceptual": {"weight": 0.1}}}),
    "loss.lpips.weight": (0.1, {}),
    "loss.lpips.schedule": (RAMP, {"loss": {"lpips": {"weight": 0.1}}}),
    "loss.haarpsi.weight": (0.1, {}),
    "loss.haarpsi.schedule": (RAMP, {"loss": {"haarpsi": {"weight": 0.1}}}),
    "loss.ms_ssim.weight": (0.1, {}),
    "loss.ms_ssim.schedule": (RAMP, {"loss": {"ms_ssim": {"weight": 0.1}}}),
    "loss.kl.weight": (0.5, {}),
    "loss.kl.reduction": ("mean_sum", {}),
    "loss.kl.schedule": ({"kind": "cyclical", "cycles": 2, "ramp": 0.7}, {}),
    "loss.kl.constraint": ({"kind": "geco"}, {}),
    "loss.kl.constraint.nats_per_unit": (30.0, constrained(kind="free_bits")),
    "loss.kl.constraint.capacity": (3.0, CAPACITY),
    "loss.kl.constraint.initial_capacity": (20.0, CAPACITY),
    "loss.kl.constraint.warmup": (1.0, CAPACITY),
    "loss.kl.constraint.psnr": (20.0, SHARP),
    "loss.kl.constraint.speed": (0.1, SHARP),
    "loss.kl.constraint.min_beta": (1.9, SHARP),
    "loss.kl.constraint.max_beta": (2.1, VAGUE),
    "loss.calibration.decay": (0.1, {}),
    "training.epochs": (2, {}),
    "training.batch_size": (11, {}),
    "training.gradient_accumulation_steps": (4, {}),
    "training.max_steps": (7, {}),
    "training.precision": ("bf16", {}),
    "training.memory_format": ("channels_last", {}),
    "training.optimizer": ({"kind": "sgd", "lr": 3e-3}, {}),
    "training.parameter_groups": ([{"pattern": "encoder.*", "frozen": True}], {}),
    "training.lr_schedule": ({"kind": "plateau", "warmup": 0.5, "patience": 1}, {}),
    "training.max_grad_norm": (0.01, {"training": {"optimizer": {"kind": "sgd", "lr": 3e-3}}}),
    "training.ema_decay": (0.1, {}),
    "training.validate_every_epochs": (2, {}),
    "training.log_every_steps": (2, {}),
    "training.early_stopping.patience": (1, {"training": {"early_stopping": {"min_delta": 50.0}}}),
    "training.early_stopping.min_delta": (50.0, {"training": {"early_stopping": {"patience": 1}}, **LEARNS}),
    "training.checkpoint.keep_last": (3, LEARNS),
    "training.checkpoint.keep_every_epochs": (1, {}),
    "training.checkpoint.every_minutes": (1e-6, {"training": {"checkpoint": {"keep_last": 100}}}),
    "training.checkpoint.every_steps": (1, {"training": {"checkpoint": {"keep_last": 100}}}),
    "training.samples.every_epochs": (2, {}),
    "training.samples.count": (3, {}),
    "model.image_size": (24, {}),
    "model.latents": (5, {}),
    "model.base_channels": (8, {}),
    "model.max_multiplier": (1, {}),
    "model.pca_init": (False, {}),
    "model.family": ("residual", {}),
    "model.channels": (1, {}),
    "data.source": ("other.npy", {}),
    "data.max_images": (20, {}),
    "data.validation_fraction": (0.4, {}),
    "data.augment.horizontal_flip": (True, {}),
    "data.augment.affine.rotate_degrees": (20.0, {}),
    "data.augment.affine.scale": (0.2, {}),
    "data.augment.affine.translate": (0.2, {}),
    "data.augment.crop.min_scale": (0.7, {}),
    "data.augment.color_jitter.brightness": (0.2, {}),
    "data.augment.color_jitter.contrast": (0.2, {}),
    "data.augment.color_jitter.saturation": (0.3, {}),
}
ALIKE = [path for path in CHANGES if re.fullmatch(r"loss\.(?!mse|kl)\w+\.schedule", path)]
"""Schedules of terms that all have the same field and code as that of `mse`: only in the slow tests."""
ELSEWHERE = {
    "density.fit": "tests/pipeline/test_final_samples.py",
    "density.max_images": "tests/pipeline/test_final_samples.py",
    "density.max_components": "tests/analysis/test_density_choice.py",
    "device": "tests/training/test_runtime.py",
    "license": "tests/pipeline/test_final_samples.py",
    "preflight": "tests/pipeline/test_preflight.py",
    "loss.perceptual.layers": "tests/losses/test_perceptual.py",
    "loss.perceptual.weights_path": "tests/losses/test_pretrained_weights.py",
    "loss.perceptual.missing": "below",
    "loss.lpips.net": "tests/losses/test_perceptual.py",
    "loss.lpips.weights_path": "tests/losses/test_pretrained_weights.py",
    "loss.lpips.missing": "below",
    "training.deterministic": "changes nothing on the CPU: tests/training/test_deterministic.py",
    "training.compile": "tests/pipeline/test_autotune.py",
    "training.recovery.max_consecutive_skips": "tests/faults/test_non_finite.py",
    "training.recovery.lr_factor": "tests/faults/test_non_finite.py",
    "training.recovery.max_rollbacks": "tests/faults/test_non_finite.py",
    "training.recovery.grad_spike_ratio": "tests/faults/test_non_finite.py",
    "model.family": "has one member",
    "data.background": "tests/data/test_decode.py",
    "data.max_bad_fraction": "tests/data/test_sources.py",
    "data.range": "tests/data/test_real_folders.py",
    "data.split_by": "tests/data/test_real_folders.py",
    "data.cache_dir": "tests/data/test_cache.py",
    "data.allow_changed_data": "tests/pipeline/test_resume.py",
    "data.cache_on_device": "changes nothing by design: tests/data/test_batches.py",
}


def nested(path, value):
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings")
    write_images(path / "images.npy", count=44, seed=0)
    write_images(path / "other.npy", count=44, seed=1)
    return path


def run_digest(folder, run_dir, *changes):
    """All that a run did, as one digest of its files."""
    settings = {}
    for change in (BASE, *changes):
        settings = merged(settings, change)
    torch.set_num_threads(1)
    name = settings["data"].pop("source", "images.npy")
    train(request(run_dir, folder / name, settings), [Recorder()])
    parts = [
        run_dir / "metrics.jsonl",
        run_dir / "model" / "model.safetensors",
        *sorted((run_dir / "samples").iterdir()),
    ]
    digest = hashlib.sha256()
    for path in parts:
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(" ".join(sorted(path.name for path in (run_dir / "checkpoints").iterdir())).encode())
    return digest.hexdigest()


def test_the_same_settings_do_the_same(folder, tmp_path):
    assert run_digest(folder, tmp_path / "a") == run_digest(folder, tmp_path / "b")


@pytest.fixture(scope="module")
def unchanged(folder):
    """What runs do before a field is changed, each context once."""
    done = {}

    def result(context):
        key = json.dumps(context, sort_keys=True)
        if key not in done:
            done[key] = run_digest(folder, folder / f"unchanged-{len(done)}", context)
        return done[key]

    return result


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=pytest.mark.slow) if path in ALIKE else path for path in CHANGES]
)
def test_a_changed_field_changes_the_run(path, folder, unchanged, tmp_path):
    value, context = CHANGES[path]
    assert run_digest(folder, tmp_path / "run", context, nested(path, value)) != unchanged(context)


@pytest.mark.parametrize("name", ["perceptual", "lpips"])
def test_strict_terms_stop_where_weights_are_missing(name, folder, tmp_path):
    change = {"loss": {name: {"weight": 0.1, "missing": "strict"}}}
    with pytest.raises(EnvironmentProblem, match=f"{name}"):
        run_digest(folder, tmp_path / "run", change)


def test_no_field_is_left_out(folder):
    """A new field belongs into one of the two tables."""
    fields = set(request(folder, folder / "images.npy").run.config.by_path())
    listed = [*CHANGES, *ELSEWHERE]
    assert [
        field for field in sorted(fields) if not any(field == name or field.startswith(f"{name}.") for name in listed)
    ] == []
