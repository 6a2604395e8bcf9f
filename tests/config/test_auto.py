"""What `auto` stands for, by the images and by the length of the run."""

import pytest

from unified_vae.config.data import AffineConfig, AugmentConfig
from unified_vae.config.training import TrainingConfig

AUTO = AugmentConfig(horizontal_flip="auto", affine=AffineConfig(translate="auto"))


@pytest.mark.parametrize(
    ("images", "channels", "mirrored", "shift"),
    [(50, 3, True, 0.06), (1023, 3, True, 0.06), (1024, 3, True, 0.0), (50, 1, False, 0.06), (10**6, 1, False, 0.0)],
)
def test_color_is_mirrored_and_few_images_are_shifted(images, channels, mirrored, shift):
    resolved = AUTO.resolve(images, 256, channels)
    assert resolved == AugmentConfig(horizontal_flip=mirrored, affine=AffineConfig(translate=shift))
    assert resolved.resolve(1, 1, 1) == resolved


def test_what_was_chosen_stays():
    chosen = AugmentConfig(horizontal_flip=False, affine=AffineConfig(translate=0.1, scale=0.2))
    assert chosen.resolve(50, 256, 3) == chosen


@pytest.mark.parametrize("steps", [1, 15, 400, 10_000, 10**6])
def test_the_average_reaches_over_a_twentieth_of_the_run(steps):
    decay = TrainingConfig().resolve(steps, 10).ema_decay
    assert 0 <= decay <= 0.9995
    assert 1 / (1 - decay) <= max(1, 0.05 * steps) * 1.001
    assert decay == 0.9995 or 1 / (1 - decay) > 0.049 * steps


@pytest.mark.parametrize(
    ("epochs", "validations", "grids"), [(1, 1, 1), (50, 50, 25), (100, 100, 20), (200, 100, 20), (2000, 100, 20)]
)
def test_long_runs_are_validated_a_hundred_times_and_drawn_twenty_times(epochs, validations, grids):
    training = TrainingConfig().resolve(epochs * 7, 7)
    assert epochs // training.validate_every_epochs == validations
    assert epochs // training.samples.every_epochs == grids


def test_intervals_that_were_chosen_stay():
    training = TrainingConfig(ema_decay=0.5, validate_every_epochs=3, samples={"every_epochs": 4})
    assert training.resolve(10_000, 1) == training
