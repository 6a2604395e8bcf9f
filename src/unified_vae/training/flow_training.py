"""Train a normalizing flow on latents: fresh draws from the posteriors at each step, stopped by what was kept out."""

from __future__ import annotations

import copy

import torch
from torch import nn

from unified_vae.config.optim import AdamWConfig
from unified_vae.core.counter import key
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.models.density.flow import FlowDensity
from unified_vae.models.density.gaussian import GaussianDensity, some
from unified_vae.models.density.mixture import draw
from unified_vae.optim.build import build_optimizers
from unified_vae.training.density_judge import Judge, generator
from unified_vae.training.ema import EMA

OPTIMIZER = AdamWConfig(lr=2e-3, weight_decay=0.5)
BATCH = 256  # images
CLIP_NORM = 5.0
DECAY = 0.98  # of the averaged weights, which are the ones judged and kept
LOOK_EVERY = 25  # steps
PATIENCE = 8  # looks without gain


def train_flow(base: GaussianDensity, posteriors: DiagonalGaussian, judge: Judge, steps: int, seed: int) -> FlowDensity:
    """The flow, begun as `base`, under which what was kept out was likeliest.

    Args:
        steps: at most so many.
        seed: decides first weights, batches and draws.
    """
    flow = FlowDensity.started_as(base, key(seed, "density", "flow"))
    source = generator(seed, "flow")
    optimizer = build_optimizers(OPTIMIZER, flow, fused=False)["main"]
    average = EMA(flow, DECAY)
    best, best_nats, best_step = copy.deepcopy(average.model), float(judge.log_likelihoods(flow).mean()), 0
    for step in range(1, steps + 1):
        batch = torch.randint(len(posteriors.mean), (min(BATCH, len(posteriors.mean)),), generator=source)
        values = flow.standard(draw(some(posteriors, batch), source))
        optimizer.zero_grad()
        (-flow.log_prob_standard(values).mean()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(flow.parameters(), CLIP_NORM)
        optimizer.step()
        average.update(step)
        if step % LOOK_EVERY == 0 or step == steps:
            nats = float(judge.log_likelihoods(average.model).mean())
            if nats > best_nats:
                best, best_nats, best_step = copy.deepcopy(average.model), nats, step
            elif step - best_step >= PATIENCE * LOOK_EVERY:
                break
    if best_step:
        best.level(generator(seed, "flow levelled"))
    return best
