"""The verb `reconstruct`: images through the model and back, beside the originals or as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unified_vae.api.images import batches, picture_files
from unified_vae.api.pictures import to_pil
from unified_vae.api.vae import BATCH
from unified_vae.experiment.using.model_at import open_model
from unified_vae.experiment.using.outputs import Places, Sheet, refuse_originals, write_png
from unified_vae.experiment.using.sample import told
from unified_vae.metrics.similarity import psnr_of_images, squared_errors
from unified_vae.training.observers import Observer

PAIRS_IN_A_ROW = 4


@dataclass(frozen=True)
class ReconstructRequest:
    """What is asked for.

    Attributes:
        target: a run, a checkpoint, a model's folder or a name on the hub.
        images: files, and folders of files.
        checkpoint: of a run; None takes its model.
    """

    target: str
    images: Sequence[Path]
    places: Places
    checkpoint: str | None = None
    device: str = "auto"


def reconstruct(request: ReconstructRequest, observer: Observer) -> list[str]:
    """Reconstruct and write; returns lines about it."""
    request.places.check()
    files = picture_files(request.images)
    names = output_names(files, request.places.folder)
    refuse_originals([*names, request.places.sheet], files)
    vae = open_model(request.target, request.checkpoint, request.device, observer)
    sheet, quality = Sheet(request.places.sheet), list[Tensor]()
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        originals = next(batches(some, vae.form, BATCH, vae.device))
        images = vae.reconstruct(originals)
        quality.append(psnr_of_images(squared_errors(images, originals)))
        sheet.add(torch.stack([originals, images], dim=1).flatten(0, 1))
        for picture, path in zip(to_pil(images), names[start : start + BATCH], strict=False):
            write_png(picture, path)
        observer.phase("reconstructing", start + len(some), len(files))
    columns = 2 * min(PAIRS_IN_A_ROW, len(files))
    sheets = sheet.write(columns, "original | reconstruction, of the posterior's mean", 2, observer)
    return [_figures(torch.cat(quality), files), *told(sheets, request.places.folder, len(names))]


def output_names(files: Sequence[Path], folder: Path | None) -> list[Path]:
    """A PNG for each file, called after it; a number keeps those of the same name apart. None without a folder."""
    if folder is None:
        return []
    taken: set[str] = set()
    names = []
    for file in files:
        name, number = f"{file.stem}-reconstruction", 1
        while name.lower() in taken:  # some file systems take A.png for a.png
            number += 1
            name = f"{file.stem}-reconstruction-{number}"
        taken.add(name.lower())
        names.append(folder / f"{name}.png")
    return names


def _figures(quality: Tensor, files: Sequence[Path]) -> str:
    """How near the reconstructions are to what the model was shown."""
    mean, worst = float(quality.mean()), int(quality.argmin())
    one = f"{len(files):,} image{'s' * (len(files) > 1)} reconstructed, PSNR {mean:.2f} dB"
    return one if len(files) == 1 else f"{one} on average, {float(quality[worst]):.2f} dB at worst ({files[worst]})"
