"""The two halves of a model as graphs with named inputs and outputs, and numbers to compare them with."""

from __future__ import annotations

import copy
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
        """The graph and its own weights, for a batch of any size, or up to where the model takes another way."""
        try:
            batch = torch.export.Dim("batch", min=1)
            program = self._traced(self.module, batch)
        except torch._dynamo.exc.UserError:
            free = self._traced(self.module, torch.export.Dim.DYNAMIC)
            limit = min(int(bounds.upper) for bounds in free.range_constraints.values())
            batch = torch.export.Dim("batch", min=1, max=limit)
            program = self._traced(self.module, batch)
        idle = _idle(program)
        return self._traced(_without(self.module, idle), batch) if idle else program

    def _traced(self, module: nn.Module, batch: Any) -> torch.export.ExportedProgram:
        with torch.no_grad():
            return torch.export.export(module, (self.example(2),), dynamic_shapes=({0: batch},))


def _idle(program: torch.export.ExportedProgram) -> list[str]:
    """Weights that the graph has no use for: those of the model's other half."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return [names[node.name] for node in program.graph.nodes if node.name in names and not node.users]


def _without(module: nn.Module, names: list[str]) -> nn.Module:
    """A copy that lacks these weights."""
    lean = copy.deepcopy(module)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        delattr(lean.get_submodule(owner), leaf)
    return lean


def parts(model: VAE) -> Iterator[Part]:
    """Encoder and decoder of a model on the CPU."""
    pixels = (model.channels, model.image_size, model.image_size)
    batches = BATCHES if model.image_size <= LARGE_SIZE else LARGE_BATCHES
    yield Part("encoder", _Encoder(model).eval(), "images", pixels, ("mean", "logvar"), batches)
    yield Part("decoder", _Decoder(model).eval(), "latents", (model.latents,), ("image",), batches)
