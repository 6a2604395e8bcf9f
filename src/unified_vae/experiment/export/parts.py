"""The two halves of a model as graphs with named inputs and outputs, and numbers to compare them with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unified_vae.models.vae import VAE

BATCHES = (1, 2, 7)  # sizes that an export is compared at: the smallest, the one it was traced with, an odd one
LARGE_BATCHES = (1, 2, 3)  # where 7 images would take gigabytes
LARGE_SIZE = 256  # pixels a side, above which that is so


class _Encoder(nn.Module):
    """Images -> posterior mean and log variance."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.model.encode(images)
        return posterior.mean, posterior.logvar


class _Decoder(nn.Module):
    """Latents -> images."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        return (self.model.decode(latents),)


@dataclass(frozen=True)
class Part:
    """One file of an export.

    Attributes:
        name: `encoder` or `decoder`.
        module: float32 in and out, whatever its inner precision; a tuple out.
        takes: name of its input.
        shape: of one item of the input.
        gives: names of its outputs.
        batches: sizes that it is compared at.
    """

    name: str
    module: nn.Module
    takes: str
    shape: tuple[int, ...]
    gives: tuple[str, ...]
    batches: tuple[int, ...] = BATCHES

    def example(self, batch: int) -> Tensor:
        """Input numbers [batch, *shape], the same at each call: uniform pixels, or standard normal latents."""
        generator = torch.Generator().manual_seed(batch)
        draw = torch.rand if self.takes == "images" else torch.randn
        return draw((batch, *self.shape), generator=generator)

    @torch.no_grad()
    def results(self, batch: int) -> tuple[Tensor, ...]:
        """What PyTorch gives for `example(batch)`."""
        found: tuple[Tensor, ...] = self.module(self.example(batch))
        return found

    def traced(self) -> torch.export.ExportedProgram:
        """The graph, with a batch of any size, or of any up to where the model itself takes another way."""
        try:
            return self._traced(torch.export.Dim("batch", min=1))
        except torch._dynamo.exc.UserError:
            free = self._traced(torch.export.Dim.DYNAMIC)
            limit = min(int(bounds.upper) for bounds in free.range_constraints.values())
            return self._traced(torch.export.Dim("batch", min=1, max=limit))

    def _traced(self, batch: Any) -> torch.export.ExportedProgram:
        with torch.no_grad():
            return torch.export.export(self.module, (self.example(2),), dynamic_shapes=({0: batch},))


def parts(model: VAE) -> Iterator[Part]:
    """Encoder and decoder of a model on the CPU."""
    pixels = (model.channels, model.image_size, model.image_size)
    batches = BATCHES if model.image_size <= LARGE_SIZE else LARGE_BATCHES
    yield Part("encoder", _Encoder(model).eval(), "images", pixels, ("mean", "logvar"), batches)
    yield Part("decoder", _Decoder(model).eval(), "latents", (model.latents,), ("image",), batches)
