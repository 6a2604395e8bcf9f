"""Every kind of file ends with the right pixels or with a reason; nothing is squashed, clipped or guessed."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import tests.helpers.image_zoo as zoo
from unified_vae.config.data import DataConfig
from unified_vae.data.decode import PixelFormat, decode, parse_color, quiet_pillow, read_header
from unified_vae.data.prepare import open_data
from unified_vae.data.sources.base import BadImage

FORM = PixelFormat(zoo.SIZE, 3, zoo.BACKGROUND)


GOOD, BAD = zoo.good_files(), zoo.bad_files()


@pytest.mark.parametrize("name", GOOD)
def test_pixels_are_exact(name: str) -> None:
    good = GOOD[name]
    with quiet_pillow():
        np.testing.assert_array_equal(decode(good.data, FORM).pixels, good.pixels)


@pytest.mark.parametrize("name", [name for name in BAD if not name.endswith((".svg", ".heic"))])
def test_bad_files_give_a_reason(name: str) -> None:
    data, word = BAD[name]
    with quiet_pillow(), pytest.raises(BadImage, match=word):
        decode(data, FORM)


@pytest.mark.parametrize("problem", [struct.error("short"), SyntaxError("not a TIFF file"), KeyError(274)])
def test_unreadable_exif_counts_as_upright(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    good = GOOD["orientation_1.jpg"]
    monkeypatch.setattr(Image.Image, "getexif", Mock(side_effect=problem))
    with quiet_pillow():
        np.testing.assert_array_equal(decode(good.data, FORM).pixels, good.pixels)


def test_too_little_memory_for_the_exif_is_no_upright_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "getexif", Mock(side_effect=MemoryError))
    with quiet_pillow(), pytest.raises(BadImage, match="not enough memory"):
        decode(GOOD["orientation_6.jpg"].data, FORM)


def test_every_file_in_a_folder_of_them_is_used_or_listed(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    folder.mkdir()
    reasons = {}
    for name, good in GOOD.items():
        (folder / name).write_bytes(good.data)
    for name, (data, reasons[name]) in BAD.items():
        (folder / name).write_bytes(data)
    for name, (make, reasons[name]) in zoo.odd_entries().items():
        make(folder / name)
    config = DataConfig(
        source=str(folder), background="#ff0080", max_bad_fraction=1.0, cache_dir=str(tmp_path / "cache")
    )
    data = open_data(config, zoo.SIZE, None, lambda *_: None)
    used = {}
    for split in (data.train, data.validation):
        used |= dict(zip(split.names, split.images, strict=True))
    listed = {bad.name: bad.reason for bad in data.quarantined}
    assert used.keys() == GOOD.keys()
    for name, good in GOOD.items():
        np.testing.assert_array_equal(used[name], good.pixels, err_msg=name)
    assert listed.keys() == reasons.keys()
    for name, word in reasons.items():
        assert word in listed[name], f"{name}: {listed[name]}"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_listed(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(zoo.encoded(Image.fromarray(zoo.pattern(number)), "PNG"))
    (tmp_path / "0.png").chmod(0)
    config = DataConfig(source=str(tmp_path), max_bad_fraction=1.0, cache_dir=str(tmp_path / ".cache"))
    data = open_data(config, 8, None, lambda *_: None)
    assert [bad.name for bad in data.quarantined] == ["0.png"]


@pytest.mark.parametrize("name", ["bomb_header.png", "bomb_real.png"])
def test_bombs_are_refused_from_the_header(name: str) -> None:
    data, _ = BAD[name]
    tracemalloc.start()
    try:
        with quiet_pillow(), pytest.raises(BadImage, match="megapixels"):
            read_header(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_mutated_files_never_escape_as_other_errors() -> None:
    """A prefix, a flip or a splice of a good file gives pixels or BadImage, nothing else."""
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        original = zoo.encoded(Image.fromarray(zoo.RGB), kind)
        for _ in range(60):
            data = bytearray(original)
            for place in random.integers(0, len(data), 3):
                data[place] = int(random.integers(256))
            if random.random() < 0.3:
                del data[int(random.integers(len(data))) :]
            try:
                with quiet_pillow():
                    assert decode(bytes(data), FORM).pixels.shape == (zoo.SIZE, zoo.SIZE, 3)
            except BadImage as bad:
                assert str(bad)


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (33, 17), (16, 16), (5, 9)])
def test_cover_and_crop_is_lanczos_over_the_center_square(width: int, height: int) -> None:
    """Against a direct evaluation of the windowed sinc in float64."""
    # Away from black and white: Pillow clips between its two passes, the reference only after both.
    pixels = np.random.default_rng(width).integers(80, 176, (height, width), dtype=np.uint8)
    side, size = min(width, height), 8
    rows = _lanczos_matrix(height, (height - side) / 2, side, size)
    columns = _lanczos_matrix(width, (width - side) / 2, side, size)
    expected = (rows @ pixels @ columns.T).clip(0, 255)
    actual = decode(zoo.encoded(Image.fromarray(pixels), "PNG"), PixelFormat(size, 1)).pixels[..., 0]
    assert np.abs(actual - expected).max() <= 1.5


def _lanczos_matrix(length: int, start: float, extent: float, size: int) -> np.ndarray:
    scale = max(extent / size, 1.0)
    centers = start + (np.arange(size) + 0.5) * extent / size
    distance = (np.arange(length)[None] + 0.5 - centers[:, None]) / scale
    weights = np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)
    return weights / weights.sum(1, keepdims=True)


def test_a_circle_stays_a_circle() -> None:
    """Squashing would turn the disc in the middle of a wide picture into an ellipse."""
    y, x = np.mgrid[:64, :192]
    disc = ((x - 95.5) ** 2 + (y - 31.5) ** 2 < 24**2).astype(np.uint8) * 255
    seen = decode(zoo.encoded(Image.fromarray(disc), "PNG"), PixelFormat(32, 1)).pixels[..., 0] > 127
    assert seen.any(0).sum() == seen.any(1).sum() == 24


def test_one_channel_is_itu_r_601() -> None:
    data = zoo.encoded(Image.fromarray(zoo.RGB), "PNG")
    gray = decode(data, PixelFormat(zoo.SIZE, 1)).pixels
    luma = zoo.RGB @ np.array([0.299, 0.587, 0.114])
    assert gray.shape == (zoo.SIZE, zoo.SIZE, 1)
    assert np.abs(gray[..., 0] - luma).max() <= 1.0


def test_transparent_gray_shows_the_luma_of_the_background() -> None:
    data = zoo.encoded(Image.new("LA", (4, 4), (10, 0)), "PNG")
    assert set(decode(data, PixelFormat(4, 1, (255, 0, 0))).pixels.ravel()) == {76}


def test_headers_tell_gray_from_color() -> None:
    assert read_header(zoo.encoded(Image.fromarray(zoo.GRAY), "PNG")).gray
    assert read_header(zoo.encoded(Image.new("LA", (3, 5)), "PNG")).gray
    assert not read_header(zoo.encoded(Image.fromarray(zoo.RGB), "PNG")).gray
    header = read_header(zoo.encoded(Image.new("RGB", (3, 5)), "PNG"))
    assert (header.width, header.height) == (3, 5)


def test_colors_by_name_and_number() -> None:
    assert [parse_color(text) for text in ("white", "black", "#0a0B0c")] == [(255,) * 3, (0,) * 3, (10, 11, 12)]


def test_large_pictures_below_the_limit_warn_nobody() -> None:
    data = zoo.png_of_zeros(10_000, 10_000, 1) + bytes(30_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_pillow():
            assert read_header(data).width == 10_000
    assert isinstance(Image.open(io.BytesIO(zoo.png_of_zeros(8, 8, 8))), Image.Image)
