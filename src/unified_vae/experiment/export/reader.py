"""Opens exported files as their users will: in a fresh process, with one library. Run as a script, never imported.

    python reader.py onnx|torch|aoti|diffusers FOLDER INPUTS.npz RESULTS.npz THREADS

INPUTS holds `encoder/1`: the input of FOLDER's encoder for a batch of 1; RESULTS gets `encoder/1/0`, its first output.
"""  # fmt: skip

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[np.ndarray], Sequence[np.ndarray]]


def by_onnx(path: str, threads: int) -> Call:
    """A function of one array, by onnxruntime alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})


def by_torch(path: str, threads: int, compiled: bool) -> Call:
    """A function of one array, by PyTorch alone."""
    import torch

    torch.set_num_threads(threads)
    program = torch._inductor.aoti_load_package(path) if compiled else torch.export.load(path).module()

    def call(values: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [result.numpy() for result in program(torch.from_numpy(values))]

    return call


def by_diffusers(folder: str, part: str, threads: int) -> Call:
    """A function of images in [0, 1] or of latents in a row, by diffusers alone."""
    import torch
    from diffusers import AutoencoderKL

    torch.set_num_threads(threads)
    vae = AutoencoderKL.from_pretrained(folder)
    channels = vae.config.latent_channels

    def encode(images: torch.Tensor) -> Sequence[torch.Tensor]:
        posterior = vae.encode(2 * images - 1).latent_dist
        return posterior.mean.flatten(1), posterior.logvar.flatten(1)

    def decode(latents: torch.Tensor) -> Sequence[torch.Tensor]:
        side = round((latents.shape[1] // channels) ** 0.5)
        return (0.5 + 0.5 * vae.decode(latents.reshape(-1, channels, side, side)).sample,)

    def call(values: np.ndarray) -> Sequence[np.ndarray]:
        with torch.no_grad():
            results = (encode if part == "encoder" else decode)(torch.from_numpy(values))
        return [result.numpy() for result in results]

    return call


def opened_by(kind: str, folder: str, part: str, threads: int) -> Call:
    """The part `encoder` or `decoder` of an export as a function."""
    if kind == "diffusers":
        return by_diffusers(folder, part, threads)
    path = str(Path(folder, f"{part}.onnx" if kind == "onnx" else f"{part}.pt2"))
    return by_onnx(path, threads) if kind == "onnx" else by_torch(path, threads, kind == "aoti")


def main(kind: str, folder: str, inputs: str, results: str, threads: int) -> None:
    """Open each file once, and pass it each of its inputs."""
    given = np.load(inputs)
    found: dict[str, Any] = {}
    opened: dict[str, Call] = {}
    for name in given.files:
        part = name.split("/")[0]
        if part not in opened:
            opened[part] = opened_by(kind, folder, part, threads)
        for number, values in enumerate(opened[part](given[name])):
            found[f"{name}/{number}"] = values
    if "unified_vae" in sys.modules:
        raise SystemExit("unified_vae was imported: this proves nothing of other programs")
    np.savez(results, **found)


if __name__ == "__main__":
    what, where, given_file, results_file, count = sys.argv[1:]
    main(what, where, given_file, results_file, int(count))
