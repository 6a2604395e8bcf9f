"""The PCA skip: a model that starts as the optimal linear VAE, and a network beside it that then learns."""

import numpy as np
import pytest
import torch

from unified_vae.config.model import ConvConfig, ResidualConfig
from unified_vae.core.linear_vae import LARGEST_SIDE, PrincipalComponents, enlarge, optimum, working_side
from unified_vae.models.build import build_model
from unified_vae.models.pca_skip import fold_factor, fold_to_size


def basis_of(size: int, channels: int = 3, count: int = 6, seed: int = 0) -> PrincipalComponents:
    side = working_side(size)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(channels * side**2, count, generator=generator))[0].T
    eigenvalues = np.array([40.0, 20.0, 10.0, 5.0, 2.0, 1.0])[:count]
    mean = torch.rand(channels, side, side, generator=generator)
    covered = (size / side) ** 2
    shaped = directions.reshape(count, channels, side, side).contiguous()
    return PrincipalComponents(mean, shaped, eigenvalues, float(eigenvalues.sum()) + 9, covered, 100)


def started(size: int, latents: int = 6, beta: float = 2.0, count: int = 6, family=ConvConfig):
    basis = basis_of(size, count=count)
    spectrum = basis.eigenvalues[:latents]
    linear = optimum(spectrum, basis.rest(latents), 3 * size**2, beta)
    model = build_model(family(image_size=size, latents=latents, base_channels=4, channels=3), seed=0).eval()
    model.init_from_pca(basis, linear)
    return model, basis, linear


@pytest.mark.parametrize("size", [16, 31, 64])
def test_the_start_is_the_optimal_linear_vae(size):
    model, basis, linear = started(size)
    coordinates = torch.randn(4, 6) * torch.from_numpy(basis.eigenvalues).sqrt().float()
    images = basis.mean + torch.einsum("nk,kchw->nchw", coordinates, basis.components)
    output = model(images)
    gains = torch.from_numpy(linear.encoder_gains(basis.eigenvalues)).float()
    torch.testing.assert_close(output.posterior.mean, coordinates * gains, rtol=1e-3, atol=1e-3)
    variances = torch.from_numpy(linear.posterior_variances).float()
    torch.testing.assert_close(output.posterior.logvar.exp(), variances.expand(4, -1))
    kept = coordinates * (1 - variances)
    expected = basis.mean + torch.einsum("nk,kchw->nchw", kept, basis.components)
    torch.testing.assert_close(output.reconstruction, expected, rtol=1e-3, atol=1e-3)


def test_large_images_go_through_their_averaged_versions():
    model, basis, linear = started(2 * LARGEST_SIDE)
    pooled = basis.mean + 3 * basis.components[0]
    images = pooled.repeat_interleave(2, 1).repeat_interleave(2, 2)[None]
    mean = model.encode(images).mean[0].detach()
    expected = 3 * linear.encoder_gains(basis.eigenvalues)[0] * basis.covered**0.5
    assert float(mean[0]) == pytest.approx(expected, rel=1e-3)
    assert float(mean[1:].abs().max()) < 1e-3
    assert torch.equal(model.decode(torch.zeros(1, 6))[0], enlarge(basis.mean[None], 2 * LARGEST_SIDE)[0])


def test_units_without_a_component_keep_their_random_weights():
    model, _, linear = started(16, latents=9, count=4)
    fresh = build_model(ConvConfig(image_size=16, latents=9, base_channels=4, channels=3), seed=0)
    kept = linear.active_units
    assert kept == 4
    assert torch.equal(model.encoder.head.weight[kept:9], fresh.encoder.head.weight[kept:9])
    assert not model.encoder.head.weight[:kept].any()
    assert ((model.encoder.head.gain < 1) == torch.tensor([*[True] * 4, *[False] * 5] * 2)).all()


def test_the_network_learns_from_the_start():
    """Silent, but not stuck: its last layer and its first step move."""
    model, _, _ = started(16)
    model.train()
    output = model(torch.rand(4, 3, 16, 16), torch.randn(4, 6))
    (output.reconstruction.square().sum() + output.posterior.kl_per_unit().sum()).backward()
    for layer in (model.decoder.conv_out, model.encoder.head):
        assert bool((layer.weight.grad != 0).any())
    assert all(parameter.grad is None for parameter in model.pca_skip.parameters())


@pytest.mark.parametrize(
    ("family", "jumps"),
    [(ConvConfig, {}), (ResidualConfig, {"bottleneck_channels": 256, "pre_encoder_blocks": 0}), (ResidualConfig, None)],
)
def test_the_first_step_of_adam_leaves_the_start_softly(family, jumps):
    """Latents move by little of their spread (1), pixels by about one of 255 levels; at full gain both jump."""
    basis = basis_of(64)
    linear = optimum(basis.eigenvalues, basis.rest(6), 3 * 64**2, 2.0)
    images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def moved(gain: float | None) -> tuple[float, float]:
        config = family(image_size=64, latents=6, base_channels=32, channels=3, **(jumps or {}))
        model = build_model(config, seed=0)
        model.init_from_pca(basis, linear)
        if gain is not None:
            model.encoder.head.gain.fill_(gain)
            model.decoder.residual_scale.fill_(gain)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        before = model(images, torch.zeros(8, 6))
        (before.reconstruction - images).square().sum().add(before.posterior.kl_per_unit().sum()).backward()
        optimizer.step()
        latents = before.posterior.mean.detach()
        detail = model.decode(latents) - before.reconstruction
        shift = model.encode(images).mean - latents
        return shift.detach().square().mean().sqrt().item(), detail.detach().square().mean().sqrt().item()

    latents, pixels = moved(None)
    assert 0 < latents < 0.1 and 0 < pixels < 0.003
    if jumps is None:  # a narrow bottleneck is soft by itself
        return
    latents, pixels = moved(1.0)
    assert latents > 0.3 and pixels > 0.005


@pytest.mark.parametrize("count", [4, 6])
def test_the_residual_decoder_starts_at_the_pca_reconstruction(count):
    """Latents that the PCA reconstruction shows move it by nothing else at first; the others do."""
    model, _, linear = started(32, count=count, family=ResidualConfig)
    decoder, reconstruction = model.decoder, torch.rand(1, 3, 32, 32)
    torch.nn.init.normal_(decoder.conv_out.weight)  # as after the first step
    for unit in range(6):
        one, two = (decoder(float(value) * torch.eye(6)[[unit]], reconstruction) for value in (-1, 1))
        assert torch.equal(one, two) == (unit < linear.active_units)
    decoder(torch.randn(4, 6), reconstruction.expand(4, -1, -1, -1)).square().sum().backward()
    for late in (decoder.head, *(stage.pca_conditioning.mix for stage in decoder.stages)):  # silent at first, not stuck
        assert bool((late.weight.grad != 0).flatten(1).any(1).all())


def test_every_map_is_conditioned_on_the_pca_reconstruction():
    """Where the last layer is not zero, another PCA reconstruction alone changes the residual."""
    model = build_model(ConvConfig(image_size=32, latents=6, base_channels=4, channels=3), seed=0)
    latents, reconstruction = torch.randn(1, 6), torch.rand(1, 3, 32, 32)
    for stage in model.decoder.stages:
        assert stage.pca_conditioning.mix.in_channels in (12, 48)
    assert not torch.equal(model.decoder(latents, reconstruction), model.decoder(latents, 1 - reconstruction))


@pytest.mark.parametrize(("size", "side", "fold"), [(8, 64, 4), (16, 64, 4), (32, 64, 2), (64, 64, 1), (64, 32, 1)])
def test_folding_keeps_the_bound_and_the_details_that_fit(size, side, fold):
    assert fold_factor(3, size, side, 48) == fold
    reconstruction = torch.rand(2, 3, side, side)
    features = fold_to_size(reconstruction, size, 48)
    assert features.shape == (2, 3 * fold**2, size, size)
    if size * fold == side:
        assert torch.equal(torch.nn.functional.pixel_shuffle(features, fold) if fold > 1 else features, reconstruction)


def test_replaced_units_take_their_part_of_the_path():
    model, *_ = started(16)
    donor, *_ = started(16, beta=0.1)
    which = torch.tensor([True, False, True, False, False, False])
    before = model.pca_skip.to_pixels.weight.clone()
    model.reinit_latent_units(which, donor)
    assert torch.equal(model.pca_skip.to_pixels.weight[:, which], donor.pca_skip.to_pixels.weight[:, which])
    assert torch.equal(model.pca_skip.to_pixels.weight[:, ~which], before[:, ~which])
    assert torch.equal(model.pca_skip.to_latents.bias[which], donor.pca_skip.to_latents.bias[which])


def test_replaced_units_learn_as_softly_as_the_donors():
    model = build_model(ConvConfig(image_size=16, latents=6, base_channels=4, channels=3), seed=0)
    donor, *_ = started(16)
    which = torch.tensor([True, False, True, False, False, False])
    model.reinit_latent_units(which, donor)
    assert ((model.encoder.head.gain < 1) == which.repeat(2)).all()
