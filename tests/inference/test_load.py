"""One way to open a model: runs, checkpoints, exported models; what is none of these is one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.inference.small_models import SIZE, config, write_model
from unified_vae import VAE
from unified_vae.config.data import DataConfig
from unified_vae.config.run import RunConfig, RunRecord
from unified_vae.core.checkpoint_format import Checkpoint, save
from unified_vae.core.errors import CheckpointError, ConfigError
from unified_vae.core.events import Observer
from unified_vae.inference.image_set import open_matching_images
from unified_vae.inference.load import load_model, trained_model
from unified_vae.models.build import build_model
from unified_vae.training.state import TrainState

SEEDS = {2: 10, 4: 11, 6: 12}
"""Step of a checkpoint -> seed of its averaged weights; its raw ones have the next hundred."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three checkpoints, the second of which is the best, and an exported model of that."""
    folder = tmp_path_factory.mktemp("runs") / "faces"
    settings = RunConfig(model=config(3), data=DataConfig(source="photos", background="black"))
    facts = {"fingerprint": "f", "description": "3 photos"}
    record = RunRecord(settings, settings, {}, {"mode": "quick_test"}, (), facts, 2, {}, {})
    (folder / "checkpoints").mkdir(parents=True)
    record.write(folder / "config.json")
    for step, seed in SEEDS.items():
        weights = {
            name: build_model(config(3), seed=seed + 100 * raw).state_dict()
            for raw, name in enumerate(("ema", "model"))
        }
        objective = {"mean_mse": torch.tensor(0.5), "mean_perceptual": torch.tensor(0.25), "count": torch.tensor(3)}
        state = TrainState(step=step, best_step=4 if step > 2 else None).to_json()
        content = Checkpoint(step, {**weights, "objective": objective}, {"train": state, "record": record.to_json()})
        save(folder / "checkpoints", content)
    write_model(folder / "model", seed=SEEDS[4])
    return folder


def weights_of(loaded: object) -> torch.Tensor:
    return next(iter(loaded.model.parameters()))  # type: ignore[attr-defined, no-any-return]


def expected(seed: int) -> torch.Tensor:
    return next(iter(build_model(config(3), seed=seed).parameters()))


def test_each_checkpoint_of_a_run(trained: Path) -> None:
    for which, step, words in (
        (None, 4, " (best)"), ("best", 4, " (best)"), ("last", 6, " (last)"), ("6", 6, ""), ("2", 2, ""),
    ):  # fmt: skip
        loaded = load_model(trained, which)
        assert loaded.name == f"{trained.as_posix()} at step {step}{words}" and loaded.step == step
        assert torch.equal(weights_of(loaded), expected(SEEDS[step]))
        assert loaded.progress is not None and loaded.progress.step == 6 and loaded.progress.best_step == 4
        assert loaded.config.loss.pixel_share(loaded.terms) == 1.0 and set(loaded.terms) == {"mse", "perceptual"}
    raw = load_model(trained, "2", weights="raw")
    assert torch.equal(weights_of(raw), expected(SEEDS[2] + 100)) and raw.name.endswith("step 2, raw weights")
    folder = load_model(trained / "checkpoints" / "step-000000002")
    assert folder.run_dir == trained and torch.equal(weights_of(folder), expected(SEEDS[2]))


def test_a_run_before_its_best_weights(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints" / "step-000000002", tmp_path / "run" / "checkpoints" / "step-000000002")
    assert load_model(tmp_path / "run").name.endswith(" at step 2 (last)")
    with pytest.raises(CheckpointError, match="no best weights yet"):
        load_model(tmp_path / "run", "best")


def test_an_exported_model_and_its_run(trained: Path, tmp_path: Path) -> None:
    export = load_model(trained, prefer_export=True)
    assert export.export is not None and export.export.folder == trained / "model" and export.record is not None
    assert export.run_dir == trained and torch.equal(weights_of(export), expected(SEEDS[4]))
    assert load_model(trained, "last", prefer_export=True).export is None
    best, last = (trained_model(load_model(trained, which)) for which in ("best", "last"))
    assert best is not None and best.folder == trained / "model" and last is None
    shutil.copytree(trained / "model", tmp_path / "alone")
    with pytest.raises(ConfigError, match="name the images"):
        load_model(tmp_path / "alone")
    assert load_model(tmp_path / "alone", data="photos").config.data.source == "photos"
    about = json.loads((tmp_path / "alone" / "config.json").read_text())
    (tmp_path / "alone" / "config.json").write_text(json.dumps({**about, "loss": {"mse": {"weight": "heavy"}}}))
    with pytest.raises(CheckpointError, match="says nothing of the loss"):
        load_model(tmp_path / "alone", data="photos")
    alone = load_model(tmp_path / "alone", require_data=False)
    assert alone.record is None and alone.home == tmp_path / "alone" and trained_model(alone) is alone.export


def test_from_pretrained_opens_whatever_load_model_does(trained: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    exported = VAE.from_pretrained(trained, device="cpu")
    assert exported.latent_stats is not None and exported.background == "white"
    assert torch.equal(weights_of(exported), expected(SEEDS[4]))
    checkpoint = VAE.from_pretrained(trained / "checkpoints" / "step-000000006", device="cpu")
    assert torch.equal(weights_of(checkpoint), expected(SEEDS[6])) and checkpoint.background == "black"
    again = VAE.from_pretrained(checkpoint.save_pretrained(tmp_path / "model"), device="cpu")
    assert torch.equal(again.reconstruct(images), checkpoint.reconstruct(images)) and again.background == "black"
    assert again.description["run"] == {"name": "faces", "step": 6}


def test_damaged_checkpoints_are_passed_over_and_named(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints" / "step-000000006" / "ema.safetensors").write_bytes(b"")
    lines: list[str] = []
    assert load_model(tmp_path / "run", "last", on_message=lines.append).step == 4
    assert len(lines) == 1 and "step 6 is not used" in lines[0]
    with pytest.warns(UserWarning, match="step 6 is not used"):
        VAE.from_pretrained(tmp_path / "run", device="cpu")
    state = {"train": {"step": 8}, "record": {}}
    save(tmp_path / "run" / "checkpoints", Checkpoint(8, {}, state))
    with pytest.raises(CheckpointError, match=r"training state .* cannot be read"):
        load_model(tmp_path / "run")


def test_what_cannot_be_opened_is_one_sentence(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"pickle")
    (tmp_path / "young" / "checkpoints").mkdir(parents=True)
    for target, which, weights, kind, words in (
        (tmp_path / "no", None, None, ConfigError, "is not there: name the folder"),
        (tmp_path, None, None, ConfigError, "is no run and no model"),
        (tmp_path / "last.ckpt", None, None, CheckpointError, "pickles .* never opened"),
        (tmp_path / "young", None, None, CheckpointError, "has no checkpoint yet"),
        (trained, "3", None, ConfigError, "has best, last and the steps 6, 4, 2"),
        (trained, "x", None, ConfigError, "has best, last and the steps 6, 4, 2"),
        (trained / "checkpoints" / "step-000000002", "best", None, ConfigError, "is one checkpoint already"),
        (trained / "model", "best", None, ConfigError, "leave --checkpoint out"),
        (trained / "model", None, "raw", ConfigError, "has averaged weights alone"),
    ):
        with pytest.raises(kind, match=words) as caught:
            load_model(target, which, weights=weights)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_images_of_another_source_have_the_models_channels(model: Path, pictures: Path, tmp_path: Path) -> None:
    loaded = load_model(model, data=str(pictures), require_data=False)
    shutil.copytree(pictures, tmp_path / "set")
    (tmp_path / "set" / "cats" / "broken.png").write_text("no image")
    lines: list[str] = []
    observer = Observer()
    observer.notice = lines.append  # type: ignore[method-assign]
    data = open_matching_images(loaded, str(tmp_path / "set"), observer)
    assert data.channels == 3 and any("broken.png" in line for line in lines)


def test_float32_is_not_tf32_and_flags_are_put_back(vae: VAE) -> None:
    flags, before = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    seen: list[bool] = []
    handle = vae.model.encoder.register_forward_hook(lambda *_: seen.append(flags.allow_tf32))
    try:
        flags.allow_tf32 = True
        vae.encode(torch.rand(1, 3, SIZE, SIZE))
        assert seen == [False] and flags.allow_tf32
    finally:
        handle.remove()
        flags.allow_tf32 = before
