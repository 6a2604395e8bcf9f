"""The residual family: shortcuts alone are exact, blocks start as the identity, every size and setting works."""

import pytest
import torch
from pydantic import ValidationError

from unified_vae.config.model import ResidualConfig
from unified_vae.core.linear_vae import shrink
from unified_vae.models.blocks import MAX_PCA_CHANNELS, pad_to_grid
from unified_vae.models.build import build_model
from unified_vae.models.pca_skip import fold_to_size
from unified_vae.models.residual import Block, Down, PreEncoder, ResidualAttention, Up

SMALL = ResidualConfig(image_size=16, latents=5, base_channels=8, channels=3)


def silence(layer: torch.nn.Conv2d) -> None:
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)


def test_a_block_starts_as_the_identity():
    features = torch.randn(2, 8, 6, 6)
    assert torch.equal(Block(8)(features), features)
    assert torch.equal(ResidualAttention(8)(features), features)


def test_skips_average_when_halving_and_repeat_when_doubling():
    down, up = Down(8, 16), Up(16, 8)
    silence(down.mix)
    silence(up.mix)
    features = torch.randn(2, 8, 6, 6)
    halved = down(features)
    assert halved.shape == (2, 16, 3, 3)
    torch.testing.assert_close(halved.mean(), features.mean())
    doubled = up(halved)
    assert doubled.shape == features.shape
    torch.testing.assert_close(down(doubled), halved)  # the shortcuts undo each other in this order


@pytest.mark.parametrize("size", [8, 9])
def test_what_the_pca_skip_encodes_starts_as_the_images(size):
    images = torch.rand(2, 3, size, size)
    assert torch.equal(PreEncoder(3, 8, 1, size)(images), images)


@pytest.mark.parametrize(("size", "side"), [(128, 64), (100, 50)])
def test_images_are_preprocessed_at_the_size_of_the_pca_skip(size, side):
    images = torch.rand(2, 3, size, size)
    model = build_model(SMALL.model_copy(update={"image_size": size}), seed=0)
    assert torch.equal(model.encoder.preprocess(images), shrink(images, side))
    whole = build_model(SMALL.model_copy(update={"image_size": size, "refine_resolution": "full"}), seed=0)
    assert torch.equal(whole.encoder.preprocess(images), images)


@pytest.mark.parametrize(
    ("size", "refine_resolution", "pca_init", "blocks_at"),
    [
        (64, "pca", True, 32),
        (64, "full", True, 32),
        (128, "pca", True, 32),
        (128, "full", True, 64),
        (128, "pca", False, 64),
        (256, "pca", True, 32),
        (96, "pca", True, 24),
        (100, "pca", True, 28),
        (192, "pca", True, 96),  # 48 or 24 would not cover all 64 of the PCA reconstruction
        (320, "pca", True, 80),
    ],
)
def test_refinement_blocks_are_where_they_are_asked_for(size, refine_resolution, pca_init, blocks_at):
    change = {
        "image_size": size,
        "refine_resolution": refine_resolution,
        "pca_init": pca_init,
        "blocks": 0,
        "refine_blocks": 1,
    }
    model = build_model(SMALL.model_copy(update=change), seed=0)
    decoder, seen = model.decoder, []
    for module in decoder.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[-1]))
    decoder(torch.zeros(1, 5), torch.zeros(1, 3, model.pca_skip.side, model.pca_skip.side) if pca_init else None)
    assert seen == [blocks_at]


@pytest.mark.parametrize("size", [64, 96, 100, 127, 128, 144, 160, 192, 256, 320, 384])
def test_the_refinement_stage_covers_the_pca_reconstruction(size):
    """As many independent rows of pixels as the PCA reconstruction has reach it."""
    model = build_model(SMALL.model_copy(update={"image_size": size}), seed=0)
    decoder, side = model.decoder, model.pca_skip.side
    rows = torch.eye(side)[:, None, :, None].expand(side, 3, side, side)
    map_size = decoder.side * 2**decoder.refine_stage
    features = fold_to_size(pad_to_grid(rows, size, decoder.grid), map_size, MAX_PCA_CHANNELS)
    assert torch.linalg.matrix_rank(features.flatten(1)) == side


def test_the_pca_skip_encodes_preprocessed_images():
    model = build_model(SMALL, seed=0)
    linear, images = model.pca_skip, torch.rand(2, 3, 16, 16)
    assert linear is not None
    torch.nn.init.normal_(linear.to_latents.weight)
    before = model.encode(images).mean
    torch.nn.init.normal_(model.encoder.pre_encoder.conv_out.bias)
    change = linear.encode(model.encoder.preprocess(images)) - linear.encode(images)
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(model.encode(images).mean - before, change, rtol=1e-4, atol=1e-5)


def test_the_dense_layers_meet_as_many_channels_as_asked():
    model = build_model(SMALL.model_copy(update={"bottleneck_channels": 3}), seed=0)
    assert model.encoder.head.in_features == model.decoder.head.out_features == 3 * 4 * 4


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (30, 3), (36, 1), (64, 3)])
def test_every_size_comes_back(size, channels):
    model = build_model(ResidualConfig(image_size=size, latents=3, base_channels=4, channels=channels))
    images = torch.rand(2, channels, size, size)
    assert model(images, torch.randn(2, 3)).reconstruction.shape == images.shape


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 32},
        {"latents": 6},
        {"base_channels": 16},
        {"blocks": 2},
        {"refine_blocks": 1},
        {"pre_encoder_blocks": 1},
        {"pre_encoder_blocks": 0},
        {"bottleneck_channels": 2},
        {"attention": True},
        {"pca_init": False},
        {"channels": 1},
        {"image_size": 32, "max_multiplier": 1},
    ],
)
def test_every_setting_reaches_the_weights(change):
    def shapes(config):
        return [tuple(parameter.shape) for parameter in build_model(config).parameters()]

    base = {**SMALL.model_dump(), **({"image_size": 32} if {"max_multiplier", "blocks"} & set(change) else {})}
    assert shapes(ResidualConfig(**base)) != shapes(ResidualConfig(**{**base, **change}))


def test_every_parameter_is_moved_once_the_blocks_are_awake():
    model = build_model(SMALL.model_copy(update={"blocks": 1, "attention": True}), seed=0)
    for module in model.modules():
        if isinstance(module, Block):
            torch.nn.init.normal_(module.second.weight, std=0.1)
        if isinstance(module, ResidualAttention):
            torch.nn.init.normal_(module.to_out[0].weight, std=0.1)
        if isinstance(module, PreEncoder):
            torch.nn.init.normal_(module.conv_out.weight, std=0.1)
    torch.nn.init.normal_(model.pca_skip.to_latents.weight, std=0.1)  # as after a start at PCA
    model(torch.rand(4, 3, 16, 16), torch.randn(4, 5)).reconstruction.square().sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters() if p.requires_grad)


def test_an_image_does_not_see_its_neighbours():
    model = build_model(SMALL, seed=0)
    images, noise = torch.rand(4, 3, 16, 16), torch.randn(4, 5)
    together = model.train()(images, noise).reconstruction
    alone = torch.cat([model.eval()(images[i : i + 1], noise[i : i + 1]).reconstruction for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_the_posterior_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = build_model(SMALL, seed=0)(torch.rand(2, 3, 16, 16), torch.randn(2, 5))
    assert output.posterior.logvar.dtype == output.reconstruction.dtype == torch.float32


@pytest.mark.parametrize("change", [{"max_multiplier": 3}, {"base_channels": 10}, {"blocks": -1}])
def test_what_cannot_be_folded_is_refused(change):
    with pytest.raises(ValidationError):
        ResidualConfig(**{**SMALL.model_dump(), **change})
