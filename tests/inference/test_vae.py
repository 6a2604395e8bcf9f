"""The Python API: the network's own numbers to the bit, whatever form the images come in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.small_models import LATENTS, SIZE, posteriors
from unified_vae import VAE
from unified_vae.core.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem, UserError
from unified_vae.data.decode import PixelFormat, decode
from unified_vae.models.pretrained import load_pretrained


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_every_result_is_the_network_s_own_to_the_bit(run: Path, vae: VAE) -> None:
    network = load_pretrained(run / "model")
    images = torch.rand(5, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network.encode(images)
        pictures = network.decode(expected.mean).clamp(0, 1)
        samples = network.sample(5, torch.Generator().manual_seed(9), "fitted", 0.7).clamp(0, 1)
    result = vae.encode(images)
    assert torch.equal(result.mean, expected.mean) and torch.equal(result.logvar, expected.logvar)
    assert torch.equal(vae.decode(result.mean), pictures) and torch.equal(vae.decode(result), pictures)
    assert torch.equal(vae.decode(result.mean.numpy()), pictures)
    assert torch.equal(vae.reconstruct(images), pictures)
    assert torch.equal(vae.sample(5, "fitted", 0.7, torch.Generator().manual_seed(9)), samples)
    assert torch.equal(vae.sample(5, temperature=0.7, generator=9), samples)
    assert not torch.equal(vae.sample(5, "normal", 0.7, 9), samples)


def test_a_fresh_process_with_the_package_alone_gives_the_same(run: Path, vae: VAE, tmp_path: Path) -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, unified_vae; assert 'torch' not in sys.modules\n"
        "import torch; from unified_vae import VAE\n"
        f"vae = VAE.from_pretrained({str(run / 'model')!r}, device='cpu')\n"
        f"torch.save(vae.reconstruct(torch.load({str(tmp_path / 'images.pt')!r})), {str(tmp_path / 'out.pt')!r})\n"
        "assert not {'typer', 'rich', 'matplotlib', 'torchvision', 'torchmetrics'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "out.pt"), vae.reconstruct(images))


def test_files_are_sized_as_for_training(vae: VAE, tmp_path: Path) -> None:
    picture = Image.fromarray(pixels(30, 44, 4), "RGBA")
    exif = picture.getexif()
    exif[0x0112] = 6  # a turned camera
    picture.save(tmp_path / "a.png", exif=exif)
    form = PixelFormat(SIZE, 3, (0, 0, 0))
    expected = torch.from_numpy(decode((tmp_path / "a.png").read_bytes(), form).pixels.copy()).permute(2, 0, 1)[None]
    images = expected.float() / 255
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), [tmp_path / "a.png"], Image.open(tmp_path / "a.png")):
        assert torch.equal(vae.encode(given).mean, vae.encode(images).mean)


def test_forms_of_the_same_pixels_are_the_same_images(vae: VAE) -> None:
    array = pixels(3, SIZE, SIZE, 3)
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    expected = vae.encode(tensor.float() / 255).mean
    one_by_one = [Image.fromarray(array[0]), array[1], tensor[2].float() / 255]
    for given in (array, tensor, one_by_one, list(array), tuple(tensor), (array / np.float32(255))):
        assert torch.equal(vae.encode(given).mean, expected)


def test_other_sizes_and_colours_are_converted(vae: VAE, gray: VAE) -> None:
    square = pixels(SIZE, SIZE)
    colour = np.repeat(square[..., None], 3, axis=2)
    assert torch.equal(vae.encode(square).mean, vae.encode(colour).mean)
    assert torch.equal(gray.encode(colour).mean, gray.encode(square).mean)
    assert torch.allclose(gray.encode(colour / 255.0).mean, gray.encode(square / 255.0).mean, atol=1e-5)
    wide = pixels(20, 40, 3)
    for given in (wide, torch.from_numpy(wide).permute(2, 0, 1), wide / 255.0):
        assert torch.equal(vae.encode(given).mean, vae.encode(Image.fromarray(wide)).mean)


def test_a_folder_is_its_pictures_in_the_order_of_their_names(vae: VAE, tmp_path: Path) -> None:
    for number, name in enumerate(("b/2.png", "a.png", "c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels(4, SIZE, SIZE, 3)[number]).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    named = [tmp_path / name for name in ("a.png", "b/2.png", "c.png")]
    assert torch.equal(vae.encode(tmp_path).mean, vae.encode(named).mean)


def test_batches_hold_at_most_what_is_asked_for(vae: VAE) -> None:
    images = torch.rand(7, 3, SIZE, SIZE)
    seen = []
    handle = vae.model.encoder.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    result = vae.encode(images, batch_size=3).mean
    handle.remove()
    assert seen == [3, 3, 1]
    assert torch.allclose(result, vae.encode(images).mean, atol=1e-5)
    assert torch.allclose(vae.sample(7, generator=1, batch_size=2), vae.sample(7, generator=1), atol=1e-5)


def test_a_walk_begins_and_ends_at_its_ends(vae: VAE) -> None:
    a, b = torch.rand(2, 3, SIZE, SIZE)
    ends = vae.reconstruct([a, b], batch_size=1)
    latents = vae.encode([a, b], batch_size=1).mean
    for spherical in (False, True):
        result = vae.interpolate(a, b, 5, spherical, batch_size=1)
        assert torch.equal(result[[0, -1]], ends)
        assert torch.equal(vae.interpolate(latents[0], latents[1], 5, spherical, batch_size=1), result)


def test_statistics_come_with_the_model(run: Path, vae: VAE) -> None:
    stats = vae.latent_stats
    assert stats is not None and stats.images == 40
    assert torch.allclose(stats.mean, posteriors().mean.mean(0))
    assert torch.allclose(stats.std.square(), posteriors().mean.var(0, unbiased=False) + np.exp(-1.0), atol=1e-5)
    drawn = posteriors().mean.repeat(500, 1) + np.exp(-0.5) * torch.randn(20_000, LATENTS)
    assert abs(float(((drawn - stats.shift) * stats.scale).std()) - 1) < 0.01
    assert torch.allclose(stats.denormalize(stats.normalize(drawn)), drawn, atol=1e-5)


def test_half_precision_gives_float32_that_is_near(run: Path, vae: VAE) -> None:
    half = VAE.from_pretrained(run, device="cpu", dtype="bfloat16")
    images = torch.rand(2, 3, SIZE, SIZE)
    result = half.reconstruct(images)
    assert result.dtype == torch.float32 and not torch.equal(result, vae.reconstruct(images))
    assert torch.allclose(result, vae.reconstruct(images), atol=0.05)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no images"),
        (3, "a int is no image"),
        ("nowhere.png", "nowhere.png is not there"),
        (np.full((8, 8, 3), 99.0), "divide it by 255"),
        (torch.full((3, SIZE, SIZE), torch.nan), "values that are NaN"),
        (torch.zeros(8, 8, 3), "has the shape"),
        (np.zeros((2, 8, 8, 7), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((8, 8, 3), complex), "complex128"),
        (
            [np.zeros((8, 8, 3), np.uint8), torch.zeros(3, 8, 8, dtype=torch.int64)],
            "1 of 2 images cannot be used: image 1: it holds",
        ),
    ],
)
def test_what_is_no_image_is_named(vae: VAE, given: object, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        vae.encode(given)
    assert isinstance(caught.value, ValueError) and "\n" not in str(caught.value)


def test_files_that_are_no_images_are_named(vae: VAE, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for given in (tmp_path / "text.png", tmp_path):
        with pytest.raises(DataError, match=r"text\.png cannot be used: not an image"):
            vae.encode(given)


def test_bad_files_of_a_folder_are_left_out_with_names(vae: VAE, tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (SIZE, SIZE), (60 * number, 9, 9)).save(tmp_path / f"{number}.png")
    good = [tmp_path / f"{number}.png" for number in range(4)]
    (tmp_path / "1b.png").write_text("no image")
    (tmp_path / "3b.png").write_text("no image either")
    with pytest.warns(UserWarning, match=r"2 of 6 images cannot be used: .*1b\.png: not an image.*3b\.png: ") as caught:
        result = vae.encode(tmp_path, batch_size=2)
    assert caught[0].filename == __file__
    assert result.names == tuple(map(str, good))
    assert torch.equal(result.mean, vae.encode(good, batch_size=2).mean)
    with pytest.warns(UserWarning, match="left out"):
        assert torch.equal(vae.reconstruct(tmp_path, batch_size=2), vae.reconstruct(good, batch_size=2))


def test_all_bad_files_of_a_list_are_named_at_once(vae: VAE, tmp_path: Path) -> None:
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "good.png")
    paths = [tmp_path / name for name in ("a.png", "good.png", "b.png")]
    for path in (paths[0], paths[2]):
        path.write_text("no image")
    with pytest.raises(DataError, match=r"2 of 3 images cannot be used: .*a\.png: not.*b\.png: not"):
        vae.encode(paths, batch_size=1)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda vae: vae.decode(torch.zeros(2, LATENTS + 1)), r"shape \[2, 7\] do not fit: this model takes \[n, 6\]"),
        (lambda vae: vae.decode(0.0), r"shape \[\] do not fit"),
        (lambda vae: vae.decode("x"), "a str is no latents"),
        (lambda vae: vae.decode([]), "do not fit"),
        (lambda vae: vae.sample(0), "at least 1"),
        (lambda vae: vae.sample(1.5), "n is 1.5: give a whole number of at least 1"),
        (lambda vae: vae.sample(1, generator="x"), "a seed or a torch.Generator"),
        (lambda vae: vae.sample(1, generator=2**70), "a seed or a torch.Generator"),
        (lambda vae: vae.sample(1, batch_size=0.5), "batch_size is 0.5"),
        (lambda vae: vae.sample(1, "other"), "no density 'other'"),
        (lambda vae: vae.sample(1, temperature=-1), "the temperature is -1"),
        (lambda vae: vae.encode(torch.zeros(1, 3, SIZE, SIZE), batch_size=0), "batch_size is 0"),
        (lambda vae: vae.interpolate(torch.zeros(LATENTS), torch.zeros(LATENTS), 1), "at least 2"),
        (lambda vae: vae.interpolate(torch.zeros(2, LATENTS), torch.zeros(LATENTS)), "may be a gray image"),
        (lambda vae: vae.interpolate(torch.zeros(2, 3, 8, 8), torch.zeros(LATENTS)), "one end has 2"),
        (lambda vae: vae.to("abacus"), "unknown device 'abacus'"),
        (lambda vae: vae.to("cuda:77"), "device cuda:77: torch sees"),
        (lambda vae: VAE.from_pretrained("x", dtype="int8"), "float32, bfloat16 or float16|not there"),
    ],
)
def test_wrong_arguments_are_one_sentence(vae: VAE, call, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises((ConfigError, EnvironmentProblem, CheckpointError), match=said):
        call(vae)


def test_a_saved_model_is_the_same_model(run: Path, vae: VAE, gray: VAE, tmp_path: Path) -> None:
    images = torch.rand(2, 3, SIZE, SIZE)
    for number, one in enumerate((vae, gray)):
        again = VAE.from_pretrained(one.save_pretrained(tmp_path / str(number)), device="cpu")
        assert torch.equal(again.reconstruct(images), one.reconstruct(images))
        assert torch.equal(again.sample(2, generator=0), one.sample(2, generator=0))
        assert again.background == one.background and (again.latent_stats is None) == (one.latent_stats is None)
    for name in ("model.safetensors", "density.safetensors", "latent_stats.safetensors", "config.json"):
        assert (tmp_path / "0" / name).read_bytes() == (run / "model" / name).read_bytes(), name


def test_a_seed_is_any_whole_number(vae: VAE) -> None:
    seeds = (3, np.int64(3), torch.tensor(3))
    first, *others = [vae.sample(np.int64(2), generator=seed) for seed in seeds]
    assert all(torch.equal(first, other) for other in others)


def test_what_is_no_model_is_never_written_over(run: Path, vae: VAE, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"config": {}}')
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "README.md").write_text("mine")
    for name, said in (("run", "folder of a run"), ("other", "config.json"), ("project", "README.md")):
        before = {path: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        with pytest.raises(ConfigError, match=said):
            vae.save_pretrained(tmp_path / name)
        assert {path: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()} == before
    for _ in range(2):  # a model is replaced
        assert vae.save_pretrained(tmp_path / "model")


def test_what_is_no_model_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"pickle")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for path, said in (
        ("model.pt", "pickles"),
        ("new", "no checkpoint yet"),
        ("empty", "no model"),
        ("no/x", "not there"),
    ):
        with pytest.raises(UserError, match=said):
            VAE.from_pretrained(tmp_path / path)
