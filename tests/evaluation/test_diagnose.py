"""`diagnose.py` on runs that were made to have each fault, and on everything else it may be pointed at."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.runs import Recorder, merged, request, train, write_images
from unified_vae.analysis import diagnosis as causes
from unified_vae.cli.app import main
from unified_vae.core.errors import CheckpointError, ConfigError, DataError
from unified_vae.core.events import Observer
from unified_vae.evaluation import diagnose as diagnose_module
from unified_vae.training.run_lock import locked


def diagnosed(target, **options):
    return diagnose_module.diagnose(target, **options, observer=Observer())


def structured(path: Path, noise: float, count: int, channels: int = 1) -> Path:
    """Pictures of three degrees of freedom under a texture that nothing can predict."""
    pixels = np.load(write_images(path, count, channels=channels)).astype(float)
    pixels += 255 * noise * np.random.default_rng(5).standard_normal(pixels.shape)
    np.save(path, pixels.clip(0, 255).round().astype(np.uint8))
    return path


def rich(path: Path, power: float, count: int) -> Path:
    """Random fields with as many degrees of freedom as pixels, and a spectrum that falls with the frequency."""
    noise = np.random.default_rng(0).standard_normal((count, 16, 16))
    frequencies = np.hypot(np.fft.fftfreq(16)[:, None], np.fft.fftfreq(16)[None, :])
    fields = np.fft.ifft2(np.fft.fft2(noise) / (frequencies + 1 / 16) ** power).real
    np.save(path, (255 * (0.5 + 0.15 * fields / fields.std()).clip(0, 1)).round().astype(np.uint8)[..., None])
    return path


def training(epochs: int, lr: float = 5e-3, **more: object) -> dict:
    settings = {"epochs": epochs, "optimizer": {"kind": "adamw", "lr": lr}, "checkpoint": {"every_minutes": 100.0}}
    return {**settings, "samples": {"every_epochs": 1000}, **more}


def loss(beta: float) -> dict:
    return {"l1": {"weight": 0.0}, "kl": {"weight": beta, "schedule": {"kind": "constant"}}}


NO_FLIP = {"data": {"augment": {"horizontal_flip": False}}}
ALONE = {"pca_init": False}  # the network without the PCA skip, so that it can be worse than PCA
FAULTS = {  # cause -> images, settings of the run
    causes.COLLAPSE: (lambda path: write_images(path, 160), {"training": training(12), "loss": loss(1e4)}),
    causes.FEW_LATENTS: (
        lambda path: rich(path, 2.0, 300),
        {"training": training(10, batch_size=16), "loss": loss(1.0), "model": {"latents": 2}},
    ),
    causes.UNDERTRAINED: (
        lambda path: rich(path, 2.0, 300),
        {"training": training(1), "loss": loss(1.0), "model": {"latents": 16, **ALONE}},
    ),
    causes.OVERFITTED: (
        lambda path: rich(path, 1.0, 24),
        {"training": training(60, 1e-2), "loss": loss(1.0), "model": {"latents": 32, "base_channels": 16}},
    ),
    causes.LOSS_BLUR: (
        lambda path: structured(path, 0.06, 400),
        {"training": training(10, batch_size=16), "loss": loss(1.0), "model": {"latents": 16}},
    ),
    causes.MISMATCH: (
        lambda path: structured(path, 0.045, 160, channels=3),
        {"training": training(50, 1e-2, batch_size=16), "loss": loss(1e-3), "model": {"base_channels": 8, **ALONE}},
    ),
    causes.HEALTHY: (lambda path: write_images(path, 160), {"training": training(10), "loss": loss(1.0)}),
}

SLOW = (causes.FEW_LATENTS, causes.LOSS_BLUR, causes.MISMATCH)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Trains the run of a cause when it is first asked for; gives its folder and what it said."""
    known: dict[str, tuple[Path, Recorder]] = {}
    folder = tmp_path_factory.mktemp("faults")
    torch.set_num_threads(1)

    def run_of(cause: str) -> tuple[Path, Recorder]:
        if cause not in known:
            images, change = FAULTS[cause]
            name = cause.replace(" ", "_")
            recorder = Recorder()
            train(request(folder / name, images(folder / f"{name}.npy"), merged(NO_FLIP, change)), [recorder])
            known[cause] = folder / name, recorder
        return known[cause]

    return run_of


@pytest.mark.parametrize(
    "cause", [pytest.param(cause, marks=pytest.mark.slow) if cause in SLOW else cause for cause in FAULTS]
)
def test_a_run_with_a_fault_is_diagnosed(cause, runs):
    run_dir, recorder = runs(cause)
    report = diagnosed(run_dir)
    assert report.diagnosis.cause == cause, report.diagnosis.evidence()
    assert any(line.startswith(f"diagnosis: {cause} (") for line in recorder.finished.advice)
    assert any(f"uv run diagnose.py {run_dir.as_posix()}" in line for line in recorder.finished.advice)
    content = json.loads((run_dir / "diagnosis.json").read_text())
    assert content["cause"] == cause and content["command"] == report.recommendation.command
    assert [row["cause"] for row in content["evidence"]] == list(causes.CAUSES)
    with Image.open(run_dir / "diagnosis.png") as picture:
        assert picture.size == (1500, 880)


@pytest.fixture(scope="module")
def healthy(runs):
    return runs(causes.HEALTHY)[0]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_only_read_and_may_be_training(healthy, tmp_path):
    before = contents(healthy)
    with locked(healthy):  # as a process that trains it holds it
        report = diagnosed(healthy, output=tmp_path / "out")
    assert report.file == tmp_path / "out" / "diagnosis.json" and report.picture.is_file()
    assert contents(healthy) == before


def test_metrics_are_those_of_the_validation(healthy, tmp_path):
    diagnosis = diagnosed(healthy, checkpoint="last", output=tmp_path).diagnosis
    last = [json.loads(line) for line in (healthy / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["split"] == "validation"
    assert (diagnosis.psnr, diagnosis.rate) == pytest.approx((last["psnr"], last["rate.nats"]), rel=1e-5)
    assert (diagnosis.sharpness, diagnosis.gap) == pytest.approx((last["sharpness"], last["posterior.gap"]), rel=1e-3)
    assert diagnosis.line is not None and diagnosis.history is not None
    assert last["psnr"] - last["psnr.above_pca"] == pytest.approx(diagnosis.line.psnr, abs=0.5)
    assert len(diagnosis.history.path) == 11  # the start and ten epochs


def test_a_checkpoint_and_the_exported_model_are_taken_too(healthy, tmp_path):
    steps = sorted((healthy / "checkpoints").iterdir())
    by_folder = diagnosed(steps[-1], output=tmp_path)
    by_step = diagnosed(healthy, checkpoint=str(int(steps[-1].name[5:])), output=tmp_path)
    assert by_folder.diagnosis == by_step.diagnosis
    best = diagnosed(healthy, checkpoint="best", output=tmp_path).diagnosis
    model = diagnosed(healthy / "model", output=tmp_path).diagnosis
    assert model.psnr == pytest.approx(best.psnr)


def test_a_model_without_its_run_needs_images(healthy, tmp_path):
    alone = tmp_path / "model"
    alone.mkdir()
    for path in (healthy / "model").iterdir():
        (alone / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConfigError, match="--data"):
        diagnosed(alone)
    images = write_images(tmp_path / "others.npy", 60, seed=3)
    report = diagnosed(alone, data=str(images))
    assert report.diagnosis.history is None and report.diagnosis.line is not None
    assert report.file.parent == alone and report.diagnosis.training_psnr is not None


def test_mistakes_get_one_sentence(healthy, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="is no run"):
        diagnosed(tmp_path / "empty")
    with pytest.raises(ConfigError, match="has best, last and the steps"):
        diagnosed(healthy, checkpoint="7")
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        diagnosed(tmp_path / "young")


def test_images_that_are_gone_are_asked_for(runs, tmp_path):
    run_dir, _ = runs(causes.UNDERTRAINED)
    source = run_dir.with_suffix(".npy")
    aside = source.rename(tmp_path / "moved.npy")
    try:
        with pytest.raises(DataError, match="--data"):
            diagnosed(run_dir)
        report = diagnosed(run_dir, data=str(aside), output=tmp_path)
        assert report.diagnosis.cause == causes.UNDERTRAINED
    finally:
        aside.rename(source)


def test_the_command_prints_evidence_cause_and_command(healthy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main("diagnose.py", [str(healthy), "--output", "out", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    for part in ("metrics", "PCA line", "sharpness", "evidence", *causes.CAUSES, "cause: healthy", "next:  uv run "):
        assert part in text
    assert "picture: out/diagnosis.png" in text
    assert all(len(line) <= 108 or " " not in line[60:] for line in text.splitlines() if "uv run" not in line)
    assert main("diagnose.py", ["runs/none"]) == 2
    assert "runs/none is not a folder" in capsys.readouterr().err
