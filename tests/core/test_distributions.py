"""The diagonal Gaussian against torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence

from unified_vae.core.distributions import DiagonalGaussian


def test_kl_equals_the_library_s():
    mean, logvar = torch.randn(5, 7), torch.randn(5, 7)
    ours = DiagonalGaussian(mean, logvar).kl_per_unit()
    theirs = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), Normal(0.0, 1.0))
    torch.testing.assert_close(ours, theirs)


def test_sample_has_the_distribution_s_moments():
    posterior = DiagonalGaussian(torch.full((1, 2), 3.0), torch.full((1, 2), 0.5).log() * 2)
    draws = posterior.sample(torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(draws.mean(0), torch.tensor([3.0, 3.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.tensor([0.5, 0.5]), atol=0.02, rtol=0)


def test_moments_are_float32_and_bounded():
    posterior = DiagonalGaussian.from_moments(torch.full((2, 6), 1e4, dtype=torch.bfloat16))
    assert posterior.mean.dtype == posterior.logvar.dtype == torch.float32
    assert torch.isfinite(posterior.sample(torch.ones(2, 3))).all()
    assert torch.isfinite(posterior.kl_per_unit()).all()
