"""Opens exported files as their users will: in a fresh process, with one library. Run as a script, never imported.

    python reader.py onnx|torch|aoti FOLDER INPUTS.npz RESULTS.npz THREADS

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


def main(kind: str, folder: str, inputs: str, results: str, threads: int) -> None:
    """Open each file once, and pass it each of its inputs."""
    given = np.load(inputs)
    found: dict[str, Any] = {}
    opened: dict[str, Call] = {}
    for name in given.files:
        part = name.split("/")[0]
        path = str(Path(folder, f"{part}.onnx" if kind == "onnx" else f"{part}.pt2"))
        if part not in opened:
            opened[part] = by_onnx(path, threads) if kind == "onnx" else by_torch(path, threads, kind == "aoti")
        for number, values in enumerate(opened[part](given[name])):
            found[f"{name}/{number}"] = values
    if "unified_vae" in sys.modules:
        raise SystemExit("unified_vae was imported: this proves nothing of other programs")
    np.savez(results, **found)


if __name__ == "__main__":
    what, where, given_file, results_file, count = sys.argv[1:]
    main(what, where, given_file, results_file, int(count))
