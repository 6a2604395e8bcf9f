"""Sheets of pictures: originals beside reconstructions, samples from two densities, a walk between two images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unified_vae.core.counter import key
from unified_vae.core.durable import STAGE_PREFIX, discard
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.models.density import fit_simple
from unified_vae.models.vae import VAE
from unified_vae.training.random import fixed_noise

MARGIN = 2  # pixels between pictures
SMALLEST = 64  # smaller pictures are enlarged by a whole factor, so that a sheet can be looked at
CAPTION = 18  # pixels of the line of text
LATENTS_FROM = 512  # training images whose latents the sheet of samples fits a Gaussian to
FEWEST = 10  # images below which it does not


def to_pixels(images: Tensor) -> np.ndarray:
    """Images [n, channels, h, w] in [0, 1] -> uint8 [n, h, w, 3]."""
    rgb = images.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    pixels: np.ndarray = (rgb * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pixels


def sheet(pictures: np.ndarray, columns: int, caption: str, group: int = 1) -> Image.Image:
    """A grid of pictures with a line of text above it.

    Args:
        pictures: uint8 [n, h, w, 3].
        columns: pictures in a row.
        caption: one line.
        group: pictures that belong together stand closer than `group`s do.
    """
    count, height, width = pictures.shape[:3]
    zoom = max(1, math.ceil(SMALLEST / height))
    pictures = pictures.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width = height * zoom, width * zoom
    rows = math.ceil(count / columns)
    gaps = MARGIN * (columns + 1) + 3 * MARGIN * (columns // group - 1 if group > 1 else 0)
    canvas = Image.new("RGB", (columns * width + gaps, CAPTION + rows * (height + MARGIN) + MARGIN), "white")
    ImageDraw.Draw(canvas).text((MARGIN + 1, 2), caption, fill="black", font=ImageFont.load_default(12))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        extra = 3 * MARGIN * (column // group) if group > 1 else 0
        x = MARGIN + column * (width + MARGIN) + extra
        y = CAPTION + MARGIN + row * (height + MARGIN)
        canvas.paste(Image.fromarray(picture), (x, y))
    return canvas


def below_one_another(blocks: Sequence[Image.Image]) -> Image.Image:
    """Sheets as one, as wide as the widest."""
    canvas = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), "white")
    top = 0
    for block in blocks:
        canvas.paste(block, (0, top))
        top += block.height
    return canvas


def sampled(model: VAE, latents: Tensor, caption: str) -> Image.Image:
    """A sheet of what latents [n, latents] are decoded to."""
    pictures = model.decode(latents.to(next(model.parameters()).device))
    return sheet(to_pixels(pictures), min(8, len(latents)), caption)


def sampled_from_prior(model: VAE, count: int, seed: int, remark: str = "") -> Image.Image:
    """A sheet of samples from N(0, I), the same latents on each sheet of a run."""
    latents = fixed_noise(seed, "sample sheet", count, model.latents, torch.device("cpu"))
    return sampled(model, latents, f"samples from N(0, I){remark}")


def sheet_noise(seed: int) -> torch.Generator:
    """The random numbers of the sheets' fitted samples: the same on each sheet of a run."""
    return torch.Generator().manual_seed(key(seed, "fitted sample sheet") % 2**63)


@torch.no_grad()
def paint_density(model: VAE, path: Path, count: int, seed: int) -> Path:
    """Draw samples from N(0, I), and below them from the model's latent density; returns `path`."""
    blocks = [sampled_from_prior(model, count, seed)]
    if model.density.kind != "normal":
        latents = model.density.sample(count, sheet_noise(seed))
        blocks.append(sampled(model, latents, f"samples from {model.density.describe()}, fitted to the latents"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_picture(below_one_another(blocks), path)


def write_picture(picture: Image.Image, path: Path) -> Path:
    """Write a PNG in one step; returns `path`.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}")
    try:
        picture.save(stage, format="PNG")
        return stage.replace(path)
    except OSError as error:
        discard(stage)
        error.filename = str(path)  # a full disk is reported without a name
        raise


class SheetPainter:
    """Draws the three sheets of a run, always of the same images and the same noise."""

    def __init__(self, folder: Path, images: Tensor, count: int, seed: int, train: Tensor) -> None:
        """Images are uint8 [n, channels, h, w] on the CPU.

        Args:
            images: the first `count` are drawn.
            train: training images, for a Gaussian of their latents beside N(0, I).
        """
        self.folder = folder
        self.train = train
        self.images = images[:count]
        self.count = count
        self.seed = seed

    @torch.no_grad()
    def paint(self, model: VAE, step: int, name: str) -> dict[str, Path]:
        """Draw all sheets with `model`; returns tag -> file. `name` starts the file names, e.g. `epoch-0005`."""
        device = next(model.parameters()).device
        images = self.images.to(device).float() / 255
        sheets = {
            "reconstructions": self._reconstructions(model, images, step),
            "samples": self._samples(model, step, device),
            "interpolation": self._interpolation(model, images, step),
        }
        self.folder.mkdir(exist_ok=True)  # not its parents: where they vanished, a disk may have gone with them
        return {tag: write_picture(picture, self.folder / f"{name}-{tag}.png") for tag, picture in sheets.items()}

    def _reconstructions(self, model: VAE, images: Tensor, step: int) -> Image.Image:
        pairs = torch.stack([images, model(images).reconstruction], dim=1).flatten(0, 1)
        columns = 2 * min(4, len(images))
        return sheet(to_pixels(pairs), columns, f"original | reconstruction, step {step:,}", group=2)

    def _samples(self, model: VAE, step: int, device: torch.device) -> Image.Image:
        """From N(0, I), and below that from a Gaussian fitted to the latents of some training images."""
        prior = sampled_from_prior(model, self.count, self.seed, f", step {step:,}")
        if len(self.train) < FEWEST:
            return prior
        try:
            density = fit_simple(self._posteriors(model, device))
        except (ArithmeticError, RuntimeError) as problem:  # a sheet is no reason to end a run
            reason = str(problem).splitlines()[0]
            return sampled_from_prior(model, self.count, self.seed, f", step {step:,}; no density fitted: {reason}")
        latents = density.sample(self.count, sheet_noise(self.seed))
        caption = f"samples from {density.describe()}, fitted to the latents of {len(self.train):,} training images"
        return below_one_another([prior, sampled(model, latents, caption)])

    def _posteriors(self, model: VAE, device: torch.device) -> DiagonalGaussian:
        found = [model.encode(some.to(device).float() / 255) for some in self.train.split(model.encode_batch_size)]
        return DiagonalGaussian(
            torch.cat([each.mean for each in found]).cpu(), torch.cat([each.logvar for each in found]).cpu()
        )

    def _interpolation(self, model: VAE, images: Tensor, step: int) -> Image.Image:
        """A row for each pair of neighbouring images: original, eight decoded steps between, original."""
        pairs = min(4, max(1, len(images) // 2))
        means = model.encode(images).mean
        rows = []
        for pair in range(pairs):
            first, second = (2 * pair) % len(images), (2 * pair + 1) % len(images)
            t = torch.linspace(0, 1, 8, device=means.device)[:, None]
            walk = model.decode((1 - t) * means[first] + t * means[second])
            rows.append(torch.cat([images[first : first + 1], walk, images[second : second + 1]]))
        return sheet(to_pixels(torch.cat(rows)), 10, f"original, walk between the latents, original; step {step:,}")
