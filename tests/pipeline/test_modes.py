"""Every mode and every pair of loss and model presets starts, steps, validates, saves and resumes.

Here with narrow networks and two steps, at each preset's real image size and latents; the slow ones at full width.
"""

from pathlib import Path

import pytest
import torch

from tests.helpers.runs import Recorder, train, write_images
from unified_vae.analysis import preflight
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.pipeline.plan import plan_mode, plan_presets

SHIPPED = Path(__file__).resolve().parents[2] / "config" / "config_unified.json"
BOOK = PresetBook.load(shipped=SHIPPED)
LOSSES, MODELS = list(BOOK.presets("loss")), list(BOOK.presets("model"))
MODES = [name for name in BOOK.modes if name != "resume_fix"]
NARROW = ["model.base_channels=4"]


@pytest.fixture(scope="module", autouse=True)
def shared_components():
    """The principal components of the same images are computed once, and not for each loss."""
    known, compute = {}, preflight.principal_components

    def remembered(split, count, augmentation, seed, device, latents):
        arguments = (split.images.shape, tuple(split.names), count, augmentation.model_dump_json(), seed, latents)
        if arguments not in known:
            known[arguments] = compute(split, count, augmentation, seed, device, latents)
        return known[arguments]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "principal_components", remembered)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npy", count=8, size=16)


def shortened(source, steps, *more):
    return from_command_line(
        {},
        [
            f"data.source={source.as_posix()}",
            f"data.cache_dir={source.parent.as_posix()}/cache",
            "training.batch_size=2",
            f"training.max_steps={steps}",
            "training.samples.count=2",
            *more,
        ],
    )


def start(plan):
    torch.set_num_threads(1)
    recorder = Recorder()
    train(plan, [recorder])
    return recorder


def begin_and_go_on(plan_of):
    """Two starts: one step, then the second from the checkpoint."""
    first, second = start(plan_of(1)), start(plan_of(2))
    assert first.finished.step == 1 and first.validations[-1].values["psnr"] > 0
    assert second.started[0].resumed and second.started[0].start_step == 1
    assert second.finished.step == 2 and second.finished.model_dir is not None
    assert len(second.validations[-1].kl_per_unit) == len(first.validations[-1].kl_per_unit)
    return second


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(
            m, marks=[pytest.mark.slow] if m in ("ultra_high_quality", "balanced_high_quality", "full_retrain") else []
        )
        for m in MODES
    ],
)
def test_every_mode(mode, source, tmp_path):
    begin_and_go_on(lambda steps: plan_mode(BOOK, mode, shortened(source, steps, *NARROW), tmp_path / "run"))


def pairs():
    """All of them; those without the smallest model or the recommended loss take minutes together, so they are slow."""
    for loss in LOSSES:
        for model in MODELS:
            quick = BOOK.preset("model", model).settings.values.get("image_size", 256) <= 128
            usual = model == "small" or (loss == "high_quality" and quick)
            yield pytest.param(loss, model, marks=[] if usual else [pytest.mark.slow])


@pytest.mark.parametrize(("loss", "model"), list(pairs()))
def test_every_loss_with_every_model(loss, model, source, tmp_path):
    chosen = {"loss": loss, "training": "quick_test", "model": model, "dataset": "tiny"}
    begin_and_go_on(lambda steps: plan_presets(BOOK, chosen, shortened(source, steps, *NARROW), tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_at_full_width(mode, source, tmp_path):
    begin_and_go_on(lambda steps: plan_mode(BOOK, mode, shortened(source, steps), tmp_path / "run"))
