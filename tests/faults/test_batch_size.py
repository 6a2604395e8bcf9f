"""`--batch-size auto`: the largest batch that fits on a GPU, a rule on a CPU; recorded, and the same on resume."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.helpers.faults import SmallMemory, injected
from tests.helpers.runs import Recorder, merged, request, train, write_images
from unified_vae.analysis.model_cost import model_cost
from unified_vae.config.training import TrainingConfig
from unified_vae.core.errors import ConfigError, EnvironmentProblem
from unified_vae.data.batches import gather
from unified_vae.data.prepare import open_data
from unified_vae.pipeline import autotune
from unified_vae.pipeline.autotune import MIN_STEPS_PER_EPOCH
from unified_vae.pipeline.build import ResolvedConfig, build_vae_step, calibrate, with_shared_batch
from unified_vae.training.distributed import open_runtime
from unified_vae.training.train_step import to_unit_range

AUTO = {"training": {"batch_size": "auto", "epochs": 1}}
IMAGES = 600


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "images.npy", count=IMAGES)


@pytest.fixture
def opened(source):
    """A training step as it is tried out, and its data."""
    config = request("unused", source, AUTO).run.config
    data = open_data(config.data, config.model.image_size, None, lambda *_: None)
    config = config.model_copy(update={"model": config.model.model_copy(update={"channels": 3})})
    with open_runtime("cpu", "fp32") as runtime:
        train_step = build_vae_step(with_shared_batch(config, 1, len(data.train), 1), data, runtime)
        calibrate(train_step, to_unit_range(gather(data.train, np.arange(1))), torch.zeros(1, train_step.model.latents))
        yield train_step, data


OTHER_ROOMS = [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((2, 2), (32, 32), (63, 32))]


@pytest.mark.parametrize(("room", "expected"), [(1, 1), (20, 16), (1000, 64), *OTHER_ROOMS])
def test_the_largest_power_of_two_that_fits(opened, room, expected):
    with injected(SmallMemory(room)):
        size, reason = autotune._largest_that_fits(*opened, 100)
    assert size == expected
    assert ("does not fit" in reason) == (room < 100)


def test_a_device_without_room_for_one_image_is_an_error(opened):
    with injected(SmallMemory(0)), pytest.raises(EnvironmentProblem, match="one image at a time"):
        autotune._largest_that_fits(*opened, 100)


def test_trials_change_no_weights(opened):
    train_step, _ = opened
    before = [parameter.detach().clone() for parameter in train_step.model.parameters()]
    with injected(SmallMemory(8)):
        assert autotune._largest_that_fits(*opened, 100)[0] == 8
    assert all((old == new).all() for old, new in zip(before, train_step.model.parameters(), strict=True))


def test_trials_are_not_compiled_also_where_the_run_is(opened, source, monkeypatch):
    train_step, data = opened
    built, build = [], autotune.build_vae_step

    def noted(config, *rest):
        built.append(config.training.compile)
        return build(config, *rest)

    monkeypatch.setattr(autotune, "build_vae_step", noted)
    config = request("unused", source, {"training": {**AUTO["training"], "compile": True}}).run.config
    config = config.model_copy(update={"model": config.model.model_copy(update={"channels": 3})})
    autotune.with_batch_size(ResolvedConfig(config, (), {}), data, train_step.runtime, None)
    assert built == [False]


def test_the_rule_follows_the_memory_that_is_available(opened, source, monkeypatch):
    each, sizes, reason = 2 * model_cost(request("unused", source).run.config.model).kept_bytes, [], ""
    for available in (0, *(each * 2**power for power in range(10))):
        monkeypatch.setattr(autotune, "available_memory", lambda available=available: available)
        size, reason = autotune._by_rule(*opened, 1000)
        assert ("half of the available memory" if size < 64 else "no faster") in reason
        assert size == 1 or 2 * size * each <= available, "with what the loss keeps, it is even more"
        sizes.append(size)
    assert all(after in (before, 2 * before) for before, after in itertools.pairwise(sizes))
    assert (sizes[0], sizes[-1]) == (1, 64)
    monkeypatch.setattr(autotune, "available_memory", lambda: 0)
    assert autotune._by_rule(*opened, 3)[0] == 1, "memory is the smaller bound"


def test_a_run_records_its_batch_and_a_resumed_one_keeps_it(source, tmp_path, monkeypatch):
    first = Recorder()
    training = {"training": {"batch_size": "auto", "epochs": 2, "max_steps": 5}}
    assert train(request(tmp_path / "run", source, training), [first]).exit_code == 0
    size = first.started[0].batch_size
    training_images = IMAGES - IMAGES // 10
    assert size == 32 == 2 ** ((training_images // MIN_STEPS_PER_EPOCH).bit_length() - 1)
    fact = dict(first.started[0].facts)["batch size"]
    assert fact.startswith("32, auto: about ") and "at least 16 steps per epoch" in fact
    monkeypatch.setattr(autotune, "available_memory", lambda: 0)
    again = Recorder()
    longer = {"training": {"batch_size": "auto", "epochs": 2, "max_steps": 9}}
    assert train(request(tmp_path / "run", source, longer), [again]).exit_code == 0
    assert (again.started[0].batch_size, again.started[0].start_step) == (32, 5)
    assert dict(again.started[0].facts)["batch size"] == "32, auto: as when this run began"
    named = merged(longer, {"training": {"batch_size": 32, "max_steps": 10}})
    assert train(request(tmp_path / "run", source, named), [Recorder()]).exit_code == 0
    other = merged(longer, {"training": {"batch_size": 16}})
    with pytest.raises(ConfigError, match="--batch-size 32"):
        train(request(tmp_path / "run", source, other), [Recorder()])


def test_a_run_with_a_number_may_be_continued_with_auto(source, tmp_path):
    short = {"training": {"batch_size": 50, "epochs": 1, "max_steps": 3}}
    train(request(tmp_path / "run", source, short), [Recorder()])
    again = Recorder()
    longer = merged(short, {"training": {"batch_size": "auto", "max_steps": 5}})
    assert train(request(tmp_path / "run", source, longer), [again]).exit_code == 0
    assert again.started[0].batch_size == 50


def test_micro_batches_count_into_the_batch(source, tmp_path):
    watcher = Recorder()
    change = merged(AUTO, {"training": {"gradient_accumulation_steps": 4, "max_steps": 1}})
    assert train(request(tmp_path / "run", source, change), [watcher]).exit_code == 0
    assert watcher.started[0].batch_size == 32, "8 images in each of 4 micro-batches"


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "many", None])
def test_other_words_are_refused(wrong):
    with pytest.raises(ValidationError, match='a whole number of at least 1, or "auto"'):
        TrainingConfig(batch_size=wrong)
