"""Arrays that are no images, carry code, or do not fit: refused with a sentence, and bad rows are named."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from tests.helpers.images import opened
from unified_vae.core.errors import DataError
from unified_vae.data.dataset import DataSets


def total(data: DataSets) -> int:
    return len(data.train) + len(data.validation)


class _Harmful:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "form", ["npy", "npz", "npz labels", "pickle named npy", "pickle named npz", "pickle named zip"]
)
def test_no_array_runs_code(form: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    harmful = np.array([_Harmful(marker)] * 12, dtype=object)
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / f"images.{form.split()[-1] if 'labels' not in form else 'npz'}"
    match form:
        case "npy":
            np.save(path, harmful, allow_pickle=True)
        case "npz":
            np.savez(path, images=harmful)
        case "npz labels":
            np.savez(path, images=images, labels=harmful)
        case _:
            path.write_bytes(pickle.dumps(_Harmful(marker)))
    with pytest.raises(DataError, match=r"cannot be read|not an archive"):
        opened(path, tmp_path / "cache")
    assert not marker.exists()
    pickle.loads(pickle.dumps(_Harmful(marker)))
    assert marker.exists()  # it was live


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 3, 4, 5, 3), np.uint8), "has shape"),
        (np.zeros((12, 8, 8, 7), np.uint8), "has shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no usable image"),
        (np.zeros((12, 0, 8, 3), np.uint8), "unusable"),
        (np.array(5, np.uint8), "has shape"),
        (np.zeros(12, dtype=[("a", "u1")]), "images must be integers or floats"),
        (np.zeros((12, 8, 8), np.complex64), "images must be integers or floats"),
        (np.where(np.arange(12)[:, None, None, None] < 6, np.inf, IMAGES / 255), "unusable"),
    ],
    ids=["five axes", "seven channels", "no images", "no rows", "a number", "records", "complex", "infinite"],
)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_arrays_that_are_no_images_are_refused(array: np.ndarray, words: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"images.{form}"
    np.save(path, array) if form == "npy" else np.savez_compressed(path, images=array)
    with pytest.raises(DataError, match=words):
        opened(path, tmp_path / "cache")


def test_bad_rows_are_named_and_the_rest_used(tmp_path: Path) -> None:
    array = np.repeat(IMAGES / 255.0, 2, axis=0).astype(np.float32)
    array[3, 0, 0, 0], array[7] = np.nan, 2.0
    np.save(tmp_path / "images.npy", array)
    data = opened(tmp_path / "images.npy", tmp_path / "cache")
    assert {bad.name for bad in data.quarantined} == {"row 3", "row 7"}
    assert total(data) == 22


def test_the_order_of_bytes_and_a_wrong_ending_change_nothing(tmp_path: Path) -> None:
    """Large numbers first, a file named .npy that is an .npz, and the reverse."""
    gray = IMAGES[..., 0].astype(np.uint16) * 257
    gray[0] = 100  # as eight bits this would be another picture
    np.save(tmp_path / "native.npy", gray)
    np.save(tmp_path / "swapped.npy", gray.astype(">u2"))
    np.savez(tmp_path / "named.npz", images=gray)
    (tmp_path / "named.npz").rename(tmp_path / "named.npy")
    (tmp_path / "other.npz").write_bytes((tmp_path / "native.npy").read_bytes())
    result = [
        opened(tmp_path / name, tmp_path / "cache") for name in ("native.npy", "swapped.npy", "named.npy", "other.npz")
    ]
    assert len({data.fingerprint for data in result}) == 1
    assert all(total(data) == 12 and data.train.images.dtype == np.uint8 for data in result)


def test_an_npz_that_does_not_fit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "images.npz", images=np.zeros_like(IMAGES))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=IMAGES.nbytes // 2))
    monkeypatch.setattr(np, "load", None)  # calling it would now raise
    with pytest.raises(DataError, match=r"does not fit into memory; save it as \.npy"):
        opened(tmp_path / "images.npz", tmp_path / "cache")
