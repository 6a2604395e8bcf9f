"""`sample`, `reconstruct` and `interpolate`: what they write is what the model makes, and wrong words are one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.runs import request, train, write_images
from unified_vae import VAE
from unified_vae.cli.app import main
from unified_vae.cli.commands import generate
from unified_vae.inference.generate import noise_seed

CAPTION = 18


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, one without a model, and pictures."""
    path = tmp_path_factory.mktemp("verbs")
    source = write_images(path / "images.npy")
    train(
        request(
            path / "run", source, {"training": {"epochs": 1, "samples": {"count": 4}}, "model": {"pca_init": False}}
        ),
        [],
    )
    (path / "young" / "checkpoints").mkdir(parents=True)
    for number, name in enumerate(("a.png", "a.jpg", "sub/a.png")):
        (path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.load(source)[number]).resize((40, 30)).save(path / "photos" / name)
    (path / "text.png").write_text("no image")
    (path / "model.pt").write_bytes(b"pickle")
    return path


@pytest.fixture
def said(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(home)

    def call(*words: str) -> tuple[int, str, str]:
        code = main("unified-vae", list(words))
        return (code, *capsys.readouterr())

    return call


def as_tensor(*paths: Path) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])


def eight_bit(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().to(torch.uint8)


def test_samples_are_those_of_the_api(home: Path, said) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = said("sample", "run", "--count", "3", "--seed", "5", "--temperature", "0.8", "--folder", "out")
    assert code == 0 and "files: 3 in out" in out and not (home / "samples.png").exists()
    vae = VAE.from_pretrained(home / "run", device="cpu")
    expected = vae.sample(3, temperature=0.8, generator=noise_seed(5))
    assert torch.equal(as_tensor(*sorted((home / "out").iterdir())), eight_bit(expected))


def test_a_sheet_is_the_default_and_the_same_each_time(home: Path, said) -> None:  # type: ignore[no-untyped-def]
    assert said("sample", "run/model", "--count", "4")[0] == 0
    first = (home / "samples.png").read_bytes()
    assert said("sample", "run", "--count", "4", "--sheet", "new/again.png")[0] == 0
    assert (home / "new" / "again.png").read_bytes() == first
    assert said("sample", "run", "--count", "4", "--seed", "1", "--sheet", "new/again.png")[0] == 0
    assert (home / "new" / "again.png").read_bytes() != first


def test_checkpoints_are_read_and_say_that_they_have_no_density(home: Path, said) -> None:  # type: ignore[no-untyped-def]
    step = next((home / "run" / "checkpoints").iterdir())
    for words in ((step.as_posix(),), ("run", "--checkpoint", "last")):
        code, out, _ = said("sample", *words, "--count", "2", "--folder", "ck")
        assert code == 0 and "samples are from N(0, I)" in out
    vae = VAE.from_pretrained(home / "run", device="cpu")
    expected = vae.sample(2, "normal", generator=noise_seed(0))
    assert torch.equal(as_tensor(*sorted((home / "ck").iterdir())), eight_bit(expected))


def test_reconstructions_stand_beside_their_originals(home: Path, said) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = said("reconstruct", "run", "photos", "--sheet", "s.png", "--folder", "rec")
    assert code == 0 and "3 images reconstructed" in out
    names = ["a-reconstruction.png", "a-reconstruction-2.png", "a-reconstruction-3.png"]
    assert sorted(path.name for path in (home / "rec").iterdir()) == sorted(names)
    vae = VAE.from_pretrained(home / "run", device="cpu")
    expected = eight_bit(vae.reconstruct(home / "photos"))
    assert torch.equal(as_tensor(*(home / "rec" / name for name in names)), expected)
    sheet = as_tensor(home / "s.png")[0, :, CAPTION + 2 :, 2:]
    assert torch.equal(sheet[:, 0:64:4, 66:130:4], expected[0])  # enlarged four times, right of the first original


def test_a_bad_file_is_left_out_and_named_at_the_end(home: Path, said) -> None:  # type: ignore[no-untyped-def]
    words = ("reconstruct", "run", "photos", "text.png", "photos/a.jpg", "--sheet", "bad.png", "--folder", "rest")
    code, out, error = said(*words)
    assert code == 2 and "4 images reconstructed" in out and "left out: text.png: not an image" in out
    assert (
        error == "error: 1 of 5 images cannot be used: text.png: not an image that can be read; the others are done\n"
    )
    names = ["", "-2", "-3", "-4"]
    assert sorted(path.name for path in (home / "rest").iterdir()) == sorted(f"a-reconstruction{n}.png" for n in names)
    vae = VAE.from_pretrained(home / "run", device="cpu")
    last = eight_bit(vae.reconstruct(home / "photos" / "a.jpg"))
    assert torch.equal(as_tensor(home / "rest" / "a-reconstruction-4.png"), last)
    (home / "text 2.png").write_text("no image either")
    code, out, error = said("reconstruct", "run", "text.png", "text 2.png", "--folder", "none")
    assert code == 2 and "error: 2 of 2 images cannot be used: text.png: " in error
    assert not (home / "none").exists()


def test_a_walk_goes_between_images_and_seeds(home: Path, said) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = said("interpolate", "run", "photos/a.png", "7", "--frames", "5", "--folder", "walk", "--spherical")
    assert code == 0 and "from a.png to seed 7, at a steady angle" in out
    vae = VAE.from_pretrained(home / "run", device="cpu")
    last = vae.sample_latents(1, generator=noise_seed(7))
    expected = vae.interpolate(home / "photos" / "a.png", last, 5, spherical=True)
    assert torch.equal(as_tensor(*sorted((home / "walk").iterdir())), eight_bit(expected))


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_movie_goes_there_and_back(home: Path, said, suffix: str) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = said("interpolate", "run", "1", "2", "--frames", "4", "--movie", f"w{suffix}")
    assert code == 0 and f"movie: w{suffix}" in out
    movie = Image.open(home / f"w{suffix}")
    assert (movie.n_frames, movie.size) == (6, (256, 256))


def test_a_caption_loses_its_last_parts_on_a_narrow_sheet() -> None:
    from unified_vae.inference.image_grids import fit_caption

    assert fit_caption("from here, to there, slowly", 1000) == "from here, to there, slowly"
    assert fit_caption("from here, to there, slowly", 120) == "from here, to there"
    assert fit_caption("from here, to there, slowly", 1) == "from here"


def test_a_long_sheet_shows_the_first_and_says_so(home: Path, said, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from unified_vae.inference import image_grids

    monkeypatch.setattr(image_grids, "MAX_IMAGES", 4)
    code, out, _ = said("sample", "run", "--count", "9", "--sheet", "nine.png")
    assert code == 0 and "the sheet shows the first 4 of 9" in out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ("sample nowhere", 2, "nowhere is not there"),
        ("sample model.pt", 3, "pickles"),
        ("sample model.pt --checkpoint best", 3, "pickles"),
        ("sample photos", 2, "photos is no run and no model"),
        ("sample young", 3, "young has no checkpoint yet"),
        ("sample run --checkpoint 77", 2, "has best, last and the steps"),
        ("sample run --sheet a.jpg", 2, "ends in .png"),
        ("sample run --sheet photos.png/", 2, "is a folder"),
        ("sample run --folder text.png", 2, "is a file"),
        ("sample run --count 0", 2, "--count"),
        ("sample run --temperature nan", 2, "--temperature"),
        ("sample run --density odd", 2, "--density"),
        ("sample run --device abacus", 2, "unknown device 'abacus'"),
        ("reconstruct run", 2, "Missing argument"),
        ("reconstruct run text.png", 2, "text.png cannot be used: not an image"),
        ("reconstruct run none.png", 2, "none.png is not there"),
        ("reconstruct run young", 2, "young has no images"),
        ("reconstruct run photos/a.png --sheet photos/a.png", 2, "would be overwritten"),
        ("interpolate run 1 none.png", 2, "neither an image file nor a seed"),
        ("interpolate run 1 photos", 2, "photos is a folder"),
        ("interpolate run 1 2 --frames 1", 2, "--frames"),
        ("interpolate run 1 2 --movie w.mp4", 2, ".gif or .webp"),
    ],
)
def test_wrong_words_are_one_line(home: Path, said, words: str, code: int, sentence: str) -> None:  # type: ignore[no-untyped-def]
    (home / "photos.png").mkdir(exist_ok=True)
    result, _, error = said(*words.split())
    assert result == code and sentence in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_parsing_imports_no_torch() -> None:
    names = generate.sample.__globals__
    assert not {"torch", "VAE", "np"} & set(names)
