"""A small normalizing flow: affine couplings (Real NVP; Dinh et al. 2017, arXiv 1605.08803).

It works in the standard coordinates of the Gaussian of the same latents, and bends only the first of them, which
differ most between images. What it bends is a mixture of Gaussians, as couplings are slow to part groups (the pair of
Izmailov et al. 2020, arXiv 1912.13025). Every coupling starts as the identity: the flow starts as that mixture. It is
trained in training/flow_training.py.

A trained flow's draws need not have the mean and variance of what it was trained on; on latents of portraits they had
two thirds of the variance, though held-out likelihood was high. `level` puts that right, and raises the likelihood too.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from unified_vae.config.model import DensityKind
from unified_vae.models.density.base import Rows, row_numbers
from unified_vae.models.density.gaussian import GaussianDensity
from unified_vae.models.density.mixture import BENT_BEFORE, MixtureDensity

BENT = 128  # standard coordinates that the couplings act on
COUPLINGS = 8
HIDDEN = 128
DRAWS_TO_LEVEL = 8192
SMALLEST = 2  # latents: a coupling moves some by the others


class Coupling(nn.Module):
    """Shifts and scales a part of the values by functions of the rest.

    Attributes:
        order: [bent], which values are kept (the first half) and which are moved.
    """

    order: Tensor

    def __init__(self, bent: int) -> None:
        super().__init__()
        self.kept = bent // 2
        moved = bent - self.kept
        self.register_buffer("order", torch.arange(bent))
        self.body = nn.Sequential(nn.Linear(self.kept, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU())
        self.last = nn.Linear(HIDDEN, 2 * moved)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Towards N(0, I): values [n, bent], and log |det| of the step [n]."""
        kept, moved = self._parts(values)
        shift, log_scale = self._moments(kept)
        return self._whole(kept, (moved - shift) * torch.exp(-log_scale)), -log_scale.sum(1)

    def inverse(self, values: Tensor) -> Tensor:
        """From N(0, I)."""
        kept, moved = self._parts(values)
        shift, log_scale = self._moments(kept)
        return self._whole(kept, moved * torch.exp(log_scale) + shift)

    def _moments(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """The scale is bounded, so that a draw from the tails stays finite."""
        shift, log_scale = self.last(self.body(kept)).chunk(2, dim=1)
        return shift, torch.tanh(log_scale)

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, self.order[: self.kept]], values[:, self.order[self.kept :]]

    def _whole(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], dim=1)[:, torch.argsort(self.order)]


class FlowDensity(MixtureDensity):
    """A mixture whose first standard coordinates are bent by couplings; of one component N(0, I) to begin with.

    Attributes:
        centre: [bent], subtracted from what comes out of the couplings.
        spread: [bent], what it is divided by after that.
    """

    kind: ClassVar[DensityKind] = "flow"
    centre: Tensor
    spread: Tensor

    def __init__(self, latents: int, components: int = 1, bent: int = BENT_BEFORE) -> None:
        super().__init__(latents, components, bent)
        if latents < SMALLEST:
            raise ValueError(f"a flow needs {SMALLEST} latents, and this model has {latents}: fit a mixture instead")
        self.bent = min(latents, BENT)
        self.couplings = nn.ModuleList([Coupling(self.bent) for _ in range(COUPLINGS)])
        self.register_buffer("centre", torch.zeros(self.bent))
        self.register_buffer("spread", torch.ones(self.bent))

    @classmethod
    def started_as(cls, base: GaussianDensity, seed: int) -> FlowDensity:
        """Started as `base`, a Gaussian or a mixture; `seed` decides the couplings' orders and first weights."""
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed % 2**63)
            density = cls(base.latents, **(base.sizes() if isinstance(base, MixtureDensity) else {}))
            for coupling in density._couplings():
                coupling.order.copy_(torch.randperm(density.bent))
                nn.init.zeros_(coupling.last.weight)
                nn.init.zeros_(coupling.last.bias)
        density.load_state_dict(base.state_dict(), strict=False)
        return density

    @torch.no_grad()
    def level(self, generator: torch.Generator) -> None:
        """Give the draws mean 0 and variance 1 in each standard coordinate, as the latents have; in place."""
        bent = self.draw_standard(row_numbers(DRAWS_TO_LEVEL, generator))[:, : self.bent]
        self.centre.add_(self.spread * bent.mean(0))
        self.spread.mul_(bent.std(0))

    def draw_standard(self, rows: Rows) -> Tensor:
        """See `GaussianDensity.draw_standard`."""
        values = super().draw_standard(rows)
        bent = values[:, : self.bent]
        for coupling in reversed(self._couplings()):
            bent = coupling.inverse(bent)
        return torch.cat([(bent - self.centre) / self.spread, values[:, self.bent :]], dim=1)

    def log_prob_standard(self, values: Tensor) -> Tensor:
        """See `GaussianDensity.log_prob_standard`."""
        bent = self.centre + self.spread * values[:, : self.bent]
        volume = self.spread.log().sum().expand(len(values))
        for coupling in self._couplings():
            bent, change = coupling(bent)
            volume = volume + change
        return super().log_prob_standard(torch.cat([bent, values[:, self.bent :]], dim=1)) + volume

    def describe(self) -> str:
        """See `LatentDensity.describe`."""
        return f"a flow of {COUPLINGS} couplings of {super().describe()}"

    def _couplings(self) -> list[Coupling]:
        return [coupling for coupling in self.couplings if isinstance(coupling, Coupling)]
