"""Whatever a user holds as latents - a tensor, an array, a posterior - as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unified_vae.core.errors import ConfigError
from unified_vae.core.posterior import DiagonalGaussian


@dataclass(frozen=True)
class ImagePosterior(DiagonalGaussian):
    """q(z|x) of images that were read.

    Attributes:
        names: of the image of each row, e.g. its path: files of a folder that cannot be used have no row.
    """

    names: Sequence[str] = ()


def as_rows(given: Any, latents: int, device: torch.device) -> Tensor:
    """Float32 [n, latents] on `device`: of rows, of one row, of maps [n, c, h, w], of a posterior its mean.

    Raises:
        ConfigError: the shape does not fit, or these are no numbers.
    """
    values = _tensor(given)
    values = values[None] if values.ndim == 1 else values
    if not values.ndim or not values.numel() or values.flatten(1).shape[1] != latents:
        raise ConfigError(f"latents of shape {list(values.shape)} do not fit: this model takes [n, {latents}]")
    return values.detach().flatten(1).to(device, torch.float32)


def _tensor(given: Any) -> Tensor:
    if isinstance(given, DiagonalGaussian):
        return given.mean
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):  # no numbers, rows of different lengths, an unknown kind of object
        raise ConfigError(f"a {type(given).__name__} is no latents: give a tensor or an array [n, latents]") from None


def is_one_row(given: Any, latents: int) -> bool:
    """Whether this is one image's latents, where it may also be an image.

    Raises:
        ConfigError: it may be either.
    """
    shape = tuple(getattr(given, "shape", ()))
    if len(shape) == 2 and shape[1] == latents and shape[0] != 1:
        raise ConfigError(
            f"an end of shape {list(shape)} may be a grey image or several latents: give an image with its channels, "
            f"or latents [{latents}]"
        )
    return isinstance(given, DiagonalGaussian) or shape in ((latents,), (1, latents))
