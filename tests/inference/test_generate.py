"""What `sample` says of where its latents come from; files that a verb reads are never written over."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.inference.small_models import LATENTS, write_model
from unified_vae import VAE
from unified_vae.analysis.edit import edit
from unified_vae.core.errors import ConfigError
from unified_vae.core.events import Observer
from unified_vae.inference.generate import interpolate, reconstruct, sample
from unified_vae.models.density import FLOW_REPLACED, NormalDensity
from unified_vae.models.pretrained import save_density

FIT = {"log_likelihood": {"normal": -1.0, "gaussian": -2.0, "mixture": -3.0}, "asked": {"fit": "auto"}, "note": ""}

REFIT = "uv run train_unified.py --config RUN/config.json --run-dir RUN --set density.fit=auto"


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (None, "no latent density was fitted to these weights: samples are from N(0, I)"),
        ({}, "no latent density was fitted to these weights: samples are from N(0, I)"),
        (FIT, "samples are from N(0, I), the likeliest of the 3 densities fitted to these weights"),
        (
            {"log_likelihood": {}, "asked": {"fit": "normal"}},
            "samples are from N(0, I), as density.fit=normal asked for",
        ),
        ({"asked": {"fit": "auto"}, "note": "5 images are too few"}, "5 images are too few"),
        ({**FIT, "kind": "flow"}, f"{FLOW_REPLACED}. This fits a new density: {REFIT}"),
    ],
)
def test_why_samples_are_from_the_prior(
    about: dict[str, object] | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model")
    if about is not None:
        save_density(folder, NormalDensity(LATENTS), about)
    notices: list[str] = []
    listening = Observer()
    monkeypatch.setattr(listening, "notice", notices.append)
    for density in ("fitted", "normal"):
        sample(str(folder), 1, density, 1.0, 0, sheet=tmp_path / "a.png", folder=None, device="cpu", observer=listening)  # type: ignore[arg-type]
    assert notices == [words]


def test_the_class_warns_of_a_flow(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    save_density(folder, NormalDensity(LATENTS), {"kind": "flow"})
    vae = VAE.from_pretrained(folder, device="cpu")
    with pytest.warns(UserWarning, match="is a flow, which is no longer supported"):
        vae.sample(1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images under the names that interpolations give theirs, and one that may be a movie."""
    (tmp_path / "cats").mkdir()
    for name in ("000001.png", "000002.png", "a.gif", "cats/b.png", "c-reconstruction.png", "c.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "labels.png").write_bytes(b"a table of a strange name")
    return tmp_path


def test_files_that_are_read_are_not_written_over(photos: Path) -> None:
    """Refused before a model is looked for."""
    first, movie = photos / "000001.png", photos / "a.gif"
    for a, b, sheet, folder, to in [
        (first, "7", None, photos, None),
        ("7", photos / "000002.png", None, photos, None),
        (first, "7", photos / "cats" / ".." / "000001.png", None, None),
        ("7", movie, photos / "s.png", None, movie),
    ]:
        with pytest.raises(ConfigError, match="would be overwritten"):
            interpolate(
                "nowhere", str(a), str(b), 4, False, sheet=sheet, folder=folder, movie=to, observer=Observer()
            )  # fmt: skip
    for sheet, folder in [(first, None), (None, photos)]:
        with pytest.raises(ConfigError, match="would be overwritten"):
            reconstruct("nowhere", [photos], sheet=sheet, folder=folder, observer=Observer())
    inside, elsewhere = photos / "cats" / "b.png", Path("nowhere/e.png")
    for images, labels, options in [
        ([first], "builtin", {"sheet": first}),
        ([photos], "builtin", {"sheet": inside}),
        ([], str(photos), {"sheet": inside}),
        ([], "t.csv", {"data": str(photos), "sheet": inside}),
        ([], str(photos / "labels.png"), {"sheet": photos / "labels.png"}),
        ([], "d.json", {"sheet": elsewhere, "directions": Path("d.safetensors")}),
    ]:
        with pytest.raises(ConfigError, match="would be overwritten"):
            edit(Path("nowhere"), images, labels, attribute="light", observer=Observer(), **options)  # type: ignore[arg-type]
