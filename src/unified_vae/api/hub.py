"""Models on the Hugging Face Hub, through the mixin of huggingface_hub, which is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from unified_vae.core.errors import EnvironmentProblem, UserError

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
except ImportError as problem:
    raise EnvironmentProblem("models on the hub need the package huggingface_hub: uv sync --extra hub") from problem

FILES = ["config.json", "*.safetensors", "README.md", "samples.png"]
"""What a model is made of: nothing else is downloaded."""

HUB_ERRORS = (HfHubHTTPError, HFValidationError, OSError)


class Model(Protocol):
    """What can be uploaded."""

    def save_pretrained(self, folder: str | Path, license: str | None = None) -> object:
        """Write the model's folder."""


class HubModel(ModelHubMixin):
    """A model as the mixin knows it: it asks for a folder to be written, and does the rest.

    Attributes:
        vae: the model.
        license: for its card; None keeps the run's.
    """

    def __init__(self, vae: Model, license: str | None = None) -> None:
        self.vae = vae
        self.license = license

    def _save_pretrained(self, save_directory: Path) -> None:
        self.vae.save_pretrained(save_directory, self.license)


def download(repo_id: str, **options: Any) -> Path:
    """The folder of a model of the hub, in the hub's cache.

    Args:
        options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` of snapshot_download.

    Raises:
        EnvironmentProblem: there is no such model, or the hub cannot be reached.
    """
    try:
        return Path(snapshot_download(repo_id, allow_patterns=FILES, **options))
    except HUB_ERRORS as problem:
        raise EnvironmentProblem(
            f"the model {repo_id} cannot be had from the hub ({_words(problem)}). Check its name, the network and your "
            "token; a folder of this machine is named by its path."
        ) from problem


def push(vae: Model, repo_id: str, license: str | None, **options: Any) -> str:
    """Upload a model; returns the address of the commit.

    Raises:
        EnvironmentProblem: the hub refuses or cannot be reached.
    """
    try:
        return str(HubModel(vae, license).push_to_hub(repo_id, **options))
    except UserError:
        raise
    except Exception as problem:  # of the hub, or of whichever library it speaks HTTP with
        raise EnvironmentProblem(
            f"the model cannot be uploaded as {repo_id} ({_words(problem)}). Log in with `hf auth login`, or give a "
            "token that may write there."
        ) from problem


def _words(problem: BaseException) -> str:
    return (str(problem) or type(problem).__name__).splitlines()[0].rstrip(".")
