"""Models on the Hugging Face Hub, through the mixin of huggingface_hub, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified_vae.core.errors import EnvironmentProblem

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
except ImportError as problem:
    raise EnvironmentProblem(
        "models on the hub need the package huggingface_hub: uv sync --extra hub (or pip install 'unified-vae[hub]')"
    ) from problem

FILES = ["*.json", "*.safetensors", "README.md", "samples.png"]
"""What a model is made of: nothing else is downloaded."""


def download(repo_id: str, **options: Any) -> Path:
    """The folder of a model of the hub, in the hub's cache.

    Args:
        options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` of snapshot_download.

    Raises:
        EnvironmentProblem: there is no such model, or the hub cannot be reached.
    """
    try:
        return Path(snapshot_download(repo_id, allow_patterns=FILES, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
        said = (str(problem) or type(problem).__name__).split("\n")[0].rstrip(".")
        raise EnvironmentProblem(
            f"the model {repo_id} cannot be had from the hub ({said}). Check its name, the network and your token; a "
            "folder of this machine is named by its path."
        ) from problem


__all__ = ["FILES", "ModelHubMixin", "download"]
