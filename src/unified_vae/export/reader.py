"""Opens exported files as their users will: in a fresh process, with one library. Run as a script, never imported.

    python reader.py onnx|torch|diffusers FOLDER INPUTS.npz OUTPUTS.npz THREADS

INPUTS holds `encoder/1`: the input of FOLDER's encoder for a batch of 1; OUTPUTS gets `encoder/1/0`, its first output.
"""  # fmt: skip

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Function = Callable[[np.ndarray], Sequence[np.ndarray]]


def open_onnx(path: str, threads: int) -> Function:
    """Return a function of one array, by onnxruntime alone."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})


def open_torch(kind: str, folder: str, part: str, threads: int) -> Function:
    """Return a function of one array, by PyTorch alone or by diffusers (images in [0, 1], latents in a row)."""
    import torch

    torch.set_num_threads(threads)
    if kind == "diffusers":
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(folder)
        channels = vae.config.latent_channels

    def call(values: np.ndarray) -> Sequence[np.ndarray]:
        batch = torch.from_numpy(values)
        if kind != "diffusers":
            results = program(batch)
        elif part == "encoder":
            posterior = vae.encode(2 * batch - 1).latent_dist
            results = (posterior.mean.flatten(1), posterior.logvar.flatten(1))
        else:
            side = round((batch.shape[1] // channels) ** 0.5)
            results = (0.5 + 0.5 * vae.decode(batch.reshape(-1, channels, side, side)).sample,)
        return [result.numpy() for result in results]

    if kind != "diffusers":
        program = torch.export.load(f"{folder}/{part}.pt2").module()
    return torch.no_grad()(call)


def main(kind: str, folder: str, inputs: str, outputs: str, threads: int) -> None:
    """Open each file once, and pass it each of its inputs."""
    arrays = np.load(inputs)
    results: dict[str, Any] = {}
    opened: dict[str, Function] = {}
    for name in arrays.files:
        part = name.split("/")[0]
        if part not in opened:
            onnx = kind == "onnx"
            opened[part] = (
                open_onnx(f"{folder}/{part}.onnx", threads) if onnx else open_torch(kind, folder, part, threads)
            )
        for number, values in enumerate(opened[part](arrays[name])):
            results[f"{name}/{number}"] = values
    if "unified_vae" in sys.modules:
        raise SystemExit("unified_vae was imported: this proves nothing of other programs")
    np.savez(outputs, **results)


if __name__ == "__main__":
    what, where, inputs_file, outputs_file, count = sys.argv[1:]
    main(what, where, inputs_file, outputs_file, int(count))
