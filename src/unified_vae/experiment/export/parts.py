"""The two halves of a model as graphs with named inputs and outputs, and numbers to compare them with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unified_vae.models.vae import VAE

BATCHES = (1, 2, 7)  # sizes that an export is compared at: the smallest, the one it was traced with, an odd one


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
    """

    name: str
    module: nn.Module
    takes: str
    shape: tuple[int, ...]
    gives: tuple[str, ...]

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
        """The graph, with a batch of any size."""
        dynamic = ({0: torch.export.Dim("batch", min=1)},)
        with torch.no_grad():
            return torch.export.export(self.module, (self.example(2),), dynamic_shapes=dynamic)


def parts(model: VAE) -> Iterator[Part]:
    """Encoder and decoder of a model on the CPU."""
    pixels = (model.channels, model.image_size, model.image_size)
    yield Part("encoder", _Encoder(model).eval(), "images", pixels, ("mean", "logvar"))
    yield Part("decoder", _Decoder(model).eval(), "latents", (model.latents,), ("image",))
