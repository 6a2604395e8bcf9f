"""The hub's layout without the hub: its cache, its mixin, and what is said where it cannot be reached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

from tests.inference.small_models import SIZE
from unified_vae import VAE
from unified_vae.core.errors import ConfigError, EnvironmentProblem

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, model: Path) -> None:
    """Lay a folder into a cache as a download would."""
    place = cache / "models--some--faces"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, place / "snapshots" / COMMIT)


def test_what_is_pushed_is_what_is_read_in_a_fresh_process(
    vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, object] = {}

    def create_repo(self: HfApi, repo_id: str, **options: object) -> object:
        seen.update(options)
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **_: object) -> str:
        shutil.copytree(folder_path, tmp_path / repo_id)
        return "address"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert vae.push_to_hub("some/faces", license="mit", private=True) == "address"
    assert seen["private"] is True and "license: mit" in (tmp_path / "some" / "faces" / "README.md").read_text()

    cached(tmp_path / "cache", tmp_path / "some" / "faces")
    images = torch.rand(2, 3, SIZE, SIZE)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import torch; from unified_vae import VAE\n"
        "vae = VAE.from_pretrained('some/faces', device='cpu', cache_dir='cache')\n"
        "torch.save((vae.reconstruct(torch.load('images.pt')), vae.sample(2, generator=0)), 'out.pt')\n"
    )
    (tmp_path / "elsewhere").mkdir()
    for name in ("cache", "images.pt"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path / "elsewhere", env=environment)
    reconstructed, sampled = torch.load(tmp_path / "elsewhere" / "out.pt")
    assert torch.equal(reconstructed, vae.reconstruct(images)) and torch.equal(sampled, vae.sample(2, generator=0))


def test_the_names_of_folders_come_before_those_of_the_hub(
    vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.chdir(tmp_path)
    vae.save_pretrained("runs/faces/model")
    assert VAE.from_pretrained("runs/faces", device="cpu").latents == vae.latents
    with pytest.raises(ConfigError, match=r"not there.*hf:runs/other"):
        VAE.from_pretrained("runs/other")
    with pytest.raises(AssertionError, match="asked"):
        VAE.from_pretrained("hf:runs/faces")


def test_a_hub_out_of_reach_is_one_sentence(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="some/faces cannot be had from the hub"):
        VAE.from_pretrained("some/faces", cache_dir=tmp_path, local_files_only=True)

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "create_repo", unreachable)
    with pytest.raises(EnvironmentProblem, match=r"cannot be uploaded as some/faces \(no route to host\)"):
        vae.push_to_hub("some/faces")


def test_without_the_package_the_error_names_the_extra(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "from unified_vae import VAE\n"
        "try: VAE.from_pretrained('some/faces')\n"
        "except ValueError as problem: print(problem)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "uv sync --extra hub" in done.stdout and done.stdout.count("\n") == 1
