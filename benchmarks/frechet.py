"""Fréchet distance (Heusel et al. 2017, arXiv 1706.08500) in features of a small classifier trained here.

No pretrained network is needed, so the figures compare only with one another, never with published FIDs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified_vae.metrics.sets import frechet_distance as frechet_distance  # beside the features it is taken in

FEATURES = 64
SIZE = 32  # pixels that the classifier sees


def classifier(classes: int) -> nn.Sequential:
    """Three stages of convolutions, a mean over places, `FEATURES` features, a linear layer on top."""
    stages: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128)):
        stages += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU(), nn.MaxPool2d(2)]
    body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, FEATURES), nn.SiLU())
    return nn.Sequential(body, nn.Dropout(0.3), nn.Linear(FEATURES, classes))


def train_classifier(pictures: Tensor, labels: Tensor, epochs: int, seed: int = 0) -> nn.Sequential:
    """Fit to images [n, 3, 32, 32] in [0, 1] and class numbers [n], with mirrored and shifted copies."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        net = classifier(int(labels.max()) + 1)
        steps = epochs * -(-len(pictures) // 64)
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
        for _ in range(epochs):
            for chosen in torch.randperm(len(pictures)).split(64):
                loss = F.cross_entropy(net(_varied(pictures[chosen]) - 0.5), labels[chosen], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def _varied(pictures: Tensor) -> Tensor:
    """Mirrored and shifted by up to 3 pixels, the same for a batch."""
    x, y = torch.randint(-3, 4, (2,)).tolist()
    moved = F.pad(pictures, (3, 3, 3, 3), mode="reflect")[..., 3 + y : 3 + y + SIZE, 3 + x : 3 + x + SIZE]
    return moved.flip(-1) if torch.rand(()) < 0.5 else moved


@torch.no_grad()
def accuracy(net: nn.Sequential, pictures: Tensor, labels: Tensor) -> float:
    """Part of the images whose class is the most likely one."""
    answers = torch.cat([net(part - 0.5).argmax(1) for part in pictures.split(250)])
    return (answers == labels).float().mean().item()


@torch.no_grad()
def features(net: nn.Sequential, pictures: Tensor) -> Tensor:
    """[n, FEATURES] of images [n, 1 or 3, size, size] in [0, 1], brought to 32 px RGB."""
    parts = []
    for part in pictures.clamp(0, 1).expand(-1, 3, -1, -1).split(250):
        small = part if part.shape[-1] == SIZE else F.interpolate(part, SIZE, mode="bilinear", antialias=True)
        parts.append(net[0](small - 0.5))
    return torch.cat(parts)
