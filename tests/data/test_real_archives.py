"""The real archives: every image is used, at its place, in the right form."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.helpers.images import opened

pytestmark = pytest.mark.data

MOST = 2000
EXPECTED = {  # training and validation images (of at most MOST), channels, class folders
    "faces128": (1800, 200, 3, 0),
    "photos256": (450, 50, 3, 10),
    "cifar10": (MOST, MOST // 10, 3, 10),
    "fashion_mnist": (MOST, MOST // 10, 1, 10),
    "mnist": (MOST, MOST // 10, 1, 10),
    "tiles32_rgba": (MOST, MOST // 10, 3, None),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_channels_and_pixels(name: str, real_data: Callable[[str], Path], tmp_path: Path) -> None:
    path = real_data(name)
    train, validation, channels, classes = EXPECTED[name]
    data = opened(path, tmp_path, 32, max_images=MOST)
    assert (len(data.train), len(data.validation), data.channels) == (train, validation, channels)
    assert not data.quarantined
    if classes is not None:
        assert len(data.train.label_names.get("class", [])) == classes
    with zipfile.ZipFile(path) as archive:
        for index in range(0, validation, max(1, validation // 25)):
            content = archive.read(data.validation.names[index])
            np.testing.assert_array_equal(data.validation.images[index], _reference(content, channels))


def _reference(content: bytes, channels: int) -> np.ndarray:
    """Pillow's own conversions, one after the other."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture)
    fitted = ImageOps.fit(flat.convert("L" if channels == 1 else "RGB"), (32, 32), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(32, 32, channels)
