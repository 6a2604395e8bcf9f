"""Encoder and decoder as ONNX, for onnxruntime and everything else that reads the format."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified_vae.core.events import Observer
from unified_vae.experiment.export.comparison import Checked, compare
from unified_vae.experiment.export.parts import Part

OPSET = 20
ALLOWED = 1e-4  # relative: onnxruntime sums in another order
ALLOWED_HALF = 3e-2  # onnxruntime rounds to fp16 in other places than PyTorch
LARGEST_FILE = 2**31 - 2**24  # protobuf takes no more; the weights of larger models lie beside the file


def write(
    stage: Path, parts: Sequence[Part], facts: Mapping[str, str], half: bool, observer: Observer
) -> list[Checked]:
    """Write and check `encoder.onnx` and `decoder.onnx`.

    Args:
        facts: written into each file's `metadata_props`.

    Raises:
        EnvironmentProblem: onnxruntime cannot open a file, or computes other numbers from it.
    """
    import onnxruntime

    for number, part in enumerate(parts):
        observer.phase("writing ONNX", number, len(parts))
        write_part(stage / f"{part.name}.onnx", part, facts)
    observer.phase("opening them in onnxruntime, in a fresh process", 0, None)
    reader = f"onnxruntime {onnxruntime.__version__}"
    return compare(stage, parts, "onnx", ".onnx", ALLOWED_HALF if half else ALLOWED, reader)


def write_part(path: Path, part: Part, facts: Mapping[str, str]) -> None:
    """One file, seen through by the format's own checker."""
    import onnx
    import torch

    with _quiet():
        program: Any = torch.onnx.export(
            part.traced(),
            (part.example(2),),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    _name(program.model, part)
    program.model.metadata_props.update(facts)
    program.save(str(path), external_data=_bytes(part) > LARGEST_FILE)
    onnx.checker.check_model(str(path), full_check=True)


def _name(model: Any, part: Part) -> None:
    """Names of inputs, outputs and the dimension of any size; where an inner value has such a name it loses it."""
    import onnx_ir

    for node in model.graph:
        for value in node.outputs:
            value.name = f"inner_{value.name}"
    for value, name in zip((*model.graph.inputs, *model.graph.outputs), (part.takes, *part.gives), strict=True):
        value.name = name
        value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])


def _bytes(part: Part) -> int:
    return sum(value.nbytes for value in part.module.state_dict().values())


@contextlib.contextmanager
def _quiet() -> Any:
    """The exporter's remarks are for its developers."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
