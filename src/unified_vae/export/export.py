"""The verb `export`: write beside the final folder, open in a fresh process, compare, and only then take its name.

Importing this does not import torch, so that mistakes are reported immediately.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unified_vae.config.model import SpatialConfig
from unified_vae.core import __version__
from unified_vae.core.errors import ConfigError, EnvironmentProblem, UserError, reason
from unified_vae.core.files import STAGE_PREFIX, discard, sync_folder, write_text

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from unified_vae.core.events import Observer
    from unified_vae.export.formats import Part
    from unified_vae.export.precision import HalfAudit, HalfName
    from unified_vae.inference.load import LoadedModel
    from unified_vae.models.pretrained import LatentStats
    from unified_vae.models.vae import VAE

Format = Literal["onnx", "torch", "safetensors", "diffusers"]
PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "diffusers": ("diffusers",)}
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "diffusers": ""}
TOLERANCE = {"onnx": 1e-4, "torch": 0.0, "diffusers": 1e-6}
"""Largest relative difference: other programs sum in another order."""
HALF_TOLERANCE = 3e-2  # of ONNX files, which round to half precision in other places
DIFFUSERS_BATCHES = (1, 2)
STATS_IMAGES = 1000  # that scale and shift of latents are measured on
READER = Path(__file__).with_name("reader.py")
ABOUT = "export.json"  # what marks a folder as one of ours
ABOUT_FORMAT = 1
HALF_PRECISION = "half_precision"  # the entry of the config file
OTHER_VERBS_FILES = ("evaluation.json", "diagnosis.json", "diagnosis.png")  # which may lie in a model's folder


@dataclass(frozen=True)
class Comparison:
    """A file that was written, opened again and compared.

    Attributes:
        file: its name.
        absolute: largest difference from PyTorch, over all batch sizes and outputs.
        relative: largest difference / largest number of that output.
        reader: what opened it.
    """

    file: str
    absolute: float
    relative: float
    reader: str


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        name: of the model, e.g. `runs/x at step 1,234 (best)`.
        files: with sizes in bytes; those that were compared have a `Comparison`.
        verdicts: lines on half precision; why there is none where there was no audit.
    """

    name: str
    folder: Path
    files: dict[str, int]
    compared: Sequence[Comparison]
    verdicts: Sequence[str]


def check(target: Path, to: Format, output: Path | None, half: HalfName | None, images: int) -> None:
    """Report what would fail only after torch was loaded.

    Raises:
        ConfigError: no such target, or a combination that there is not.
        EnvironmentProblem: a package is missing, or the output cannot be written.
    """
    if target.is_file():
        raise ConfigError(
            f"{target} is a file, which is not opened: a pickle could run code hidden in it. Name the folder of a run "
            "(runs/NAME), of one of its checkpoints, or of an exported model."
        )
    if not target.is_dir():
        raise ConfigError(f"{target} is not there: name the folder of a run, e.g. runs/fast_high_quality")
    if half and to in ("safetensors", "diffusers"):
        raise ConfigError("--half: a folder of weights keeps float32; its reader may choose another precision.")
    if half == "bf16" and to == "onnx":
        raise ConfigError("--half bf16: onnxruntime has no bf16 convolution on the CPU to compare with. Use fp16.")
    if half and images == 0:
        raise ConfigError("--half needs the audit, which looks at images: leave --images 0 out.")
    if missing := [name for name in PACKAGES.get(to, ()) if importlib.util.find_spec(name) is None]:
        raise EnvironmentProblem(f"--to {to} needs {' and '.join(missing)}: uv sync --extra {to}")
    if output is not None:
        _refuse_other_files(output)
        parent = next(path for path in (output.absolute(), *output.absolute().parents) if os.path.lexists(path))
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise _unwritable(output, f"{parent} takes no new files")


def export(
    target: Path,
    to: Format,
    *,
    output: Path | None = None,
    checkpoint: str | None = None,
    weights: Literal["ema", "raw"] | None = None,
    half: HalfName | None = None,
    data: str | None = None,
    images: int = 256,
    device: str | None = None,
    observer: Observer,
) -> Exported:
    """Export a model; where anything fails, nothing lies under the final name.

    Args:
        target: a run's folder, a checkpoint's in it, or an exported model's.
        output: folder to write; None is a folder of its own below the run's `exports`.
        checkpoint: a step, `best` or `last`; None takes the best there is.
        weights: the averaged ones or those that were stepped; None takes the averaged ones, and of a model what it has.
        half: half precision, where the audit allows it; None is float32.
        data: images for the audit, other than the run's.
        images: how many images the audit looks at.
        device: auto, cpu, ... for the audit; None as the run had it.

    Raises:
        UserError: no such run or weights, half precision is not safe, or the files do not give the model's numbers.
    """
    check(target, to, output, half, images)
    import torch

    from unified_vae.export import formats
    from unified_vae.export.precision import DTYPES, half_copy
    from unified_vae.inference.load import load_model, trained_model
    from unified_vae.models.pretrained import load_pretrained

    loaded = load_model(target, checkpoint, data=data, weights=weights, require_data=False, on_message=observer.notice)
    model, config = loaded.model, loaded.config.model
    if to == "diffusers" and not isinstance(config, SpatialConfig):
        raise ConfigError(
            f"--to diffusers: the latents of {loaded.name} are a vector, and AutoencoderKL takes a map. Train a model "
            "of the family spatial (--model-preset spatial_f8), or export this one with --to onnx, torch or "
            "safetensors."
        )
    # by default a folder of its own for each combination, beside the run's checkpoints
    words: list[str] = [to]
    if target.resolve().parent.name == "checkpoints" or checkpoint not in (None, "best"):
        words.append(f"step-{loaded.step}")
    words += [word for word in (loaded.weights, half) if word not in ("ema", None)]
    folder = output or loaded.home / "exports" / "-".join(words)
    pixels = f"float in [{-1 if to == 'diffusers' else 0}, 1], channels first"
    facts = {
        "producer": f"unified-vae {__version__}, torch {torch.__version__}",
        "model": loaded.name,
        "family": config.family,
        "weights": loaded.weights,
        "precision": half or "fp32",
        "pixels": f"{pixels}; {'RGB' if model.channels == 3 else 'gray'}; clip what the decoder gives",
        "image_size": model.image_size,
        "channels": model.channels,
        "latents": model.latents,
    }
    with _staged(folder) as stage:
        audit, verdicts = _audit(loaded, half, data, images, device, observer)
        finished = None
        if audit is not None or to in ("safetensors", "diffusers"):
            finished = trained_model(loaded, observer.notice, "So nothing of it is used.")

        # write the files, and open them again
        compared: list[Comparison]
        if to == "safetensors":
            observer.phase("writing the model folder", 0, None)
            run: dict[str, Any] = {"name": loaded.home.absolute().name, "license": loaded.config.license}
            run |= {"step": loaded.step, "weights": loaded.weights}
            if loaded.record is not None:
                run |= {"names": dict(loaded.record.names), "data": loaded.record.data["description"]}
            loss, background = loaded.config.loss.model_dump(mode="json"), loaded.config.data.background
            about = {"run": run, "loss": loss, "pixels": pixels, "background": background}
            formats.write_folder(stage, loaded, about, finished, observer)
            compared = [_compare_folder(model, load_pretrained(stage))]
            if audit is not None:
                _keep_verdict(stage, audit)
        else:
            parts = formats.parts(model if half is None else half_copy(model, DTYPES[half]))
            for number, part in enumerate(parts if to != "diffusers" else []):
                path = stage / f"{part.name}{ENDINGS[to]}"
                observer.phase("writing", number, len(parts))
                if to == "onnx":
                    formats.write_onnx(path, part, {name: str(value) for name, value in facts.items()})
                else:
                    with formats.quiet():
                        torch.export.save(part.traced(), path)
            if to == "diffusers":
                assert isinstance(config, SpatialConfig)
                known = None if data is not None or finished is None else finished.content.stats
                stats = known or _measure_stats(loaded, data, device, observer)
                observer.phase("writing the folder", 0, None)
                formats.write_diffusers(stage, loaded, config, stats, audit)
            observer.phase("opening the files in a fresh process", 0, None)
            compared = compare(stage, parts, to, half=half is not None)
            if to == "diffusers":
                absolute, relative = (
                    max(getattr(part, name) for part in compared) for name in ("absolute", "relative")
                )
                compared = [Comparison(formats.DIFFUSERS_WEIGHTS, absolute, relative, compared[0].reader)]

        # say in the folder what it is; last, when every file is there
        entry = {} if audit is None else {HALF_PRECISION: audit.to_json()}
        content = {"format": ABOUT_FORMAT, **facts, **entry, "compared": [vars(entry) for entry in compared]}
        sizes = {path.name: path.stat().st_size for path in sorted(stage.iterdir())}
        write_text(stage / ABOUT, json.dumps({**content, "files": sizes}, indent=2) + "\n")
    if audit is not None and finished is not None:
        try:
            _keep_verdict(finished.folder, audit)
        except UserError as error:
            observer.notice(f"the verdict on half precision could not be kept in {finished.folder}: {error}")
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return Exported(loaded.name, folder, files, compared, verdicts)


# --- comparison ------------------------------------------------------------------------------------------


def compare(stage: Path, parts: Sequence[Part], to: Format, *, half: bool = False) -> list[Comparison]:
    """Open each part's file in a fresh process and compare it with the part, for every size of a batch.

    Raises:
        EnvironmentProblem: a file cannot be opened, or gives other numbers.
    """
    import torch

    library = {"onnx": "onnxruntime", "diffusers": "diffusers"}.get(to, "torch")
    reader = f"{library} {version(library)}"
    allowed = HALF_TOLERANCE if half and to != "torch" else TOLERANCE[to]
    batches = {part.name: DIFFUSERS_BATCHES if to == "diffusers" else part.batches for part in parts}
    results = _read_in_fresh_process(stage, parts, to, batches)
    compared = []
    for part in parts:
        pairs = [
            difference(expected, torch.from_numpy(results[f"{part.name}/{size}/{number}"]))
            for size in batches[part.name]
            for number, expected in enumerate(part.outputs(size))
        ]
        absolute, relative = (max(values) for values in zip(*pairs, strict=True))
        compared.append(Comparison(f"{part.name}{ENDINGS[to]}", absolute, relative, reader))
        if not relative <= allowed:
            raise EnvironmentProblem(
                f"the {part.name} was written, but {reader} computes other numbers from it than PyTorch (relative "
                f"difference {relative:.1e}, allowed {allowed:.0e}), so it was deleted. Try another version of either."
            )
    return compared


def _read_in_fresh_process(
    stage: Path, parts: Sequence[Part], to: Format, batches: Mapping[str, Sequence[int]]
) -> dict[str, np.ndarray]:
    """What reader.py computes from the files: `encoder/1/0` is the encoder's first output for a batch of 1."""
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory(prefix=f"{STAGE_PREFIX}compare-", dir=stage.parent) as folder:
        inputs, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        examples: dict[str, Any] = {
            f"{part.name}/{size}": part.example(size).numpy() for part in parts for size in batches[part.name]
        }
        np.savez(inputs, **examples)
        threads = str(torch.get_num_threads())  # as many as here: sums in another order would round differently
        command = [sys.executable, "-P", str(READER), to, str(stage), str(inputs), str(outputs), threads]
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise EnvironmentProblem(f"the files were written, but a fresh process could not use them ({last}).")
        with np.load(outputs) as arrays:
            return dict(arrays)


def difference(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Return the largest absolute and relative difference; infinite where shapes differ or there is NaN/Inf."""
    if expected.shape != actual.shape or not bool(actual.isfinite().all()):
        return float("inf"), float("inf")
    absolute = float((expected.double() - actual.double()).abs().max())
    return absolute, absolute / max(float(expected.abs().max()), 1e-12)


def _compare_folder(model: VAE, loaded: VAE) -> Comparison:
    """Every tensor, and both halves at every batch size, have to be equal."""
    from unified_vae.export.formats import parts
    from unified_vae.models.pretrained import WEIGHTS

    tensors = loaded.state_dict()
    pairs = [(value, tensors[name]) for name, value in model.state_dict().items()]
    for expected, actual in zip(parts(model), parts(loaded), strict=True):
        for batch in expected.batches:
            pairs += zip(expected.outputs(batch), actual.outputs(batch), strict=True)
    absolute, relative = map(max, zip(*(difference(*pair) for pair in pairs), strict=True))
    if absolute:
        raise EnvironmentProblem(f"{WEIGHTS} was written, but holds other numbers when read again: check the disk.")
    return Comparison(WEIGHTS, absolute, relative, "unified-vae")


# --- images of the run -----------------------------------------------------------------------------------


def _audit(
    loaded: LoadedModel, half: HalfName | None, data: str | None, images: int, device: str | None, observer: Observer
) -> tuple[HalfAudit | None, Sequence[str]]:
    """The audit of half precision on validation images, and what to say of it."""
    import numpy as np

    from unified_vae.core.device import is_out_of_memory
    from unified_vae.data.batches import gather
    from unified_vae.export.precision import audit
    from unified_vae.inference.image_set import open_matching_images
    from unified_vae.training.distributed import open_runtime

    sets = None
    if images > 0 and (data is not None or loaded.record is not None):
        try:
            sets = open_matching_images(loaded, data, observer, max_images=loaded.config.data.max_images)
        except UserError as error:
            if data is not None:
                raise
            observer.notice(f"the run's images cannot be opened: {error}")
    if sets is None:
        if half is not None:
            raise ConfigError("--half needs the audit, and there are no images for it: name some with --data")
        why = "--images 0" if images == 0 else "name images with --data"
        return None, [f"half precision was not audited: {why}"]
    batch = gather(sets.validation, np.arange(min(images, len(sets.validation))))
    with open_runtime(device or loaded.config.device, "fp32") as runtime:
        try:
            result = audit(loaded.model.to(runtime.device), batch, observer.phase)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise EnvironmentProblem(
                f"{runtime.device} ran out of memory in the audit of half precision: name another with --device, or "
                "leave the audit out with --images 0"
            ) from error
        finally:
            loaded.model.to("cpu")
    if half is not None and not getattr(result, half).safe:
        raise ConfigError(f"--half {half} is not safe for this model. {'; '.join(result.lines())}.")
    return result, result.lines()


def _measure_stats(loaded: LoadedModel, data: str | None, device: str | None, observer: Observer) -> LatentStats:
    """Statistics of the latents of training images."""
    from unified_vae.analysis.density import encode_training_images
    from unified_vae.inference.image_set import open_matching_images
    from unified_vae.models.pretrained import measure_latent_stats
    from unified_vae.training.distributed import open_runtime

    if data is None and loaded.record is None:
        raise ConfigError(f"{loaded.name} has no statistics of its latents: name images to measure them on with --data")
    sets = open_matching_images(loaded, data, observer, max_images=loaded.config.data.max_images)

    def progress(done: int, total: int) -> None:
        observer.phase("measuring the scale of the latents", done, total)

    with open_runtime(device or loaded.config.device, "fp32") as runtime:
        try:
            model = loaded.model.to(runtime.device)
            return measure_latent_stats(
                encode_training_images(model, sets.train, STATS_IMAGES, loaded.config.seed, progress)
            )
        finally:
            loaded.model.to("cpu")


def _keep_verdict(folder: Path, audit: HalfAudit) -> None:
    """Write the verdict into a complete model's config file and card, in place of an earlier one."""
    from unified_vae.inference.hub import CARD, half_precision
    from unified_vae.models.pretrained import describe

    content = audit.to_json()
    describe(folder, {HALF_PRECISION: content})
    if not (folder / CARD).is_file():
        return
    # before the card's last section; all else stays as it is
    title, section = half_precision(content["verdict"]).removeprefix("## ").split("\n", 1)
    sections = (folder / CARD).read_text(encoding="utf-8").split("\n## ")
    others = [sections[0], *(each for each in sections[1:] if each.split("\n", 1)[0] != title)]
    others.insert(max(len(others) - 1, 1), f"{title}\n{section}\n")
    write_text(folder / CARD, "\n## ".join(others))


# --- where it is written ---------------------------------------------------------------------------------


def _refuse_other_files(folder: Path) -> None:
    """Raise ConfigError where something lies that is not, all of it, an earlier export and what was measured of it."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        files = [str(name) for name in json.loads((folder / ABOUT).read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        files = []
    known = {ABOUT, *files, *OTHER_VERBS_FILES}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []
    if not folder.is_dir() or folder.is_symlink() or not files or others:
        what = f"holds {others[0]}, which no export wrote" if others else "is no folder of an earlier export"
        raise ConfigError(f"{folder} {what}, so it is not overwritten: name another folder with --output")


def _unwritable(folder: Path, why: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{folder} cannot be written ({why}): name another folder with --output, free space, or fix the permissions."
    )


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder to fill beside `folder`, which takes its name at the end, in place of an earlier export.

    Where the block raises, it is deleted, and what lay under the name is kept.
    """
    _refuse_other_files(folder)
    stage, old = (folder.with_name(f"{STAGE_PREFIX}{folder.name}{word}-{os.getpid()}") for word in ("", "-old"))
    try:
        discard(stage)
        stage.mkdir(parents=True)
        yield stage
        _refuse_other_files(folder)  # again: it may have been filled meanwhile
        if folder.is_dir():
            folder.rename(old)
        stage.rename(folder)
        discard(old)
        sync_folder(folder.parent)
    except OSError as error:
        raise _unwritable(folder, reason(error)) from error
    finally:
        discard(stage)
