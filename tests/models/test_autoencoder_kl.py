"""The spatial family is diffusers' AutoencoderKL to the last bit, and a model like any other to the trainer."""

import pytest
import torch
from diffusers import AutoencoderKL
from pydantic import ValidationError

from unified_vae.config.model import SpatialConfig
from unified_vae.models.autoencoder_kl import Upsampler, diffusers_key
from unified_vae.models.build import build_model

SMALL = SpatialConfig(image_size=16, downsample_factor=4, latent_channels=2, base_channels=8, channels=3)


def changed(**changes):
    return SpatialConfig(**{**SMALL.model_dump(), **changes})


def foreign(config):
    """diffusers' model of the same shape."""
    stages = len(config.widths)
    return AutoencoderKL(
        in_channels=config.channels,
        out_channels=config.channels,
        down_block_types=["DownEncoderBlock2D"] * stages,
        up_block_types=["UpDecoderBlock2D"] * stages,
        block_out_channels=config.widths,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        use_quant_conv=config.quant_convs,
        use_post_quant_conv=config.quant_convs,
        mid_block_add_attention=config.attention,
    ).eval()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"attention": False, "quant_convs": False, "channels": 1, "layers_per_block": 1},
        {"downsample_factor": 8, "channel_mult": [1, 3, 1, 2]},
    ],
)
@torch.no_grad()
def test_it_computes_what_diffusers_computes(change):
    config = changed(**change)
    model, other = build_model(config, seed=0).eval(), foreign(config)
    other.load_state_dict({diffusers_key(name): value for name, value in model.state_dict().items()})
    images = torch.rand(2, config.channels, 16, 16)
    posterior, theirs = model.encode(images), other.encode(2 * images - 1).latent_dist
    assert torch.equal(posterior.mean, theirs.mean.flatten(1))
    assert torch.equal(posterior.logvar, theirs.logvar.flatten(1))
    latents = torch.randn(2, config.latents)
    decoded = other.decode(latents.unflatten(1, (config.latent_channels, config.side, config.side))).sample
    assert torch.equal(model.decode(latents), 0.5 + 0.5 * decoded)
    assert torch.allclose(model.train().decode(latents), 0.5 + 0.5 * decoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 3)])
def test_a_doubling_in_one_is_repeated_pixels_and_a_convolution(shape):
    """Result and gradients of what training computes, against what everything else does."""
    layer = Upsampler(6).double()
    features = torch.randn(2, 6, *shape, dtype=torch.double, requires_grad=True)
    inputs = [features, layer.conv.weight, layer.conv.bias]
    repeated, in_one = layer.eval()(features), layer.train()(features)
    wanted = torch.randn_like(repeated)
    expected, actual = (torch.autograd.grad(result, inputs, wanted) for result in (repeated, in_one))
    assert torch.allclose(in_one, repeated, rtol=0, atol=1e-12)
    assert all(torch.allclose(one, other, rtol=0, atol=1e-11) for one, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    ("downsample_factor", "latent_channels", "parameters"),
    [(4, 3, 55_312_063), (8, 4, 83_653_863), (16, 16, 64_352_723)],
)
def test_default_widths_are_those_of_published_autoencoders(downsample_factor, latent_channels, parameters):
    """83,653,863 is Stable Diffusion's autoencoder."""
    config = SpatialConfig(downsample_factor=downsample_factor, latent_channels=latent_channels, channels=3)
    with torch.device("meta"):
        model = build_model(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert config.latents == latent_channels * (256 // downsample_factor) ** 2


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 32},
        {"downsample_factor": 8},
        {"latent_channels": 3},
        {"base_channels": 16},
        {"channel_mult": [1, 1, 1]},
        {"layers_per_block": 1},
        {"attention": False},
        {"quant_convs": False},
        {"channels": 1},
    ],
)
def test_every_setting_changes_the_model(change):
    def shapes(config):
        return [config.latents, *(tuple(parameter.shape) for parameter in build_model(config).parameters())]

    assert shapes(SMALL) != shapes(changed(**change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 30}, "give 28 or 32"),
        ({"channel_mult": [1, 2]}, "give 3 numbers"),
        ({"downsample_factor": 5}, "4, 8 or 16"),
    ],
)
def test_what_makes_no_map_is_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        changed(**change)


def test_every_parameter_is_moved():
    model = build_model(SMALL, seed=0)
    output = model(torch.rand(4, 3, 16, 16), torch.randn(4, SMALL.latents))
    (output.reconstruction.square().sum() + output.posterior.kl_per_unit().sum()).backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())


def test_an_image_does_not_see_its_neighbours():
    model = build_model(SMALL, seed=0).eval()
    images, noise = torch.rand(4, 3, 16, 16), torch.randn(4, SMALL.latents)
    together = model(images, noise).reconstruction
    alone = torch.cat([model(images[i : i + 1], noise[i : i + 1]).reconstruction for i in range(4)])
    torch.testing.assert_close(together, alone)


def test_the_posterior_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = build_model(SMALL, seed=0)(torch.rand(2, 3, 16, 16), torch.randn(2, SMALL.latents))
    assert output.posterior.logvar.dtype == output.reconstruction.dtype == torch.float32


@pytest.mark.parametrize("quant_convs", [True, False])
@torch.no_grad()
def test_a_channel_is_replaced_whole_or_not_at_all(quant_convs):
    config = changed(quant_convs=quant_convs)
    model, before, donor = (build_model(config, seed=seed).eval() for seed in (0, 0, 1))
    which = torch.zeros(config.latents, dtype=torch.bool)
    which[: config.positions + 3] = True  # the first channel, and some of the second
    model.reinit_latent_units(which, donor)
    images = torch.rand(2, 3, 16, 16)
    own, old = (each.encode(images).mean.unflatten(1, (2, -1)) for each in (model, before))
    assert torch.equal(own[:, 1], old[:, 1])
    assert not torch.allclose(own[:, 0], old[:, 0])
    latents = torch.randn(2, config.latents)
    latents[:, : config.positions] = 0.0  # the decoder differs by what it makes of the first channel
    torch.testing.assert_close(model.decode(latents), before.decode(latents))
    assert not torch.allclose(model.decode(latents + 1), before.decode(latents + 1))


@torch.no_grad()
def test_it_is_traced_for_a_batch_of_any_size():
    decoder = build_model(SMALL, seed=0).eval().decoder
    latents = torch.randn(2, SMALL.latents)
    program = torch.export.export(
        decoder, (latents,), dynamic_shapes={"latents": {0: torch.export.Dim("batch", min=1)}}
    )
    more = torch.randn(5, SMALL.latents)
    assert torch.equal(program.module()(more), decoder(more))
