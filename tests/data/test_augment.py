"""Augmentation depends on (seed, epoch, image) and on nothing else, and changes what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unified_vae.config.data import AffineConfig, AugmentConfig, ColorJitterConfig, CropConfig
from unified_vae.data.augment import augment, describe

FLIP = AugmentConfig(horizontal_flip=True)
CHANGES = {
    "horizontal flip": FLIP,
    "rotation": AugmentConfig(affine=AffineConfig(rotate_degrees=20)),
    "scale": AugmentConfig(affine=AffineConfig(scale=0.2)),
    "translation": AugmentConfig(affine=AffineConfig(translate=0.25)),
    "crop": AugmentConfig(crop=CropConfig(min_scale=0.6)),
    "brightness": AugmentConfig(color_jitter=ColorJitterConfig(brightness=0.2)),
    "contrast": AugmentConfig(color_jitter=ColorJitterConfig(contrast=0.4)),
    "saturation": AugmentConfig(color_jitter=ColorJitterConfig(saturation=0.6)),
}
ALL = AugmentConfig(
    horizontal_flip=True,
    affine=AffineConfig(rotate_degrees=10, scale=0.1, translate=0.1),
    crop=CropConfig(min_scale=0.8),
    color_jitter=ColorJitterConfig(brightness=0.1, contrast=0.2, saturation=0.2),
)
MOVES = ["horizontal flip", "rotation", "scale", "translation", "crop"]
COLORS = ["brightness", "contrast", "saturation"]


def noise(n: int = 64, channels: int = 3, height: int = 6, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator)


def one_image(value: Tensor | None = None) -> Tensor:
    """The same smooth picture 256 times, 16 px, values well inside the range; or `value` 256 times."""
    x = torch.linspace(0, 6, 16)
    waves = 128 + 40 * torch.sin(x)[None, :, None] * torch.cos(0.7 * x)[None, None, :]
    picture = waves * torch.tensor([0.9, 1.0, 1.1])[:, None, None]
    return (picture if value is None else value).round().to(torch.uint8).expand(256, -1, -1, -1)


def changed(images: Tensor, config: AugmentConfig, indices: object = None, seed: int = 0, epoch: int = 0) -> Tensor:
    return augment(
        images, np.arange(len(images)) if indices is None else indices, config=config, seed=seed, epoch=epoch
    )


IMAGES = noise()
INDICES = np.arange(64) * 7
each_change = pytest.mark.parametrize("config", [*CHANGES.values(), ALL], ids=[*CHANGES, "all"])


def test_off_is_the_identity() -> None:
    assert changed(IMAGES, AugmentConfig()) is IMAGES


# --- what a draw depends on ------------------------------------------------------------------------------


@each_change
def test_an_image_is_changed_alike_in_any_batch(config: AugmentConfig) -> None:
    images = noise(height=16, width=16)
    whole = changed(images, config, INDICES, seed=5, epoch=2)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    parts = [changed(images[part], config, INDICES[part.numpy()], seed=5, epoch=2) for part in order.split(9)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert torch.equal(torch.get_rng_state(), state)


@each_change
def test_epochs_seeds_and_images_draw_anew(config: AugmentConfig) -> None:
    images = one_image()
    results = [changed(images, config, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert not any(torch.equal(results[i], results[j]) for i in range(4) for j in range(i))
    assert len(results[0].flatten(1).unique(dim=0)) > (1 if config == FLIP else 20)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_does_not_move_the_draws_of_another(name: str) -> None:
    """Seen on images that are their own mirror, to which the flip does nothing."""
    other = CHANGES[name].model_copy(update={"horizontal_flip": True})
    symmetric = IMAGES.float().mean(3, keepdim=True).round().to(torch.uint8).expand(-1, -1, -1, 5)
    assert torch.equal(changed(symmetric, CHANGES[name]), changed(symmetric, other))


@each_change
def test_type_shape_and_layout_are_kept(config: AugmentConfig) -> None:
    last = IMAGES.contiguous(memory_format=torch.channels_last)
    result = changed(last, config)
    assert (result.dtype, result.shape) == (torch.uint8, IMAGES.shape)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert changed(IMAGES, config).is_contiguous()
    assert torch.equal(result, changed(IMAGES, config))


@pytest.mark.parametrize("pixels", [1, 50_000])
def test_large_batches_are_done_in_pieces_alike(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(height=16, width=16)
    whole = changed(images, ALL)
    monkeypatch.setattr("unified_vae.data.augment.MAX_CHUNK_VALUES", pixels)
    assert torch.equal(changed(images, ALL), whole)


# --- geometry --------------------------------------------------------------------------------------------


def test_each_image_is_itself_or_its_mirror_and_about_half_are() -> None:
    result = changed(IMAGES, FLIP)
    mirrored = (result == IMAGES.flip(3)).flatten(1).all(1)
    assert ((result == IMAGES).flatten(1).all(1) ^ mirrored).all()
    assert 16 <= int(mirrored.sum()) <= 48  # four standard deviations


def test_mirroring_twice_is_the_identity() -> None:
    once = changed(IMAGES, FLIP)
    assert not torch.equal(once, IMAGES)
    assert torch.equal(changed(once, FLIP), IMAGES)


@each_change
def test_no_foreign_color_enters(config: AugmentConfig) -> None:
    """A plain image stays plain, to its corners; one of two colors keeps to them, but for the overshoot of a sinc."""
    plain = noise(height=1, width=1).expand(-1, -1, 24, 24)
    moved = config.model_copy(update={"color_jitter": ColorJitterConfig()})
    assert torch.equal(changed(plain, moved), plain)
    halves = torch.tensor([100, 140], dtype=torch.uint8).repeat_interleave(12).expand(64, 3, 24, 24)
    result = changed(halves, moved)
    assert int(result.min()) >= 94
    assert int(result.max()) <= 146


def test_a_shift_alone_is_by_whole_pixels_and_loses_nothing() -> None:
    images = noise(height=16, width=16)
    result = changed(images, CHANGES["translation"])
    mirrored = torch.cat([images.flip(3), images, images.flip(3)], 3)
    mirrored = torch.cat([mirrored.flip(2), mirrored, mirrored.flip(2)], 2)
    seen = set()
    for before, after in zip(mirrored, result, strict=True):
        places = [(y, x) for y in range(-4, 5) for x in range(-4, 5)]
        actual = [(y, x) for y, x in places if torch.equal(before[:, 16 + y : 32 + y, 16 + x : 32 + x], after)]
        assert len(actual) == 1
        seen.add(actual[0])
    assert len(seen) > 30


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_turn_by_a_right_angle_is_exact(quarters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(height=16, width=16)
    draws = np.full((64, 1), 0.5 + quarters / 4)  # of [-180, 180) degrees
    monkeypatch.setattr("unified_vae.data.augment.uniforms", lambda stream, indices, count: draws.repeat(count, 1))
    result = changed(images, AugmentConfig(affine=AffineConfig(rotate_degrees=180)))
    assert torch.equal(result, images.rot90(quarters, (2, 3)))


def test_detail_keeps_its_contrast_at_any_place() -> None:
    """A wave of three quarters of the Nyquist frequency; bilinear sampling would leave 70 % of it."""
    x = torch.arange(64)
    wave = 128 + 60 * torch.cos(0.75 * torch.pi * x + 0.4)
    images = wave.round().to(torch.uint8).expand(64, 3, 64, 64)
    turned = changed(images, AugmentConfig(affine=AffineConfig(rotate_degrees=5)))[..., 8:-8, 8:-8].float()
    assert float(turned.std()) == pytest.approx(float(images[..., 8:-8].float().std()), rel=0.03)


@pytest.mark.parametrize("name", ["scale", "crop"])
def test_what_is_enlarged_stays_within_its_limit(name: str) -> None:
    """A ramp of slope 4 along x: the slope in the middle tells the factor."""
    images = (4 * torch.arange(48)).to(torch.uint8).expand(256, 3, 48, 48)
    middle = changed(images, CHANGES[name])[:, 0, 24, 16:33].float()
    slopes = (middle[:, -1] - middle[:, 0]) / 16
    low, high = {"scale": (4 / 1.2, 4 * 1.2), "crop": (0.6 * 4, 4.0)}[name]
    assert low - 0.07 <= slopes.min() <= low + 0.2
    assert high - 0.2 <= slopes.max() <= high + 0.07


def test_crops_reach_every_edge_but_not_beyond() -> None:
    ramp = (4 * torch.arange(48)).to(torch.uint8).expand(256, 3, 48, 48)
    first, last = changed(ramp, CHANGES["crop"])[:, 0, 24, [0, -1]].float().T
    assert first.min() < 8
    assert last.max() > 180
    assert (last > first).all()  # nothing is mirrored


@pytest.mark.parametrize("shape", [(16, 16), (16, 32), (9, 5)])
@pytest.mark.parametrize("name", MOVES)
def test_moves_have_no_preferred_direction(name: str, shape: tuple[int, int]) -> None:
    """Of a ramp, the middle keeps its mean value; in wide and high images too."""
    for axis in (0, 1):
        ramp = torch.linspace(28, 228, shape[axis])
        image = (ramp[:, None] if axis == 0 else ramp[None, :]).expand(3, *shape)
        result = changed(one_image(image), CHANGES[name]).float()
        rows, columns = (slice(side // 4, side - side // 4) for side in shape)
        assert result[..., rows, columns].mean() == pytest.approx(128, abs=5)


# --- color ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLORS)
def test_colors_are_unbiased_and_vary(name: str) -> None:
    images = one_image()
    result = changed(images, CHANGES[name]).float()
    assert (result.mean(0) - images[0].float()).abs().max() < 6
    assert result.flatten(1).std(0).max() > 5


@pytest.mark.parametrize("name", COLORS)
def test_gray_stays_gray(name: str) -> None:
    gray = noise(channels=1).expand(-1, 3, -1, -1)
    result = changed(gray, CHANGES[name])
    assert (result == result[:, :1]).all()
    single = changed(gray[:, :1], CHANGES[name])
    assert torch.equal(single, gray[:, :1] if name == "saturation" else result[:, :1])


def test_brightness_and_contrast_act_on_all_pixels_alike() -> None:
    levels = torch.arange(64, 192, 4.0).round().expand(3, 1, 32)
    for name, limit in (("brightness", 0.2 * 255), ("contrast", 0.4 * 64)):
        moved = changed(one_image(levels), CHANGES[name]).float() - levels
        assert moved.abs().max() == pytest.approx(limit, rel=0.1)
        second_difference = moved[..., 2:] - 2 * moved[..., 1:-1] + moved[..., :-2]
        assert second_difference.abs().max() <= 2  # straight, but for rounding


def test_values_are_clipped_and_never_wrap_round() -> None:
    black_and_white = torch.tensor([0.0, 255.0]).repeat(8).expand(3, 16, 16)
    bright = AugmentConfig(color_jitter=ColorJitterConfig(brightness=1.0, contrast=1.0))
    result = changed(one_image(black_and_white), bright).float()
    assert (result[..., 1::2] >= result[..., ::2]).all()
    sharp = changed(one_image(black_and_white), CHANGES["rotation"])
    assert (int(sharp.min()), int(sharp.max())) == (0, 255)


# --- in words --------------------------------------------------------------------------------------------


def test_every_change_is_named() -> None:
    texts = [describe(config) for config in CHANGES.values()]
    assert describe(AugmentConfig()) == "none"
    assert len({*texts}) == len(CHANGES)
    assert all(text != "none" and ", " not in text for text in texts)
    assert describe(ALL).count(", ") == len(CHANGES) - 1
