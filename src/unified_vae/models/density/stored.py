"""A latent density as tensors in a model's folder, `density.safetensors`, and the words that describe them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unified_vae.core.tensor_file import parse_tensors, write_tensors
from unified_vae.models.density.base import LatentDensity
from unified_vae.models.density.flow import FlowDensity
from unified_vae.models.density.gaussian import GaussianDensity
from unified_vae.models.density.mixture import MixtureDensity
from unified_vae.models.density.normal import NormalDensity
from unified_vae.models.density.units import UnitsDensity

TENSORS = "density.safetensors"
KINDS: tuple[type[LatentDensity], ...] = (NormalDensity, UnitsDensity, GaussianDensity, MixtureDensity, FlowDensity)


def write_density(folder: Path, density: LatentDensity) -> dict[str, Any]:
    """Write the tensors; returns what `read_density` has to be told about them."""
    write_tensors(folder / TENSORS, density.state_dict())
    return {"kind": density.kind, "latents": density.latents, "sizes": density.sizes()}


def read_density(folder: Path, entry: Mapping[str, Any]) -> LatentDensity:
    """The density that `write_density` wrote, on the CPU.

    Raises:
        KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError: something of it is damaged.
    """
    kinds = {kind.kind: kind for kind in KINDS}
    tensors = parse_tensors((folder / TENSORS).read_bytes())
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if any(size > numbers for size in entry["sizes"].values()):
        raise ValueError(f"its {numbers} numbers cannot be of the sizes {entry['sizes']}")
    density = kinds[entry["kind"]](entry["latents"], **entry["sizes"])
    if isinstance(density, FlowDensity) and not entry["sizes"]:  # from before flows stood on mixtures
        tensors = {name: density.state_dict()[name] for name in MixtureDensity.OWN} | tensors
    density.load_state_dict(tensors)
    return density.eval().requires_grad_(False)
