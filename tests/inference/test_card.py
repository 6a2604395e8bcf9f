"""The card says what the run says, and the hub can read it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from unified_vae import VAE
from unified_vae.core.errors import ConfigError
from unified_vae.inference.hub import card
from unified_vae.models.density import NormalDensity


def test_the_hub_reads_the_first_lines_and_people_the_rest(vae: VAE, tmp_path: Path) -> None:
    vae.save_pretrained(tmp_path)
    result = ModelCard.load(tmp_path / "README.md")
    assert (result.data.license, result.data.library_name) == ("unknown", "unified-vae")
    assert {"vae", "unified-vae"} <= set(result.data.tags or [])
    rows = dict(
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in result.text.splitlines()
        if line.startswith("| ") and line.count("|") == 3
    )
    assert rows["PSNR of reconstructions"] == "21.50 dB" and rows["KL of an image"] == "1,040.2 nats"
    assert rows["active units"] == "5" and rows["data"] == "100 images from a/b.zip"
    assert rows["mode"] == "`quick_test`" and rows["loss"] == "mse 1, beta 2" and rows["steps"] == "1,234"
    assert Image.open(tmp_path / "samples.png").size == (70, 70)  # four by four of 16 pixels
    assert "(samples.png)" in result.text


def test_where_samples_come_from_is_said_once(vae: VAE) -> None:
    said = '`density="normal"` draws from N(0, I)'
    assert (said in card(vae.model, {})) == (vae.model.density.kind != "normal")
    plain = copy.deepcopy(vae.model)
    plain.use_density(NormalDensity(vae.latents))
    assert "`sample` draws latents from N(0, I)." in card(plain, {}) and said not in card(plain, {})


def test_a_figure_is_never_minus_nothing(vae: VAE) -> None:
    run = {"validation": {"psnr.above_pca": -1e-9}, "data": "faces (--data takes your own)"}
    text = card(vae.model, {"run": run})
    assert "| +0.00 dB |" in text and "| data | faces |" in text


def test_bits_are_shown_where_they_are_of_a_likelihood(vae: VAE) -> None:
    run = {"validation": {"psnr": 20.0, "bits_per_dim": 3.25}}
    losses: list[dict[str, object]] = [{"mse": {"weight": 1.0}}, {"mse": {"weight": 1.0}, "l1": {"weight": 0.5}}]
    shown = ["bits a dimension" in card(vae.model, {"run": run, "loss": loss}) for loss in losses]
    assert shown == [True, False], "a run of before has the number for a mix too"


def test_the_code_in_the_card_runs(vae: VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vae.save_pretrained(tmp_path)
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec((tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    assert tuple(names["samples"].shape) == (8, 3, 16, 16)  # type: ignore[attr-defined]


def test_a_license_is_kept_with_the_model(vae: VAE, run: Path, tmp_path: Path) -> None:
    one = VAE.from_pretrained(run, device="cpu")
    one.save_pretrained(tmp_path / "a", license="cc-by-4.0")
    VAE.from_pretrained(tmp_path / "a", device="cpu").save_pretrained(tmp_path / "b")
    for folder in ("a", "b"):
        assert ModelCard.load(tmp_path / folder / "README.md").data.license == "cc-by-4.0"
        assert json.loads((tmp_path / folder / "config.json").read_text())["run"]["license"] == "cc-by-4.0"
    with pytest.raises(ConfigError, match="no identifier"):
        one.save_pretrained(tmp_path / "c", license="all mine\nlicense: mit")
    assert not (tmp_path / "c").exists()


def test_a_model_that_knows_nothing_of_its_run_has_a_card(gray: VAE, tmp_path: Path) -> None:
    gray.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "gray images of 16 x 16 pixels with 6 latents" in text and "## Figures" not in text
