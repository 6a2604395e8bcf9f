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
from unified_vae.data.records import Quarantined
from unified_vae.experiment.using.model_at import open_model
from unified_vae.experiment.using.outputs import Places, Sheet, refuse_originals, report_left_out, write_png
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


def reconstruct(request: ReconstructRequest, observer: Observer) -> tuple[list[str], str]:
    """Reconstruct and write what can be read.

    Returns:
        Lines about it, and a sentence that names the files left out; empty where there is none.

    Raises:
        UserError: no such model, none of the images can be used, or a file cannot be written.
    """
    request.places.check()
    files = picture_files(request.images)
    names = output_names(files, request.places.folder)
    refuse_originals([*names, request.places.sheet], files)
    vae = open_model(request.target, request.checkpoint, request.device, observer)
    sheet, quality, used, left_out = Sheet(request.places.sheet), list[Tensor](), list[Path](), list[Quarantined]()
    for batch in batches(files, vae.form, BATCH, vae.device, left_out, skip_named=True):
        images = vae.reconstruct(batch.images)
        quality.append(psnr_of_images(squared_errors(images, batch.images)))
        sheet.add(torch.stack([batch.images, images], dim=1).flatten(0, 1))
        for picture, number in zip(to_pil(images) if names else (), batch.numbers, strict=False):
            write_png(picture, names[number])
        used += [files[number] for number in batch.numbers]
        observer.phase("reconstructing", batch.numbers[-1] + 1, len(files))
    columns = 2 * min(PAIRS_IN_A_ROW, len(used))
    sheets = sheet.write(columns, "original | reconstruction, of the posterior's mean", 2, observer)
    written = len(used) if names else 0
    lines = [_figures(torch.cat(quality), used), *told(sheets, request.places.folder, written)]
    return lines, report_left_out(left_out, len(files), observer)


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
