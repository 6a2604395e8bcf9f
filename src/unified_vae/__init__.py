"""unified-vae: one trainer for image VAEs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unified_vae.core import __version__

if TYPE_CHECKING:
    from unified_vae.inference.model import VAE

__all__ = ["VAE", "__version__"]


def __getattr__(name: str) -> object:
    """`unified_vae.VAE`, loaded when it is asked for: importing the package must not load torch."""
    if name == "VAE":
        from unified_vae.inference.model import VAE

        return VAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
