"""What `encode` and `decode` take beside the network: a whole set to latents and back, against the bare forward pass.

After every few batches the same network computes one ready batch, which is the bare pass: both are timed in the same
process and the same seconds, so that whatever else the machine does slows both. Memory is the peak of a process of its
own, at the full number of images and at a tenth of it; packing, which happens once, is a process of its own as well.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from script import parser, save, settle, start, table
from unified_vae.config.data import DataConfig
from unified_vae.config.model import ConvConfig
from unified_vae.core.errors import ConfigError
from unified_vae.core.events import Observer
from unified_vae.core.rng import key
from unified_vae.data.prepare import open_data
from unified_vae.inference.latents import decode, encode
from unified_vae.models.build import build_model
from unified_vae.models.pretrained import load_pretrained, save_pretrained
from unified_vae.models.vae import VAE

NAME = "encode_decode"
TARGETS = {"time over bare": 1.1, "memory growth, MiB per 100,000 images": 100}
BLOCK = 1000  # images that are drawn at once


def read_options() -> argparse.Namespace:
    options = parser(NAME, __doc__)
    options.add_argument("--images", type=int, default=100_000, dest="count")
    options.add_argument("--image-size", type=int, default=64)
    options.add_argument("--latents", type=int, default=256)
    options.add_argument("--base-channels", type=int, default=64)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--every", type=int, default=4, help="batches between two bare passes")
    given = settle(options.parse_args())
    if given.quick:
        given.count, given.base_channels, given.latents, given.image_size = 4000, 4, 16, 16
    if given.processes != 1:
        raise ConfigError("this benchmark runs its processes one after the other: leave --processes out")
    return given


class Interleaved(Observer):
    """Between the verb's batches: the bare pass of one ready batch. Both are timed."""

    def __init__(self, model: VAE, batch_size: int, every: int) -> None:
        side = model.image_size
        self.images = torch.rand(batch_size, model.channels, side, side)
        self.latents = torch.randn(batch_size, model.latents)
        self.model, self.every = model, every
        self.bare: dict[str, list[float]] = {"encoding images": [], "decoding latents": []}
        self.verb: dict[str, list[float]] = {"encoding images": [], "decoding latents": []}
        self.spent = 0.0
        self._left_at: float | None = None
        for text in self.bare:
            self._pass(text)  # the first one prepares

    def phase(self, text: str, done: int, total: int | None) -> None:
        if text not in self.bare:
            return
        came = time.perf_counter()
        if self._left_at is not None and done != total:
            self.verb[text].append(came - self._left_at)
        if len(self.verb[text]) % self.every == 0:
            self.bare[text].append(self._pass(text))
        self._left_at = None if done == total else time.perf_counter()
        self.spent += time.perf_counter() - came

    @torch.no_grad()
    def _pass(self, text: str) -> float:
        begun = time.perf_counter()
        found: Tensor = (
            self.model.encode(self.images).mean if text == "encoding images" else self.model.decode(self.latents)
        )
        assert len(found)
        return time.perf_counter() - begun


# --- processes -------------------------------------------------------------------------------------------


def measured(work: str, options: dict[str, Any], answer: Any) -> None:
    """In a process of its own: do it, and send the figures and the peak of memory."""
    torch.set_num_threads(options["threads"])
    before = peak_mib()
    found = {"pack": pack, "encode": run_encode, "decode": run_decode}[work](options)
    answer.send({**found, "peak_mib": round(peak_mib(), 1), "peak_mib_of_imports": round(before, 1)})


def peak_mib() -> float:
    """The largest memory of this process so far. On Linux without that of its parent, which getrusage includes."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def in_own_process(work: str, options: dict[str, Any]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(work, options, theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        raise ConfigError(f"the process of {work} ended without an answer") from None
    process.join()
    return found


def pack(options: dict[str, Any]) -> dict[str, Any]:
    begun = time.monotonic()
    data = open_data(DataConfig(source=options["source"]), options["image_size"], 3, lambda *_: None)
    return {"images": len(data.train) + len(data.validation), "seconds": round(time.monotonic() - begun, 1)}


def run_encode(options: dict[str, Any]) -> dict[str, Any]:
    folder = Path(options["folder"])
    watcher = Interleaved(load_pretrained(options["model"]), options["batch_size"], options["every"])
    begun = time.perf_counter()
    done = encode(
        Path(options["model"]), options["source"], folder / "latents", batch_size=options["batch_size"],
        device="cpu", observer=watcher,
    )  # fmt: skip
    return figures(watcher, "encoding images", done.images, done.seconds, time.perf_counter() - begun, options)


def run_decode(options: dict[str, Any]) -> dict[str, Any]:
    folder = Path(options["folder"])
    watcher = Interleaved(load_pretrained(options["model"]), options["batch_size"], options["every"])
    begun = time.perf_counter()
    done = decode(
        Path(options["model"]), folder / "latents", folder / options["output"], batch_size=options["batch_size"],
        device="cpu", observer=watcher,
    )  # fmt: skip
    return figures(watcher, "decoding latents", done.images, done.seconds, time.perf_counter() - begun, options)


def figures(
    watcher: Interleaved, text: str, images: int, seconds: float, whole: float, options: dict[str, Any]
) -> dict[str, Any]:
    """Time of the verb, by batches and in all, over that of the bare pass."""
    verb, bare = watcher.verb[text], watcher.bare[text]
    bare_in_all = statistics.fmean(bare) * images / options["batch_size"]
    return {
        "images": images,
        "images_per_second": round(images / (seconds - watcher.spent), 1),
        "bare_images_per_second": round(options["batch_size"] / statistics.fmean(bare), 1),
        "time_over_bare": round((seconds - watcher.spent) / bare_in_all, 3),
        "median_batch_over_median_bare": round(statistics.median(verb) / statistics.median(bare), 3),
        "seconds": round(seconds - watcher.spent, 2),
        "seconds_before_and_after": round(whole - seconds, 2),
        "bare_passes": len(bare),
    }


# --- the set ---------------------------------------------------------------------------------------------


def draw(path: Path, count: int, size: int) -> Path:
    """Smooth random pictures as an array file, drawn and written a block at a time."""
    stage = path.with_suffix(".tmp")
    with stage.open("wb") as file:
        shape = (count, size, size, 3)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for first in range(0, count, BLOCK):
            rng = np.random.default_rng(key(0, "pictures", first))
            coarse = torch.from_numpy(rng.random((min(BLOCK, count - first), 3, 4, 4), np.float32))
            smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
            file.write((smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy().data)
    return stage.replace(path)


def main() -> None:
    options = read_options()
    folder = options.work_dir / f"{options.count}-{options.image_size}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape = ConvConfig(
        image_size=options.image_size, latents=options.latents, base_channels=options.base_channels, channels=3
    )
    save_pretrained(folder / "model", shape, build_model(shape, seed=0).state_dict(), {})
    settings = {**vars(options), "model": str(folder / "model"), "work_dir": None, "data_dir": None}
    found: dict[str, Any] = {}
    for count in (options.count // 10, options.count):
        place = folder / str(count)
        place.mkdir()
        one = {**settings, "folder": str(place), "source": str(draw(place / "images.npy", count, options.image_size))}
        found[f"{count}"] = rounds(one)
        print(json.dumps({count: found[f"{count}"]}), flush=True)
    tell(found, options)
    shutil.rmtree(folder, ignore_errors=True)


def rounds(options: dict[str, Any]) -> dict[str, Any]:
    """Packing, encoding, decoding to an array and to a folder, of one set."""
    return {
        "pack": in_own_process("pack", options),
        "encode to shards": in_own_process("encode", options),
        "decode to .npy": in_own_process("decode", {**options, "output": "images-back.npy"}),
        "decode to PNG files": in_own_process("decode", {**options, "output": "images-back"}),
    }


def tell(found: dict[str, Any], options: argparse.Namespace) -> None:
    small, large = found[f"{options.count // 10}"], found[f"{options.count}"]
    growth = {
        name: round((large[name]["peak_mib"] - small[name]["peak_mib"]) / (0.9 * options.count) * 100_000, 1)
        for name in large
    }
    rows = [
        (name, figure["images_per_second"], figure["bare_images_per_second"], figure["time_over_bare"],
         figure["median_batch_over_median_bare"], figure["peak_mib"], growth[name])
        for name, figure in large.items() if name != "pack"
    ]  # fmt: skip
    table(["", "images/s", "bare", "time/bare", "median", "peak MiB", "MiB/100,000"], rows)
    both = [large["encode to shards"], large["decode to .npy"]]
    bare = sum(figure["images"] / figure["bare_images_per_second"] for figure in both)
    together = round(sum(figure["seconds"] for figure in both) / bare, 3)
    print(f"\nencode and decode together: {together:.3f} of the bare pass (target {TARGETS['time over bare']})")
    payload = {"targets": TARGETS, "encode_and_decode_over_bare": together, "growth_mib_per_100000": growth}
    save(options, NAME, {**payload, "rounds": found})


if __name__ == "__main__":
    start(main)
