"""Numbers that are not finite: whose they are, how that is said, and the file that lists them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unified_vae.core.durable import append, write_bytes
from unified_vae.core.vae_output import VAEOutput
from unified_vae.losses.kl import rate
from unified_vae.losses.objective import Objective
from unified_vae.training.observers import Observer, StepSkipped
from unified_vae.training.step import MEASURED, NORM

NAMED = 4  # images that a line names; the file names all


def faults(objective: Objective, output: VAEOutput, images: Tensor) -> dict[str, Tensor]:
    """Of each enabled term and the rate: [batch] bool, the images whose value or gradient is not finite.

    Args:
        output: the model's for `images`, without a graph.
    """
    found = {}
    reconstruction = output.reconstruction.detach().float().requires_grad_()
    with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
        for name, term in objective.terms.items():
            value = term(reconstruction, images.float())
            (gradient,) = torch.autograd.grad(value.sum(), reconstruction)
            found[f"loss.{name}"] = ~(torch.isfinite(value.detach()) & torch.isfinite(gradient).flatten(1).all(1))
    found["rate.nats"] = ~torch.isfinite(rate(output.posterior))
    return found


def origins(terms: Sequence[str]) -> list[str]:
    """Those of the names that the others follow from: single terms before sums of them, values before gradients."""
    single = [name for name in terms if name not in (*MEASURED[:2], NORM)]
    return single or list(terms)


def listed(words: Sequence[str], most: int = NAMED) -> str:
    """`a, b and c`; where there are more than `most`, the first of them and a count."""
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most:,} more"
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class SkippedLog(Observer):
    """`skipped.jsonl`: a line for each skipped step with its terms and images, each once after any interruption."""

    def __init__(self, path: Path, rows: int) -> None:
        """Args:
        path: the file; made with the first skipped step.
        rows: lines that belong to the state the run starts from.
        """
        self.path = path
        self.keeps = str(path)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(lines) > rows:
            write_bytes(path, b"".join(lines[:rows]))

    def step_skipped(self, event: StepSkipped) -> None:
        row = {
            "step": event.step,
            "epoch": event.epoch,
            "rollbacks": event.rollbacks,
            "not_finite": list(event.terms),
            "images": list(event.images),
        }
        append(self.path, (json.dumps(row) + "\n").encode())
