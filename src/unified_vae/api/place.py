"""Where a model lies and where it computes: a folder, a run, the hub; a device and an arithmetic."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from unified_vae.core.errors import CheckpointError, ConfigError, EnvironmentProblem
from unified_vae.models.pretrained import CONFIG, WEIGHTS

HUB = "hf:"
RUN_MODEL = "model"  # the folder in a run's folder
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def model_folder(path_or_hub_id: str | Path, **options: Any) -> Path:
    """The folder with the model's files, downloaded if they are on the hub.

    Args:
        options: for `api.hub.download`.

    Raises:
        CheckpointError: there is no model.
    """
    path, text = Path(path_or_hub_id), str(path_or_hub_id)
    if text.startswith(HUB) or (isinstance(path_or_hub_id, str) and is_hub_id(text)):
        from unified_vae.api.hub import download  # needs a package that may be absent

        return download(text.removeprefix(HUB), **options)
    return local_folder(path)


def is_hub_id(text: str) -> bool:
    """Whether a text without the prefix names a model on the hub: `owner/name`, and neither is a folder here."""
    return bool(_HUB_ID.fullmatch(text)) and not Path(text).exists() and not Path(text).parent.exists()


def local_folder(path: Path) -> Path:
    """The model's folder of `path`, which is that folder or its run's."""
    if (path / WEIGHTS).is_file() and (path / CONFIG).is_file() and not (path / "MANIFEST.json").is_file():
        return path
    if (path / RUN_MODEL / WEIGHTS).is_file():
        return path / RUN_MODEL
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: a model is a folder with {CONFIG} and {WEIGHTS}, and pickles (.pt, .pth, .ckpt) are "
            "never opened. Name the folder of a run or of a model."
        )
    if not path.is_dir():
        hub = f", and for a model on the hub write {HUB}{path.as_posix()}" if path.as_posix().count("/") == 1 else ""
        raise CheckpointError(f"{path} is not there: name the folder of a run or of a model{hub}.")
    if (path / "checkpoints").is_dir():
        raise CheckpointError(f"the run in {path} has no model yet: it writes one when it is finished.")
    raise CheckpointError(f"{path} is no model: {CONFIG} and {WEIGHTS} are not both in it.")


def chosen_device(device: str | torch.device) -> torch.device:
    """`auto`, or the device that is named.

    Raises:
        EnvironmentProblem: this machine has no such device.
        ConfigError: there is no such kind of device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"there is no device {device!r}: give auto, cpu, cuda, cuda:N or mps") from None
    if not _is_there(chosen):
        raise EnvironmentProblem(f"this machine has no device {device}: give auto or cpu")
    return chosen


def _is_there(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    return device.type != "mps" or torch.backends.mps.is_available()


def chosen_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """The arithmetic that is named; raises ConfigError."""
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ConfigError(f"the arithmetic is float32, bfloat16 or float16, not {dtype}")
    return chosen
