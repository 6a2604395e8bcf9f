"""Encode a set of images to files of latents, decode such files to images; both resume where they were stopped.

`encode` writes a folder of shards (`latents-00000.safetensors`, ...), a .npy file per array, or a .parquet table. An
index in JSON says which model, images and settings they are of, and names the image of each row. What is unfinished
lies in a hidden folder beside the output: the output is complete or absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from unified_vae.config.model import SpatialConfig
from unified_vae.config.training import Precision
from unified_vae.core.checkpoint_format import write_tensors
from unified_vae.core.device import ComputeDevice, open_device
from unified_vae.core.distributions import DiagonalGaussian
from unified_vae.core.errors import ConfigError, DataError, EnvironmentProblem, reason
from unified_vae.core.events import Observer
from unified_vae.core.files import discard, sweep_stages, sync_file, sync_folder, with_affixes, write_text
from unified_vae.core.rng import key, uniforms
from unified_vae.data.sources.folder import IMAGE_EXTENSIONS
from unified_vae.inference import latent_files
from unified_vae.inference.image_grids import to_uint8
from unified_vae.inference.image_set import open_image_set
from unified_vae.inference.latent_files import ABOUT, INDEX, Latents, batches, open_latents
from unified_vae.inference.load import LoadedModel, load_model, trained_model
from unified_vae.models.vae import VAE

BATCH_SIZE = 64
SHARD_SIZE = 1024
FORMAT = 2
SECONDS_BETWEEN_SAVES = 5.0
_PNG_WRITERS = 2
_PNG_COMPRESSION = 1  # of 9: files are a tenth larger and take a quarter of the time
_LONGEST_NAME = 200  # bytes

Pixels = npt.NDArray[np.uint8]


class Result(NamedTuple):
    """What was written: where, images in all, images that this process computed, and its seconds for those."""

    output: Path
    images: int
    computed: int
    seconds: float


# --- encode ----------------------------------------------------------------------------------------------


def encode(
    target: Path,
    data: str | None,
    output: Path,
    *,
    checkpoint: str | None = None,
    sample: bool = False,
    seed: int = 0,
    scale: bool = False,
    batch_size: int = BATCH_SIZE,
    shard_size: int = SHARD_SIZE,
    device: str | None = None,
    precision: Precision = "fp32",
    observer: Observer,
) -> Result:
    """Write the latents of all images of a source, or the rest of them where an earlier process was stopped.

    Batches and shards depend on row numbers alone, so a resumed encoding writes the same bytes as one in one go.

    Args:
        target: folder of a run, of its checkpoint or of a model, or a name on the hub.
        data: the images; None takes those of the run.
        output: a folder (no suffix), .npy or .parquet.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        sample: draw z ~ q(z|x) instead of writing mean and log variance.
        seed: of the draws.
        scale: write (z - shift) * scale with the model's latent statistics (Rombach et al. 2022, appendix G).
        shard_size: images per shard, which is also what a kill can lose.
        device: auto, cpu, ...; None as the run had it.
        precision: of the network.

    Raises:
        UserError: no such model, images that cannot be used, an output that is something else's, a full disk.
    """
    kind = output.suffix.lower()
    if kind not in ("", ".npy", ".parquet"):
        raise ConfigError(
            f"{output}: latents go to a folder of .safetensors shards (a name without suffix, e.g. --output "
            f"{output.with_suffix('')}), a .npy or a .parquet file"
        )
    if kind == ".parquet":
        latent_files.parquet_library()
    loaded = load_model(target, checkpoint, data=data, require_data=False, on_message=observer.notice)
    with open_device(device or loaded.config.device, precision) as compute, _exclusive(output):
        images = open_image_set(loaded, data, observer)
        model = loaded.model.to(compute.device).eval()
        shape: tuple[int, ...] = (model.latents,)
        if isinstance(config := loaded.config.model, SpatialConfig):
            shape = (config.latent_channels, config.side, config.side)
        scaling = _model_scaling(loaded) if scale else None
        names = ["latents"] if sample else ["mean", "logvar"]

        # What decides every byte of the rows. The spelling of the model's and the images' paths does not, so that it
        # stands in the index alone.
        settings: dict[str, Any] = {
            "format": FORMAT,
            "model": {
                "step": loaded.step,
                "fingerprint": fingerprint(model),
                "image_size": model.image_size,
                "channels": model.channels,
            },
            "images": {"count": len(images), "fingerprint": images.fingerprint},
            "latents": {
                "shape": list(shape),
                "dtype": "float32",
                "values": "draws z ~ q(z|x)" if sample else "mean and log variance of q(z|x)",
                "seed": seed if sample else None,
                "scaling": None if scaling is None else {"shift": scaling[0], "scale": scaling[1]},
            },
            "computed": {"device": compute.device.type, "precision": precision, "batch_size": batch_size},
            "shard_size": shard_size,
        }

        # The same command may have finished before; what belongs to anything else is not written over.
        is_pair = kind == ".npy" and not sample
        files = [output, output.with_suffix(".logvar.npy")] if is_pair else [output]
        index = output.with_name(f"{output.name}.json") if kind else output / INDEX
        stage = _Stage(output, settings)
        is_ours = _is_index_of(index, settings)
        if is_ours and all(path.exists() for path in files):
            stage.remove()
            return Result(output, len(images), 0, 0.0)
        if not is_ours:
            _refuse_existing(*files, index)

        # The rows go to shards, whatever they become; earlier ones count only if all of them are still there.
        rows = stage.folder / "rows"
        starts = range(0, len(images), shard_size)
        shards = [rows / f"latents-{number:05}.safetensors" for number in range(len(starts))]
        if not all(shard.is_file() for shard in shards[: -(-stage.rows // shard_size)]):
            stage.rows = 0
        copies = 2 if kind else 1
        _check_space(output, (copies * len(images) - stage.rows) * 4 * len(names) * model.latents)
        stage.begin(observer.notice)
        rows.mkdir(exist_ok=True)
        sweep_stages(rows)

        # A shard is computed in memory and written in one go.
        begun, computed = time.monotonic(), len(images) - stage.rows
        for first in range(stage.rows, len(images), shard_size):
            last = min(first + shard_size, len(images))
            arrays = {name: np.empty((last - first, *shape), np.float32) for name in names}
            for start in range(first, last, batch_size):
                numbers = np.arange(start, min(start + batch_size, last))
                posterior = encode_pixels(model, images.read(numbers), compute)
                mean, logvar = posterior.mean, posterior.logvar
                if scaling is not None:
                    mean, logvar = (mean - scaling[0]) * scaling[1], logvar + 2 * math.log(scaling[1])
                values = [mean, logvar]
                if sample:
                    noise = image_noise(seed, images.contents[numbers], model.latents).to(mean.device)
                    values = [DiagonalGaussian(mean, logvar).sample(noise)]
                for array, value in zip(arrays.values(), values, strict=True):
                    array[start - first : start - first + len(numbers)] = value.cpu().numpy().reshape(-1, *shape)
                observer.phase("encoding images", int(numbers[-1]) + 1, len(images))
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            write_tensors(shards[first // shard_size], tensors, {ABOUT: json.dumps(settings)})
            stage.save(last)

        # Publish a folder in one step; of files the index first, which says that those still missing are of this
        # encoding, then each under its final name.
        parts = [{"files": [path.name for path in files], "rows": len(images)}]
        if not kind:
            counts = [min(shard_size, len(images) - start) for start in starts]
            parts = [{"files": [path.name], "rows": count} for path, count in zip(shards, counts, strict=True)]
        about = {
            **settings,
            "model": {"name": loaded.name, **settings["model"]},
            "images": {**settings["images"], "description": images.description},
            "parts": parts,
            "columns": images.columns(),
        }
        write_text(index if kind else rows / INDEX, json.dumps(about, indent=1) + "\n")
        if kind:
            staged = [stage.folder / path.name for path in files]
            if kind == ".npy":
                latent_files.write_npy(dict(zip(names, staged, strict=True)), shards, (len(images), *shape))
            else:
                latent_files.write_parquet(staged[0], names, shards, images.columns(), settings)
            for part, path in zip(staged, files, strict=True):
                part.replace(path)
        else:
            _publish_folder(rows, output)
        sync_folder(output.parent)
        stage.remove()
        return Result(output, len(images), computed, time.monotonic() - begun)


@torch.no_grad()
def encode_pixels(model: VAE, pixels: Pixels, compute: ComputeDevice) -> DiagonalGaussian:
    """q(z|x) of uint8 [n, height, width, channels], scaled to [0, 1] as in training."""
    images = torch.from_numpy(pixels).to(compute.device).permute(0, 3, 1, 2).contiguous().float() / 255
    with compute.autocast():
        return model.encode(images)


def image_noise(seed: int, contents: npt.NDArray[np.uint64], latents: int) -> Tensor:
    """Standard normal numbers [n, latents], each row a function of the seed and of the image's content alone.

    By Box and Muller (1958) from counters: no order, batch or device changes them.

    Args:
        contents: 64 bits of each image's content hash, [n].
    """
    half = -(-latents // 2)
    uniform = uniforms(key(seed, "latents of images"), contents, 2 * half)
    radius = np.sqrt(-2 * np.log1p(-uniform[:, :half]))
    angle = 2 * np.pi * uniform[:, half:]
    pair = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return torch.from_numpy(pair[:, :latents].astype(np.float32))


def fingerprint(model: VAE) -> str:
    """SHA-256 over names, shapes and values of all weights, hexadecimal; the same wherever they were read from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        values = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {values.shape} {values.dtype}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()


def _model_scaling(loaded: LoadedModel) -> tuple[float, float]:
    """Shift and scale of the model's latent statistics."""
    trained = trained_model(loaded)
    stats = None if trained is None else trained.content.stats
    if stats is None:
        raise ConfigError(
            f"{loaded.name} has no statistics of its latents, which --scale needs: a run writes them beside its model "
            "when it is finished"
        )
    return stats.shift, stats.scale


def _is_index_of(index: Path, settings: Mapping[str, Any]) -> bool:
    """Whether an index describes the encoding with these settings, however its model and images were spelled."""
    try:
        about = json.loads(index.read_text(encoding="utf-8"))
        del about["model"]["name"], about["images"]["description"]
        return all(about[name] == value for name, value in settings.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


# --- decode ----------------------------------------------------------------------------------------------


@torch.no_grad()
def decode(
    target: Path,
    latents: Path,
    output: Path,
    *,
    checkpoint: str | None = None,
    scale: bool = False,
    other_model: bool = False,
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    precision: Precision = "fp32",
    observer: Observer,
) -> Result:
    """Write the images of a file or folder of latents, or the rest of them where an earlier process was stopped.

    Args:
        target: folder of a run, of its checkpoint or of a model, or a name on the hub.
        latents: what `encode` wrote, or a file of another program.
        output: a folder for PNG files (no suffix), or .npy.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        scale: the latents were shifted and scaled by another program; those of `encode --scale` say so themselves.
        other_model: decode although the file says that another model made the latents.
        device: auto, cpu, ...; None as the run had it.
        precision: of the network.

    Raises:
        UserError: no such model, latents that are another's or none, an output that is something else's.
    """
    kind = output.suffix.lower()
    if kind not in ("", ".npy"):
        raise ConfigError(f"{output}: images go to a folder, which has no suffix, or a .npy file")
    _refuse_existing(output)
    source = open_latents(latents)
    loaded = load_model(target, checkpoint, require_data=False, on_message=observer.notice)
    weights = fingerprint(loaded.model)
    scaling = _check_latents(source, loaded, weights, scale, other_model)
    shape = (loaded.model.image_size, loaded.model.image_size, loaded.model.channels)
    count = source.rows
    with open_device(device or loaded.config.device, precision) as compute, _exclusive(output):
        names = file_names(source.ids or [f"{row:08}" for row in range(source.rows)])
        status = source.path.stat()
        settings = {
            "weights": weights,
            "latents": [source.path.name, status.st_size, status.st_mtime_ns, source.rows],
            "names": hashlib.sha256("\n".join(names).encode()).hexdigest(),
            "scaling": scaling,
            "computed": [compute.device.type, precision, batch_size],
        }
        stage = _Stage(output, settings)
        folder, array = stage.folder / "images", stage.folder / "images.npy"
        if kind and not array.is_file():
            stage.rows = 0
        if any(path.is_symlink() for path in (stage.folder, *stage.folder.rglob("*"))):
            stage.rows = 0  # a link may lead anywhere
        if kind:
            _check_space(output, (count - stage.rows) * math.prod(shape))
        stage.begin(observer.notice)
        folder.mkdir(exist_ok=True)
        if kind and not stage.rows:
            np.lib.format.open_memmap(array, "w+", np.uint8, (count, *shape))

        model = loaded.model.to(compute.device).eval()
        first, begun = stage.rows, time.monotonic()
        computed, saved_at = count - first, begun
        with ThreadPoolExecutor(_PNG_WRITERS) as pool:  # PNG files are compressed beside the decoding
            pending: Iterable[None] = ()
            for rows in batches(source, first, batch_size):
                bad = ~np.isfinite(rows).all(1)
                if bad.any():
                    stage.remove()  # nothing could be resumed from these latents
                    raise DataError(
                        f"{latents}: row {first + int(bad.argmax()):,} (from 0) holds NaN or infinite numbers, "
                        "which are no latents: fix the file or make it anew"
                    )
                z = torch.from_numpy(rows).to(compute.device)
                if scaling is not None:
                    z = z / scaling[1] + scaling[0]
                with compute.autocast():
                    images = model.decode(z)
                pixels = to_uint8(images)
                if kind:
                    np.lib.format.open_memmap(array, "r+")[first : first + len(rows)] = pixels
                else:
                    list(pending)  # wait for the batch before
                    paths = [folder / f"{name}.png" for name in names[first : first + len(rows)]]
                    pending = pool.map(_write_png, paths, pixels)
                first += len(rows)
                observer.phase("decoding latents", first, count)
                if first >= count or time.monotonic() - saved_at >= SECONDS_BETWEEN_SAVES:
                    list(pending)
                    if kind:
                        sync_file(array)
                    elif hasattr(os, "sync"):
                        os.sync()  # one call for thousands of small files
                    stage.save(first)
                    saved_at = time.monotonic()

        if kind:
            array.replace(output)
        else:
            _publish_folder(folder, output)
        sync_folder(output.parent)
        stage.remove()
        return Result(output, count, computed, time.monotonic() - begun)


def _check_latents(
    source: Latents, loaded: LoadedModel, weights: str, scale: bool, other_model: bool
) -> tuple[float, float] | None:
    """Refuse latents that are not this model's; returns their shift and scale, as they say or as `scale` asks."""
    if source.rows == 0:
        raise DataError(f"{source.path} has no rows")
    if source.width != loaded.model.latents:
        raise DataError(
            f"{source.path} holds {source.width:,} numbers per image, and {loaded.name} has "
            f"{loaded.model.latents:,} latents: decode with the model that made them"
        )
    made_by = source.about.get("model", {})
    if made_by.get("fingerprint", weights) != weights and not other_model:
        raise ConfigError(
            f"{source.path} was made by other weights ({made_by.get('name', 'unnamed')}) than {loaded.name}: "
            "decode with those, or say --other-model"
        )
    stated = source.about.get("latents", {}).get("scaling")
    if stated is not None:
        return float(stated["shift"]), float(stated["scale"])
    if scale and "latents" in source.about:
        raise ConfigError(f"{source.path} says that its latents are not scaled: leave --scale out")
    return _model_scaling(loaded) if scale else None


def file_names(ids: Sequence[str]) -> list[str]:
    """A path without suffix for each image, inside the folder whatever the name says, and no two the same.

    Letters of either case count as the same, as file systems may have it.
    """
    names, used = list[str](), dict[str, int]()
    for identity in ids:
        # Split by hand: pathlib keeps the two slashes that a name begins with, and the path is then an absolute one.
        *folders, file = identity.replace("\\", "/").rstrip("/").split("/")
        if PurePosixPath(file).suffix.lower() in IMAGE_EXTENSIONS:
            file = PurePosixPath(file).stem
        parts = []
        for part in (*folders, file):
            part = re.sub(r"^([A-Za-z]:)+", "", part)  # a drive of Windows
            data = re.sub(r'[<>:"|?*\x00-\x1f\x7f]', "_", part).rstrip(". ").encode("utf-8", "replace")
            if len(data) > _LONGEST_NAME:
                data = data[: _LONGEST_NAME - 17] + b"-" + hashlib.sha256(data).hexdigest()[:16].encode()
            if data not in (b"", b".", b".."):
                parts.append(data.decode("utf-8", "ignore"))
        name = path = "/".join(parts) or "image"
        while path.casefold() in used:
            used[name.casefold()] += 1
            path = f"{name}-{used[name.casefold()]}"
        used[path.casefold()] = 1
        names.append(path)
    return names


def _write_png(path: Path, image: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tile = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    tile.save(path, "PNG", compress_level=_PNG_COMPRESSION)


# --- resumable work on files -----------------------------------------------------------------------------


class _Stage:
    """A hidden folder beside the output for what is unfinished, the settings it is of, and how many rows are done."""

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        """Look for what an earlier process left; nothing is written before `begin`."""
        self.folder = with_affixes(output, ".", ".partial")
        self._settings = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        self.rows = 0
        with suppress(OSError, ValueError):
            if (self.folder / "settings.json").read_text(encoding="utf-8") == self._settings:
                self.rows = int((self.folder / "progress.json").read_text(encoding="utf-8"))

    def begin(self, notice: Callable[[str], None]) -> None:
        """Go on in the folder, or make it anew where none of its rows can be used."""
        if self.rows:
            return
        if self.folder.exists():
            notice(f"nothing in {self.folder} can be used (other settings, images or weights): starting anew")
            discard(self.folder)
        self.folder.mkdir(parents=True)
        write_text(self.folder / "settings.json", self._settings)

    def save(self, rows: int) -> None:
        """Note that the first `rows` rows are on the disk."""
        self.rows = rows
        write_text(self.folder / "progress.json", f"{rows}\n")

    def remove(self) -> None:
        """The output is complete."""
        discard(self.folder)


@contextmanager
def _exclusive(output: Path) -> Iterator[None]:
    """Hold the output while the block runs, and turn a full or read-only disk into a sentence."""
    lock = FileLock(with_affixes(output, ".", ".lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        try:
            yield
        finally:
            lock.release()
            discard(Path(lock.lock_file))
    except Timeout:
        raise EnvironmentProblem(f"{output} is being written by another process: wait for it") from None
    except OSError as problem:
        way = "free some space" if problem.errno == errno.ENOSPC else "fix its permissions or give another --output"
        raise EnvironmentProblem(
            f"{problem.filename or output} cannot be written or read ({reason(problem)}): {way}, and give the same "
            "command again; it resumes where it was"
        ) from problem


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output.parent).free
    if needed > free:
        raise EnvironmentProblem(
            f"{output} needs {needed / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB left: free some space, or "
            "give another --output"
        )


def _refuse_existing(*paths: Path) -> None:
    """Refuse to write over what is there, but for an empty folder whose place a folder takes."""
    for path in paths:
        if path.exists() and (path.suffix or not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path} is there already, and of something else: delete it, or give another --output")


def _publish_folder(folder: Path, output: Path) -> None:
    if output.is_dir():
        output.rmdir()  # it is empty, or it would have been refused
    folder.replace(output)
