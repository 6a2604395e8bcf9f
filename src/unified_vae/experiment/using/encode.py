"""The verb `encode`: a whole data source to latents with names and labels, in files that other programs open.

Rows are computed in batches whose borders depend on nothing but their numbers, and written at places known beforehand:
the files of an encoding that was killed and taken up again are those of one that was not, to the byte.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unified_vae.core.counter import key, uniforms
from unified_vae.core.durable import sync_folder, write_text
from unified_vae.core.posterior import DiagonalGaussian
from unified_vae.experiment.subject.subject import Subject
from unified_vae.experiment.using.identity import fingerprint, latent_shape
from unified_vae.experiment.using.latent_formats import Format, format_of
from unified_vae.experiment.using.latent_layout import Region, RowWriter, Shard
from unified_vae.experiment.using.latent_source import former_index_of, index_of
from unified_vae.experiment.using.scaling import Scaling, scaling_of
from unified_vae.experiment.using.stage import Stage, alone, check_room, refuse_existing
from unified_vae.experiment.using.subject_at import subject_at
from unified_vae.experiment.using.whole_set import Rows, WholeSet, open_whole
from unified_vae.models.vae import VAE
from unified_vae.training.config import Precision
from unified_vae.training.observers import Observer
from unified_vae.training.runtime import Runtime, open_runtime

BATCH = 64
FORMAT = 1


@dataclass(frozen=True)
class EncodeRequest:
    """What is asked for.

    Attributes:
        target: a run's folder, a checkpoint's in it, or an exported model's.
        data: the images; None takes those of the run.
        output: .safetensors, .npy or .parquet.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        sample: draws z ~ q(z|x) instead of mean and log variance.
        seed: of the draws.
        scale: shift and scale them to mean 0 and variance 1, as the model's statistics say.
        batch_size: images at once.
        shard_size: images of a file; None puts all into one.
        device: auto, cpu, ...; None as the run had it.
        precision: of the network.
    """

    target: Path
    data: str | None
    output: Path
    checkpoint: str | None = None
    sample: bool = False
    seed: int = 0
    scale: bool = False
    batch_size: int = BATCH
    shard_size: int | None = None
    device: str | None = None
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Encoded:
    """What was written.

    Attributes:
        index: the file that describes the others.
        files: the files of latents, and the tables that belong to them.
        images: how many there are in all.
        computed: how many of them this process encoded.
        seconds: for those, without reading and packing the source.
    """

    index: Path
    files: Sequence[Path]
    images: int
    computed: int
    seconds: float


def encode(request: EncodeRequest, observer: Observer) -> Encoded:
    """Write the latents, or the rest of them.

    Raises:
        UserError: there is no such model, the images cannot be used, the output is something else's, the disk is full.
    """
    form = format_of(request.output)
    form.check()
    subject = subject_at(request.target, request.checkpoint, request.data, observer)
    with (
        open_runtime(request.device or subject.config.device, request.precision) as runtime,
        alone(request.output),
    ):
        images = open_whole(subject, request.data, observer)
        work = _Work(request, form, subject, images, runtime, observer)
        return work.done_before() or work.do()


class _Work:
    """One encoding: its plan, its files, its rows."""

    def __init__(
        self,
        request: EncodeRequest,
        form: Format,
        subject: Subject,
        images: WholeSet,
        runtime: Runtime,
        observer: Observer,
    ) -> None:
        self.request, self.form, self.images, self.runtime, self.observer = request, form, images, runtime, observer
        self.shape = latent_shape(subject.config.model)
        self.scaling = scaling_of(subject) if request.scale else None
        self.arrays = ("latents",) if request.sample else ("mean", "logvar")
        self.about = _about(request, subject, images, self.shape, self.scaling, runtime)
        self.model = subject.model.to(runtime.device).eval()
        size = request.shard_size or len(images)
        self.starts = range(0, len(images), size)
        self.size = size
        self.computed = 0

    @property
    def index(self) -> Path:
        return index_of(self.request.output)

    def rows_of(self, part: int) -> range:
        return range(self.starts[part], min(self.starts[part] + self.size, len(self.images)))

    def targets(self, part: int) -> list[Path]:
        """The files of a part, under their final names."""
        stem, suffix = self.request.output.stem, self.request.output.suffix
        name = f"{stem}-{part + 1:05}-of-{len(self.starts):05}" if self.request.shard_size else stem
        return self.form.files(self.request.output.with_name(name + suffix), self.arrays)

    def done_before(self) -> Encoded | None:
        """What lies there, if an earlier start of the same command has finished it."""
        files = [path for part in range(len(self.starts)) for path in self.targets(part)]
        found = next(
            (index for index in (self.index, former_index_of(self.request.output)) if self._is_of(index)), None
        )
        whole = found is not None and all(path.is_file() for path in files)
        return Encoded(found, files, len(self.images), 0, 0.0) if found is not None and whole else None

    def _is_of(self, index: Path) -> bool:
        """Whether it describes this very encoding."""
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            return _nameless(found) == _nameless(self._index())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def do(self) -> Encoded:
        stage = Stage(self.request.output, _nameless(self.about), self.observer.notice)
        self.about = stage.first("about", self.about)
        unfinished = range(stage.part, len(self.starts))
        with stage.removed_if_refused():
            if not (stage.resumed and stage.part < len(self.starts) and stage.rows == len(self.rows_of(stage.part))):
                refuse_existing(path for part in unfinished for path in self.targets(part))
            if stage.part == 0:
                refuse_existing([self.index])
            check_room(self.request.output, self._room(unfinished, stage.rows))
        begun = time.monotonic()
        for part in unfinished:
            self._make(part, stage)
        write_text(self.index, json.dumps(self._index(), indent=2) + "\n")
        stage.remove()
        files = [path for part in range(len(self.starts)) for path in self.targets(part)]
        return Encoded(self.index, files, len(self.images), self.computed, time.monotonic() - begun)

    def _room(self, parts: range, done: int) -> int:
        """Bytes that the disk has to take yet, where `done` rows of the first part are on it."""
        rows = sum(len(self.rows_of(part)) for part in parts)
        return (self.form.copies * rows - done) * (len(self.arrays) * 4 * self.model.latents + 64)

    def _index(self) -> dict[str, Any]:
        parts = [
            {"files": [path.name for path in self.targets(part)], "rows": len(self.rows_of(part))}
            for part in range(len(self.starts))
        ]
        return {**self.about, "label_names": self.images.label_names, "parts": parts}

    def _shard(self, rows: range) -> Shard:
        cut = slice(rows.start, rows.stop)
        return Shard(
            ids=self.images.ids[cut],
            sides=self.images.sides[cut],
            labels={name: values[cut] for name, values in self.images.labels.items()},
            label_names=self.images.label_names,
            arrays=self.arrays,
            shape=self.shape,
            about=self.about,
        )

    def _make(self, part: int, stage: Stage) -> None:
        """One file, or the rest of it, and its final name."""
        rows, targets = self.rows_of(part), self.targets(part)
        done = stage.rows if stage.part == part else 0
        if done < len(rows) or not self.form.is_whole(stage.folder, targets):
            layout = self.form.layout(stage.folder, targets, self._shard(rows))
            if not (done and layout.is_there()):
                done = 0
                layout.write()
            self._fill(part, rows, done, layout.regions, stage)
        self.form.finish(stage.folder, targets)
        sync_folder(self.request.output.parent)
        stage.save(part + 1, 0)

    def _fill(self, part: int, rows: range, done: int, regions: Mapping[str, Region], stage: Stage) -> None:
        with RowWriter(regions, 4 * self.model.latents) as writer, Rows(self.images) as reader:
            for first in range(done, len(rows), self.request.batch_size):
                numbers = np.arange(rows.start + first, min(rows.start + first + self.request.batch_size, rows.stop))
                writer.put(first, self._encoded(reader.take(numbers), numbers))
                self.computed += len(numbers)
                self.observer.phase("encoding images", int(numbers[-1]) + 1, len(self.images))
                if stage.due():
                    writer.sync()
                    stage.save(part, first + len(numbers))
            writer.sync()
        stage.save(part, len(rows))

    def _encoded(
        self, pixels: npt.NDArray[np.uint8], numbers: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.float32]]:
        posterior = posterior_of(self.model, pixels, self.runtime)
        if self.scaling is not None:
            posterior = self.scaling.posterior(posterior)
        if not self.request.sample:
            return {"mean": posterior.mean.cpu().numpy(), "logvar": posterior.logvar.cpu().numpy()}
        noise = image_noise(self.request.seed, self.images.contents[numbers], self.model.latents)
        return {"latents": posterior.sample(noise.to(posterior.mean.device)).cpu().numpy()}


@torch.no_grad()
def posterior_of(model: VAE, pixels: npt.NDArray[np.uint8], runtime: Runtime) -> DiagonalGaussian:
    """q(z|x) of uint8 [n, height, width, channels], as the trainer sees them."""
    images = torch.from_numpy(pixels).to(runtime.device).permute(0, 3, 1, 2).contiguous().float() / 255
    with runtime.autocast():
        return model.encode(images)


def image_noise(seed: int, contents: npt.NDArray[np.uint64], latents: int) -> Tensor:
    """Standard normal numbers [n, latents], each row a function of the seed and of what the image was made from.

    By Box and Muller (1958) from counters: no order, batch or device changes them.

    Args:
        contents: 64 bits of each image's content hash, [n].
    """
    half = -(-latents // 2)
    drawn = uniforms(key(seed, "latents of images"), contents, 2 * half)
    radius = np.sqrt(-2 * np.log1p(-drawn[:, :half]))
    angle = 2 * np.pi * drawn[:, half:]
    pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return torch.from_numpy(pair[:, :latents].astype(np.float32))


def _about(
    request: EncodeRequest,
    subject: Subject,
    images: WholeSet,
    shape: tuple[int, ...],
    scaling: Scaling | None,
    runtime: Runtime,
) -> dict[str, Any]:
    """What decides every byte of the output; kept in it, and compared before an encoding is taken up again."""
    return {
        "format": FORMAT,
        "model": {
            "name": subject.name,
            "step": subject.step,
            "fingerprint": fingerprint(subject.model),
            "image_size": subject.model.image_size,
            "channels": subject.model.channels,
        },
        "images": {"count": len(images), "fingerprint": images.fingerprint, "description": images.description},
        "latents": {
            "shape": list(shape),
            "values": "draws z ~ q(z|x)" if request.sample else "mean and log variance of q(z|x)",
            "seed": request.seed if request.sample else None,
            "scaling": None if scaling is None else {"shift": scaling.shift, "scale": scaling.scale},
        },
        "computed": {
            "device": runtime.device.type,
            "precision": request.precision,
            "batch_size": request.batch_size,
        },
        "shard_size": request.shard_size,
    }


def _nameless(about: Mapping[str, Any]) -> dict[str, Any]:
    """What an encoding is of, without how it was spelled: the fingerprints say that."""
    model = {key: value for key, value in about["model"].items() if key != "name"}
    images = {key: value for key, value in about["images"].items() if key != "description"}
    return {**about, "model": model, "images": images}
