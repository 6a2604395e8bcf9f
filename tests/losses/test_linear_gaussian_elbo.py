"""With MSE alone and beta = 1 the objective is the negative ELBO, and probabilistic PCA is its optimum.

Every quantity of a linear-Gaussian VAE has a closed form (Tipping & Bishop 1999; Lucas et al. 2019). The
expectation over the latent noise is exact too: the points +-sqrt(k) e_j have the mean and covariance of
N(0, I), and the squared error of a linear decoder needs no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from unified_vae.config.loss import KLConfig, LossConfig
from unified_vae.core.distributions import DiagonalGaussian, VAEOutput
from unified_vae.losses.build import build_objective
from unified_vae.losses.objective import Objective

SIZE, LATENTS, IMAGES = 4, 3, 100
D = SIZE * SIZE


@dataclass
class LinearVAE:
    """x = W z + b, q(z|x) = N(V (x - b), diag(exp(logvar)))."""

    decoder: Tensor  # W, [D, latents]
    bias: Tensor  # b, [D]
    encoder: Tensor  # V, [latents, D]
    logvar: Tensor  # [latents]

    def parameters(self) -> list[Tensor]:
        return [self.decoder, self.bias, self.encoder, self.logvar]

    def __call__(self, images: Tensor) -> tuple[VAEOutput, Tensor]:
        """The output for all noise points of each image, and the images repeated to match."""
        points = math.sqrt(LATENTS) * torch.cat([torch.eye(LATENTS), -torch.eye(LATENTS)])
        repeated = images.repeat_interleave(len(points), 0)
        mean = (repeated.flatten(1) - self.bias) @ self.encoder.T
        posterior = DiagonalGaussian(mean, self.logvar.expand_as(mean))
        latents = posterior.sample(points.repeat(len(images), 1))
        reconstruction = (latents @ self.decoder.T + self.bias).view_as(repeated)
        return VAEOutput(reconstruction, posterior, latents), repeated


@pytest.fixture(scope="module")
def data() -> Tensor:
    """Gaussian images with a few strong directions, so that some of them deserve a latent."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.cat([torch.tensor([0.5, 0.4, 0.3]), 0.1 * torch.ones(D - 3)])
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    values = torch.randn(IMAGES, D, generator=generator) * spread @ directions.T + 0.5
    return values.view(IMAGES, 1, SIZE, SIZE)


def objective_at(variance: float, beta: float = 1.0) -> Objective:
    """MSE alone, calibrated to a decoder noise of this variance."""
    objective = build_objective(LossConfig(kl=KLConfig(weight=beta)), channels=1, image_size=SIZE)
    objective.observe({"mse": torch.tensor(variance)})
    return objective


def probabilistic_pca(data: Tensor) -> tuple[LinearVAE, float, Tensor, Tensor]:
    """The optimal VAE of Tipping & Bishop, its noise variance, and the data's mean and covariance."""
    values = data.flatten(1).double()
    mean, covariance = values.mean(0), torch.cov(values.T, correction=0)
    eigenvalues, vectors = (part.flip(-1) for part in torch.linalg.eigh(covariance))
    variance = eigenvalues[LATENTS:].mean()
    signal = eigenvalues[:LATENTS] - variance
    decoder = vectors[:, :LATENTS] * signal.sqrt()
    encoder = (decoder / eigenvalues[:LATENTS]).T  # M^-1 W^T with M = W^T W + variance * I, diagonal here
    logvar = (variance / eigenvalues[:LATENTS]).log()
    model = LinearVAE(*(part.float().requires_grad_() for part in (decoder, mean, encoder, logvar)))
    return model, variance.item(), mean, covariance


def test_equals_the_closed_form_negative_elbo_at_any_parameters(data: Tensor) -> None:
    generator = torch.Generator().manual_seed(2)
    model = LinearVAE(
        0.3 * torch.randn(D, LATENTS, generator=generator),
        torch.full((D,), 0.4),
        0.2 * torch.randn(LATENTS, D, generator=generator),
        torch.tensor([-2.0, -1.0, 0.5]),
    )
    variance = 0.03
    value = objective_at(variance)(*model(data), progress=0.5)

    decoder, bias, encoder, logvar = (part.double() for part in model.parameters())
    centred = data.flatten(1).double() - bias
    mean = centred @ encoder.T
    error = (centred - mean @ decoder.T).square().sum(1) + (decoder.square() * logvar.exp()).sum()
    nll = D / 2 * math.log(2 * math.pi * variance) + error / (2 * variance)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)

    assert value.nll.item() == pytest.approx(nll.mean().item(), rel=1e-5)
    assert value.rate.item() == pytest.approx(kl.mean().item(), rel=1e-5)
    assert value.loss.item() * D == pytest.approx((nll + kl).mean().item(), rel=1e-5)


def test_reaches_the_exact_log_likelihood_at_probabilistic_pca(data: Tensor) -> None:
    model, variance, mean, _ = probabilistic_pca(data)
    decoder = model.decoder.detach().double()
    marginal = decoder @ decoder.T + variance * torch.eye(D)  # covariance of x under the model
    centred = data.flatten(1).double() - mean
    mahalanobis = (centred @ torch.linalg.inv(marginal) * centred).sum(1).mean()
    negative_log_likelihood = 0.5 * (mahalanobis + torch.logdet(2 * math.pi * marginal))
    value = objective_at(variance)(*model(data), progress=1.0)
    assert value.loss.item() * D == pytest.approx(negative_log_likelihood.item(), rel=1e-5)


def test_is_stationary_at_probabilistic_pca_with_its_noise(data: Tensor) -> None:
    model, variance, _, _ = probabilistic_pca(data)
    output, repeated = model(data)
    objective = objective_at(variance)

    assert objective.measure(output, repeated)["mse"].item() == pytest.approx(variance, rel=1e-4)
    at_optimum = torch.autograd.grad(objective(output, repeated, 1.0).loss, model.parameters())
    with_other_beta = torch.autograd.grad(objective_at(variance, beta=4.0)(*model(data), 1.0).loss, model.parameters())
    assert max(gradient.abs().max().item() for gradient in at_optimum) < 1e-5
    assert max(gradient.abs().max().item() for gradient in with_other_beta) > 1e-2


def test_descent_with_running_scale_recovers_probabilistic_pca(data: Tensor) -> None:
    optimum, variance, _, _ = probabilistic_pca(data)
    generator = torch.Generator().manual_seed(3)
    start = [0.1 * torch.randn(part.shape, generator=generator) for part in optimum.parameters()]
    model = LinearVAE(*(part.requires_grad_() for part in start))
    objective = build_objective(LossConfig(), channels=1, image_size=SIZE)
    objective.observe(objective.measure(*model(data)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        value = objective(*model(data), progress=1.0)
        optimizer.zero_grad()
        value.loss.backward()
        optimizer.step()
        schedule.step()
        objective.observe(value.terms)

    learned = torch.linalg.qr(model.decoder.detach()).Q
    expected = torch.linalg.qr(optimum.decoder.detach()).Q
    assert torch.linalg.svdvals(learned.T @ expected).min() > 0.999  # same subspace, whatever its rotation
    assert objective.sigma() == pytest.approx(math.sqrt(variance), rel=0.02)
    best = objective_at(variance)(*optimum(data), 1.0).loss.item()
    assert objective(*model(data), 1.0).loss.item() == pytest.approx(best, abs=2e-3)


def test_larger_beta_drops_the_directions_that_theory_says(data: Tensor) -> None:
    """Component i survives iff lambda_i > beta * sigma^2 (Lucas et al. 2019): the gradient at the collapsed
    decoder pushes a small component up below that beta and down above it."""
    optimum, variance, _, covariance = probabilistic_pca(data)
    weakest = torch.linalg.eigvalsh(covariance).flip(-1)[LATENTS - 1].item()

    def growth(beta: float) -> float:
        """Change of the loss when the weakest component, once collapsed, gets a little signal."""
        losses = []
        for size in (0.0, 1e-2):
            decoder, encoder, logvar = (
                part.detach().clone() for part in (optimum.decoder, optimum.encoder, optimum.logvar)
            )
            direction = decoder[:, -1] / decoder[:, -1].norm()
            noise = beta * variance
            decoder[:, -1] = size * direction
            encoder[-1] = size * direction / (size**2 + noise)
            logvar[-1] = math.log(noise / (size**2 + noise))
            model = LinearVAE(decoder, optimum.bias.detach(), encoder, logvar)
            losses.append(objective_at(variance, beta)(*model(data), 1.0).loss.item())
        return losses[1] - losses[0]

    threshold = weakest / variance
    assert growth(0.5 * threshold) < 0 < growth(2 * threshold)
