"""What folders and arrays of people really hold is used as it is meant, or named in a line."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified_vae.config.data import DataConfig
from unified_vae.core.errors import DataError
from unified_vae.data.dataset import DataSets
from unified_vae.data.decode import PixelFormat, decode
from unified_vae.data.prepare import open_data
from unified_vae.data.sources.base import BadImage

SIZE = 8
RNG = np.random.default_rng(0)


def random_image(seed: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, channels), dtype=np.uint8)


def put(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        suffix = Path(name).suffix or ".png"
        buffer = io.BytesIO()
        Image.fromarray(random_image(100 * len(names) + number)).save(buffer, Image.registered_extensions()[suffix])
        (folder / name).write_bytes(buffer.getvalue())


def opened(source: Path, **settings: object) -> DataSets:
    cache = source.with_name(f"{source.name}-cache")
    config = DataConfig(source=str(source), cache_dir=str(cache), max_bad_fraction=1.0, **settings)
    return open_data(config, SIZE, None, lambda *_: None)


def used(data: DataSets) -> set[str]:
    return {*data.train.names, *data.validation.names}


def note(data: DataSets, word: str) -> str:
    return next((line for line in data.notes if word in line), "")


# --- folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "held_out", "other"),
    [
        ("bottle/train/good", "bottle/test/broken", "bottle/ground_truth/broken"),
        ("a/train/good", "a/test/good", "b/masks"),
        ("images/train2017", "images/val2017", "images/extra"),
        ("train2014", "val2014", "annotations"),
        ("data/training", "data/dev", "data/more"),
        ("train", "eval", "more"),
        ("ILSVRC/Data/CLS/train/n1", "ILSVRC/Data/CLS/val/n1", "ILSVRC/Annotations"),
    ],
)
def test_split_folders_of_usual_data_sets(tmp_path: Path, train: str, held_out: str, other: str) -> None:
    names = [f"{folder}/{n}.png" for folder in (train, held_out, other) for n in range(4)]
    put(tmp_path / "set", *names)
    data = opened(tmp_path / "set")
    assert set(data.train.names) == {name for name in names if name.startswith(f"{train}/")}
    assert set(data.validation.names) == {name for name in names if name.startswith(f"{held_out}/")}
    assert "4 images outside" in note(data, "outside")


def test_folders_of_the_system_are_no_data(tmp_path: Path) -> None:
    hidden = ["@eaDir/a.jpg/thumb.jpg", "#recycle/b.png", "$RECYCLE.BIN/c.png", "x/System Volume Information/d.png"]
    put(tmp_path / "nas", "1.png", "2.png", "x/3.png", "@Recycle/e.png", "__MACOSX/f.png", *hidden)
    assert used(opened(tmp_path / "nas")) == {"1.png", "2.png", "x/3.png"}


def test_files_without_a_suffix_are_looked_at(tmp_path: Path) -> None:
    put(tmp_path / "set", "one", "two.png", "three")
    (tmp_path / "set" / "LICENSE").write_text("text")
    data = opened(tmp_path / "set")
    assert used(data) == {"one", "two.png", "three"}
    assert note(data, "not images").startswith("1 files")


def test_movies_and_raw_files_are_passed_over_and_named(tmp_path: Path) -> None:
    put(tmp_path / "set", "1.png", "2.png")
    for name in ("a.mp4", "b.MP4", "c.cr2", "d.svg", "e.txt"):
        (tmp_path / "set" / name).write_bytes(b"x")
    data = opened(tmp_path / "set")
    assert note(data, "passed over: ").endswith("1 .cr2, 2 .mp4, 1 .svg.")
    assert note(data, "not images") and not data.quarantined


def test_heic_is_read_with_its_package(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="uv sync --extra heic")
    for number in range(3):
        image = Image.new("RGB", (64, 64), (200, 30 * number, 9))
        pillow_heif.from_pillow(image).save(tmp_path / f"{number}.heic", quality=100)
    raw = (tmp_path / "1.heic").read_bytes()
    assert np.abs(decode(raw, PixelFormat(SIZE, 3)).pixels.astype(int) - [200, 30, 9]).max() <= 3


@pytest.mark.parametrize("rule", ["pixels", "bytes"])
def test_copies_with_other_metadata_stay_on_one_side(tmp_path: Path, rule: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(40):
        image = Image.fromarray(random_image(number))
        image.save(folder / f"{number}.png")
        image.save(folder / f"{number}.bmp")
    data = opened(folder, split_by=rule)
    sides = [{Path(name).stem for name in split.names} for split in (data.train, data.validation)]
    assert len(data.train) + len(data.validation) == 80
    assert bool(sides[0] & sides[1]) == (rule == "bytes")
    same = {entry.pixels for entry in data.inventory.entries}
    assert len(same) == 40


# --- pixels ----------------------------------------------------------------------------------------------


def tiff(planes: list[bytes], bits: int, planar: int) -> bytes:
    """A little-endian, uncompressed RGB TIFF."""
    tags = {256: SIZE, 257: SIZE, 259: 1, 262: 2, 277: 3, 278: SIZE, 284: planar}
    out, offsets = bytearray(b"II*\0\0\0\0\0"), []
    for plane in planes:
        offsets.append(len(out))
        out += plane

    def array(values: list[int], form: str) -> int:
        position = len(out)
        out.extend(struct.pack(f"<{len(values)}{form}", *values))
        return position

    many = len(planes) > 1
    entries = {tag: (3, 1, value) for tag, value in tags.items()}
    entries[258] = (3, 3, array([bits] * 3, "H"))
    entries[273] = (4, len(planes), array(offsets, "I") if many else offsets[0])
    entries[279] = (4, len(planes), array([len(p) for p in planes], "I") if many else len(planes[0]))
    struct.pack_into("<I", out, 4, len(out))
    out += struct.pack("<H", len(entries))
    for tag, (kind, count, value) in sorted(entries.items()):
        out += struct.pack("<HHII", tag, kind, count, value)
    return bytes(out + b"\0\0\0\0")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", [1, 2])
def test_planes_of_a_tiff_are_right_or_refused(bits: int, planar: int) -> None:
    pixels = random_image(5)
    values = pixels.astype(np.uint16) * 257 if bits == 16 else pixels
    data = values.transpose(2, 0, 1) if planar == 2 else values
    raw = tiff([plane.tobytes() for plane in data] if planar == 2 else [data.tobytes()], bits, planar)
    try:
        np.testing.assert_array_equal(decode(raw, PixelFormat(SIZE, 3)).pixels, pixels)
    except BadImage as bad:
        assert "separate planes" in str(bad) and (bits, planar) == (16, 2)


@pytest.mark.parametrize(("kind", "opaque"), [("BMP", True), ("PNG", False), ("WEBP", False), ("TIFF", False)])
def test_an_alpha_of_zeros(tmp_path: Path, kind: str, opaque: bool) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    pixels = np.dstack([random_image(1), np.zeros((SIZE, SIZE), np.uint8)])
    for number in range(3):
        pixels[0, 0, 0] = number
        options = {"exact": True, "lossless": True} if kind == "WEBP" else {}
        Image.fromarray(pixels).save(folder / f"{number}.{kind.lower()}", kind, **options)
    data = opened(folder)
    if opaque and data.train.images.std() > 0:
        np.testing.assert_array_equal(data.train.images[0][1:], pixels[1:, :, :3])
    else:
        assert (data.train.images == 255).all()
        assert "3 images are fully transparent" in note(data, "transparent")


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
def test_more_pages_are_counted(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "set", "1.png", "2.png")
    frames = [Image.fromarray(random_image(n)) for n in range(5)]
    frames[0].save(tmp_path / "set" / f"many.{kind.lower()}", kind, save_all=True, append_images=frames[1:])
    text = note(opened(tmp_path / "set"), "pages or frames")
    assert text.startswith("1 files hold 4 more") and f"many.{kind.lower()} (5 in all)" in text


@pytest.mark.parametrize(
    ("array", "setting", "words"),
    [
        (RNG.integers(0, 4096, (6, SIZE, SIZE), dtype=np.uint16), [0.0, 4095.0], "data.range=[0,4095]"),
        (RNG.random((6, SIZE, SIZE, 3)) * 0.2, [0.0, 0.2], "of white"),
        (RNG.integers(0, 60, (6, SIZE, SIZE), dtype=np.int32), [0.0, 60.0], "of white"),
    ],
)
def test_a_small_part_of_the_range_is_named(tmp_path: Path, array: np.ndarray, setting: list, words: str) -> None:
    np.save(tmp_path / "a.npy", array)
    assert words in note(opened(tmp_path / "a.npy"), "of white")
    stated = opened(tmp_path / "a.npy", range=setting)
    assert not note(stated, "of white")
    assert int(stated.train.images.max()) > 200


def test_a_range_is_stated_or_the_values_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.random((6, SIZE, SIZE, 3)) * 2 - 1)
    with pytest.raises(DataError, match=r"not in 0\.\.1; if that is their range, set data\.range=\[-0\.99"):
        opened(tmp_path / "a.npy")
    assert abs(float(opened(tmp_path / "a.npy", range=[-1.0, 1.0]).train.images.mean()) - 127.5) < 10


def test_rounding_outside_of_the_range_is_clipped(tmp_path: Path) -> None:
    array = RNG.random((6, SIZE, SIZE, 3)).astype(np.float32)
    array[:, 0, 0] = np.float32(1.0000001), -1e-7, 1.0004
    np.save(tmp_path / "a.npy", array)
    assert opened(tmp_path / "a.npy").train.images.max() == 255


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((6, SIZE, SIZE, 4), "read as transparency"),
        ((6, 4, SIZE, SIZE), "read as transparency"),
        ((3, SIZE, SIZE), "3 gray images"),
        ((SIZE, SIZE, 3), f"{SIZE} gray images"),
        ((6, 3, SIZE, 3), "[n, height, width, channels]"),
    ],
)
def test_shapes_are_not_guessed_silently(tmp_path: Path, shape: tuple[int, ...], words: str) -> None:
    np.save(tmp_path / "a.npy", RNG.integers(0, 256, shape, dtype=np.uint8))
    assert any(words in line for line in opened(tmp_path / "a.npy").notes)
