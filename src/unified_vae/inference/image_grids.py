"""Grids of images: originals beside reconstructions, samples from two densities, interpolations, with a caption."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.errors import ConfigError, DataError, EnvironmentProblem
from unified_vae.core.events import Observer
from unified_vae.core.files import STAGE_PREFIX, discard
from unified_vae.core.rng import fixed_noise, key
from unified_vae.models.density import fit_simple
from unified_vae.models.vae import VAE

MARGIN = 2  # pixels between images
MIN_HEIGHT = 64  # smaller images are enlarged by a whole factor, so that a grid can be looked at
CAPTION_HEIGHT = 18  # pixels
FITTED_IMAGES = 512  # training images whose latents the grid of samples fits a Gaussian to
MIN_FITTED_IMAGES = 10
MAX_IMAGES = 256
"""On one grid."""


# --- images ----------------------------------------------------------------------------------------------


def to_uint8(images: Tensor) -> np.ndarray:
    """Images [n, channels, h, w] in [0, 1] -> uint8 [n, h, w, channels]."""
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return np.ascontiguousarray(pixels.cpu().numpy())


def to_pixels(images: Tensor) -> np.ndarray:
    """Images [n, channels, h, w] in [0, 1] -> uint8 [n, h, w, 3]."""
    return to_uint8(images.expand(-1, 3, -1, -1))


def to_pil(images: Tensor) -> list[Image.Image]:
    """Images [n, channels, h, w] or one [channels, h, w] in [0, 1] as Pillow images, gray or RGB, of 8 bits.

    Raises:
        DataError: a value is NaN/Inf, which would become black.
    """
    if not bool(torch.isfinite(images).all()):
        raise DataError("the images hold NaN/Inf, which are no pixels: decode them in float32, or check the latents")
    pixels = to_uint8(images[None] if images.ndim == 3 else images)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]


def grid(images: Tensor, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Images [n, channels, h, w] in rows on white; by default as many columns as rows."""
    tiles = to_pil(images)
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    width, height = tiles[0].size
    canvas = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        canvas.paste(tile, (column * (width + gap), row * (height + gap)))
    return canvas


def draw_grid(pixels: np.ndarray, columns: int, caption: str, group: int = 1) -> Image.Image:
    """A grid of images with a line of text above it.

    Args:
        pixels: uint8 [n, h, w, 3].
        columns: images in a row.
        caption: one line.
        group: images that belong together stand closer than groups of `group` do.
    """
    count, height, width = pixels.shape[:3]
    zoom = max(1, math.ceil(MIN_HEIGHT / height))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width = height * zoom, width * zoom
    rows = math.ceil(count / columns)
    gaps = MARGIN * (columns + 1) + 3 * MARGIN * (columns // group - 1 if group > 1 else 0)
    canvas = Image.new("RGB", (columns * width + gaps, CAPTION_HEIGHT + rows * (height + MARGIN) + MARGIN), "white")
    ImageDraw.Draw(canvas).text((MARGIN + 1, 2), caption, fill="black", font=ImageFont.load_default(12))
    for number, image in enumerate(pixels):
        row, column = divmod(number, columns)
        extra = 3 * MARGIN * (column // group) if group > 1 else 0
        x = MARGIN + column * (width + MARGIN) + extra
        y = CAPTION_HEIGHT + MARGIN + row * (height + MARGIN)
        canvas.paste(Image.fromarray(image), (x, y))
    return canvas


def stack_vertically(grids: Sequence[Image.Image]) -> Image.Image:
    """Grids below one another, as wide as the widest."""
    canvas = Image.new("RGB", (max(image.width for image in grids), sum(image.height for image in grids)), "white")
    top = 0
    for image in grids:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas


# --- files -----------------------------------------------------------------------------------------------


def save_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG in one step; returns `path`.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    stage = path.with_name(f"{STAGE_PREFIX}{path.name}")
    try:
        image.save(stage, format="PNG")
        return stage.replace(path)
    except OSError as error:
        discard(stage)
        error.filename = str(path)  # a full disk is reported without a name
        raise


def write_png(image: Image.Image, path: Path) -> Path:
    """Write a PNG and the folders above it; returns `path`.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return save_png(image, path)
    except OSError as error:
        raise EnvironmentProblem(f"{path} cannot be written ({error.strerror}): name another place") from error


def check_outputs(
    sheet: Path | None, folder: Path | None, written: Iterable[Path | None] = (), read: Sequence[Path] = ()
) -> None:
    """Refuse outputs that cannot be meant, before anything is computed.

    Args:
        sheet: a PNG of all; None for none.
        folder: for a PNG each; None for none.
        written: further files that will be written; None for none.
        read: files that must not be written over.

    Raises:
        ConfigError: a wrong suffix, a file where a folder is to be, or one of the files to be read.
    """
    if sheet is not None:
        check_suffix(sheet, (".png",), "--sheet")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--folder {folder} is a file: name a folder")
    originals = {path.resolve() for path in read}
    for path in (sheet, *written):
        if path is not None and path.resolve() in originals:
            raise ConfigError(f"{path} is one of the files to be read and would be overwritten: name another place")


def check_suffix(path: Path, suffixes: tuple[str, ...], option: str) -> None:
    """Raise ConfigError where a file's name does not end as its kind does."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {path}: the name of the file ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder: name a file")


class ImageGrid:
    """Collects the first images for a grid, so that many more can pass by."""

    def __init__(self, path: Path | None) -> None:
        """A grid that will be written to `path`; None for none."""
        self.path, self.count = path, 0
        self._pixels: list[np.ndarray] = []

    def add(self, images: Tensor) -> None:
        """Add images [n, channels, h, w] in [0, 1]."""
        room = MAX_IMAGES - self.count
        self.count += len(images)
        if self.path is not None and room > 0:
            self._pixels.append(to_pixels(images[:room]))

    def write(self, columns: int, caption: str, group: int, observer: Observer) -> list[str]:
        """Draw what was collected; returns a line about it, if there is a grid to be.

        Args:
            caption: its last parts, which end at commas, are dropped where the grid is too narrow for them.
            group: neighbors that belong together.
        """
        if self.path is None:
            return []
        if self.count > MAX_IMAGES:
            observer.notice(f"the sheet shows the first {MAX_IMAGES // group:,} of {self.count // group:,}")
        pixels = np.concatenate(self._pixels)
        width = columns * pixels.shape[2] * math.ceil(MIN_HEIGHT / pixels.shape[1])
        write_png(draw_grid(pixels, columns, fit_caption(caption, width), group), self.path)
        return [f"sheet: {self.path.as_posix()}"]


def fit_caption(caption: str, width: int) -> str:
    """As many of a caption's parts, from the first on, as fit into `width` pixels; parts end at commas."""
    font = ImageFont.load_default(12)
    while font.getlength(caption) > width and ", " in caption:
        caption = caption.rpartition(", ")[0]
    return caption


# --- the grids of a run ----------------------------------------------------------------------------------


def sample_grid(model: VAE, latents: Tensor, caption: str) -> Image.Image:
    """A grid of what latents [n, latents] are decoded to."""
    images = model.decode(latents.to(next(model.parameters()).device))
    return draw_grid(to_pixels(images), min(8, len(latents)), caption)


def prior_grid(model: VAE, count: int, seed: int, remark: str = "") -> Image.Image:
    """A grid of samples from N(0, I), the same latents on each grid of a run."""
    latents = fixed_noise(seed, "sample sheet", count, model.latents, torch.device("cpu"))
    return sample_grid(model, latents, f"samples from N(0, I){remark}")


def grid_generator(seed: int) -> torch.Generator:
    """The random numbers of the fitted samples: the same on each grid of a run."""
    return torch.Generator().manual_seed(key(seed, "fitted sample sheet") % 2**63)


@torch.no_grad()
def write_density_grid(model: VAE, path: Path, count: int, seed: int) -> Path:
    """Draw samples from N(0, I), and below them from the model's latent density; returns `path`."""
    grids = [prior_grid(model, count, seed)]
    if model.density.kind != "normal":
        latents = model.density.sample(count, grid_generator(seed))
        grids.append(sample_grid(model, latents, f"samples from {model.density.describe()}, fitted to the latents"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return save_png(stack_vertically(grids), path)


class GridWriter:
    """Writes the three grids of a run, always of the same images and the same noise."""

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
    def write(self, model: VAE, step: int, name: str) -> dict[str, Path]:
        """Draw all grids with `model`; returns tag -> file. `name` starts the file names, e.g. `epoch-0005`."""
        device = next(model.parameters()).device
        images = self.images.to(device).float() / 255
        pairs = torch.stack([images, model(images).reconstruction], dim=1).flatten(0, 1)
        columns = 2 * min(4, len(images))
        grids = {
            "reconstructions": draw_grid(
                to_pixels(pairs), columns, f"original | reconstruction, step {step:,}", group=2
            ),
            "samples": self._samples(model, step, device),
            "interpolation": self._interpolation(model, images, step),
        }
        self.folder.mkdir(exist_ok=True)  # not its parents: where they vanished, a disk may have gone with them
        return {tag: save_png(image, self.folder / f"{name}-{tag}.png") for tag, image in grids.items()}

    def _samples(self, model: VAE, step: int, device: torch.device) -> Image.Image:
        """From N(0, I), and below that from a Gaussian fitted to the latents of training images."""
        prior = prior_grid(model, self.count, self.seed, f", step {step:,}")
        if len(self.train) < MIN_FITTED_IMAGES:
            return prior
        try:
            batches = self.train.split(model.encode_batch_size)
            encoded = [model.encode(batch.to(device).float() / 255) for batch in batches]
            means, logvars = (torch.cat([getattr(each, name) for each in encoded]).cpu() for name in ("mean", "logvar"))
            density = fit_simple(DiagonalGaussian(means, logvars))
        except (ArithmeticError, RuntimeError) as error:  # a grid is no reason to end a run
            reason = str(error).splitlines()[0]
            return prior_grid(model, self.count, self.seed, f", step {step:,}; no density fitted: {reason}")
        latents = density.sample(self.count, grid_generator(self.seed))
        caption = f"samples from {density.describe()}, fitted to the latents of {len(self.train):,} training images"
        return stack_vertically([prior, sample_grid(model, latents, caption)])

    def _interpolation(self, model: VAE, images: Tensor, step: int) -> Image.Image:
        """A row for each pair of neighboring images: original, eight decoded steps between, original."""
        means = model.encode(images).mean
        t = torch.linspace(0, 1, 8, device=means.device)[:, None]
        rows = []
        for pair in range(min(4, max(1, len(images) // 2))):
            first, second = (2 * pair) % len(images), (2 * pair + 1) % len(images)
            decoded = model.decode((1 - t) * means[first] + t * means[second])
            rows.append(torch.cat([images[first : first + 1], decoded, images[second : second + 1]]))
        caption = f"original, interpolation between the latents, original; step {step:,}"
        return draw_grid(to_pixels(torch.cat(rows)), 10, caption)
