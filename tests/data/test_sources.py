"""Folders, archives and arrays in every layout give the same images, splits and classes."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.archives import tarred, zipped
from tests.helpers.images import names, opened, png, silent, write_files
from unified_vae.core.errors import DataError
from unified_vae.data.sources.find import find_source

SPLIT_TREE = {
    **{f"train/{kind}/{number}.png": png(number) for kind in ("cat", "dog") for number in range(3)},
    **{f"val/{kind}/{number}.png": png(10 + number) for kind in ("cat", "dog") for number in range(2)},
    "README.txt": b"about",
    ".hidden.png": png(90),
    "__MACOSX/train/cat/._0.png": png(91),
    "train/.thumbnails/0.png": png(92),
}


@pytest.fixture(params=["folder", "nested folder", "zip", "stored zip", "tar", "tar.gz"])
def split_source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    match request.param:
        case "folder":
            return write_files(tmp_path / "images", SPLIT_TREE)
        case "nested folder":
            write_files(tmp_path / "images" / "release 1" / "data", SPLIT_TREE)
            return tmp_path / "images"
        case "zip":
            return zipped(tmp_path / "images.zip", SPLIT_TREE)
        case "stored zip":
            return zipped(tmp_path / "images.zip", SPLIT_TREE, zipfile.ZIP_STORED)
        case "tar":
            return tarred(tmp_path / "images.tar", SPLIT_TREE)
        case _:
            return tarred(tmp_path / "images.tar.gz", SPLIT_TREE, "w:gz")


def test_split_and_class_folders_are_respected(split_source: Path, tmp_path: Path) -> None:
    data = opened(split_source, tmp_path / "cache")
    assert (len(data.train), len(data.validation), data.channels) == (6, 4, 3)
    assert data.train.label_names == {"class": ["cat", "dog"]}
    for split in (data.train, data.validation):
        assert split.labels is not None
        for name, label, image in zip(split.names, split.labels["class"], split.images, strict=True):
            assert name.split("/")[-2] == ["cat", "dog"][label]
            original = SPLIT_TREE["/".join(name.split("/")[-3:])]
            np.testing.assert_array_equal(image, _pixels(original))
    assert not data.quarantined
    assert any("1 files that are not images" in note for note in data.notes)


def _pixels(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    ("tops", "train", "validation"),
    [
        (("train", "test"), {"train"}, {"test"}),
        (("training", "valid"), {"training"}, {"valid"}),
        (("Train", "Validation", "test"), {"Train"}, {"Validation"}),
    ],
)
def test_names_of_split_folders(tops: tuple[str, ...], train: set[str], validation: set[str], tmp_path: Path) -> None:
    files = {f"{top}/{number}.png": png(seed) for seed, (top, number) in enumerate(
        (top, number) for top in tops for number in range(3))}  # fmt: skip
    data = opened(write_files(tmp_path / "images", files), tmp_path / "cache")
    assert {name.split("/")[0] for name in data.train.names} == train
    assert {name.split("/")[0] for name in data.validation.names} == validation
    if len(tops) == 3:
        assert any("test/" in note for note in data.notes)


def test_a_class_called_train_is_no_split(tmp_path: Path) -> None:
    files = {f"{top}/{n}.png": png(10 * i + n) for i, top in enumerate(("bus", "train")) for n in range(6)}
    data = opened(write_files(tmp_path / "images", files), tmp_path / "cache", validation_fraction=0.3)
    assert data.train.label_names == {"class": ["bus", "train"]}
    assert len(data.train) + len(data.validation) == 12


def test_a_lone_train_folder_is_split(tmp_path: Path) -> None:
    files = {f"train/{n}.png": png(n) for n in range(30)}
    data = opened(write_files(tmp_path / "images", files), tmp_path / "cache", validation_fraction=0.3)
    assert (len(data.train), len(data.validation)) == (21, 9)
    assert data.train.labels is None


def test_links_are_followed_once(tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", {f"{n}.png": png(n) for n in range(3)})
    elsewhere = write_files(tmp_path / "elsewhere", {"far.png": png(7)})
    (images / "loop").symlink_to(images, target_is_directory=True)
    (images / "again.png").symlink_to(images / "1.png")
    (images / "more").symlink_to(elsewhere, target_is_directory=True)
    data = opened(images, tmp_path / "cache")
    seen = names(data)
    assert seen["train"] | seen["validation"] == {"0.png", "1.png", "2.png", "more/far.png"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_that_would_leave_the_archive_are_refused(kind: str, tmp_path: Path) -> None:
    evil = ["../up.png", "/root.png", "C:\\windows.png", "a/../../b.png", "..\\back.png"]
    files = {f"{n}.png": png(n) for n in range(20)} | {name: png(99) for name in evil}
    make = zipped if kind == "zip" else tarred
    data = opened(make(tmp_path / f"images.{kind}", files), tmp_path / "cache", max_bad_fraction=0.5)
    assert {bad.name for bad in data.quarantined} == set(evil)
    assert len(data.train) + len(data.validation) == 20
    assert not (tmp_path / "up.png").exists()


def test_a_member_that_expands_too_much_is_refused_unread(tmp_path: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(20)} | {"bomb.bmp": bytes(40_000_000)}
    data = opened(zipped(tmp_path / "images.zip", files), tmp_path / "cache")
    assert [(bad.name, "bomb" in bad.reason) for bad in data.quarantined] == [("bomb.bmp", True)]


def test_a_tar_that_expands_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images.tar.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(40):
            stream.write(bytes(2**20))
    with pytest.raises(DataError, match="bomb"):
        opened(path, tmp_path / "cache")


def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path) -> None:
    path = tarred(tmp_path / "images.tar", {f"{n}.png": png(n) for n in range(20)})
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("password.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    data = opened(path, tmp_path / "cache")
    assert [bad.name for bad in data.quarantined] == ["password.png"]


def test_a_damaged_member_is_listed_and_the_rest_used(tmp_path: Path) -> None:
    path = zipped(tmp_path / "images.zip", {f"{n}.png": png(n) for n in range(20)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(content)
    data = opened(path, tmp_path / "cache")
    assert [bad.name for bad in data.quarantined] == ["0.png"]
    assert len(data.train) + len(data.validation) == 19


@pytest.mark.parametrize("name", ["images.zip", "images.tar", "images.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "nonsense"])
def test_a_damaged_archive_is_refused_with_advice(name: str, damage: str, tmp_path: Path) -> None:
    files = {f"{n}.png": png(n) for n in range(20)}
    path = tmp_path / name
    if name.endswith("zip"):
        zipped(path, files)
    else:
        tarred(path, files, "w:gz" if name.endswith("gz") else "w")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3] if damage == "cut" else b"nonsense" * 500)
    with pytest.raises(DataError, match="pack it again"):
        opened(path, tmp_path / "cache")


def test_a_damaged_header_in_a_tar_does_not_hide_the_rest(tmp_path: Path) -> None:
    path = tarred(tmp_path / "images.tar", {f"{n}.png": png(n) for n in range(20)})
    content = bytearray(path.read_bytes())
    content[content.index(b"9.png") : content.index(b"9.png") + 200] = b"\xff" * 200
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged in the middle"):
        opened(path, tmp_path / "cache")


RGB = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (RGB.transpose(0, 3, 1, 2), RGB),
        (RGB[..., 0], RGB[..., :1]),
        (RGB[..., :1], RGB[..., :1]),
        (RGB[:, None, :, :, 0], RGB[..., :1]),
        ((RGB / 255.0).astype(np.float32), RGB),
        (RGB.astype(np.int64), RGB),
        (RGB[..., 0].astype(np.uint16) * 257, RGB[..., :1]),
        (RGB[..., 0] > 127, (RGB[..., :1] > 127) * np.uint8(255)),
        (np.concatenate([RGB, np.full_like(RGB[..., :1], 255)], axis=3), RGB),
    ],
    ids=["NHWC", "NCHW", "NHW", "NHW1", "N1HW", "float", "int64", "uint16", "bool", "RGBA"],
)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_array_layouts(array: np.ndarray, expected: np.ndarray, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"images.{form}"
    np.save(path, array) if form == "npy" else np.savez_compressed(path, images=array)
    data = opened(path, tmp_path / "cache", validation_fraction=0.3)
    assert data.channels == expected.shape[-1]
    for split in (data.train, data.validation):
        rows = [int(name.split()[-1]) for name in split.names]
        np.testing.assert_array_equal(split.images, expected[rows])
    assert len(data.train) + len(data.validation) == 12


@pytest.mark.parametrize(
    ("train", "validation"), [("train", "val"), ("x_train", "x_test"), ("train_images", "val_images")]
)
def test_npz_with_both_splits_and_labels(train: str, validation: str, tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    label_keys = {"train": ("train_labels", "val_labels"), "x_train": ("y_train", "y_test")}
    train_labels, validation_labels = label_keys.get(train, ("train_labels", "val_labels"))
    numbers = np.arange(12) % 3
    arrays = {train: RGB[:9], validation: RGB[9:], train_labels: numbers[:9], validation_labels: numbers[9:]}
    np.savez(path, **arrays)
    data = opened(path, tmp_path / "cache")
    assert (len(data.train), len(data.validation)) == (9, 3)
    assert data.train.labels is not None
    rows = [int(name.split()[-1]) for name in data.train.names]
    np.testing.assert_array_equal(data.train.labels["class"], numbers[rows])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 784), np.uint8), "shape"),
        (np.array(["a", "b"]), "integers or floats"),
        (RGB / 127.5 - 1.0, "0..1"),
        (np.full((6, 8, 8), np.nan), "NaN"),
        (np.array([{"pickled": 1}], dtype=object), "cannot be read"),
    ],
    ids=["flat", "text", "minus one to one", "nan", "pickle"],
)
def test_arrays_that_are_no_images(array: np.ndarray, message: str, tmp_path: Path) -> None:
    path = tmp_path / "images.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        opened(path, tmp_path / "cache")


def test_an_unknown_name_gets_the_list_of_what_is_possible(tmp_path: Path) -> None:
    zipped(tmp_path / "pictures.zip", {})
    with pytest.raises(DataError, match=r"Did you mean 'pictures.zip'.*torchvision:NAME"):
        find_source(str(tmp_path / "picturs.zip"), tmp_path, silent)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match="no kind"):
        find_source(str(tmp_path / "notes.txt"), tmp_path, silent)


@pytest.mark.skipif(os.name != "posix", reason="POSIX names")
def test_a_name_that_is_not_unicode_is_usable(tmp_path: Path) -> None:
    images = write_files(tmp_path / "images", {f"{n}.png": png(n) for n in range(4)})
    os.rename(images / "0.png", os.path.join(os.fsencode(images), b"\xff\xfe.png"))  # noqa: PTH104, PTH118
    data = opened(images, tmp_path / "cache")
    assert len(data.train) + len(data.validation) == 4
    assert opened(images, tmp_path / "cache").fingerprint == data.fingerprint


def test_the_folder_of_a_run_inside_the_images_is_not_read(tmp_path: Path) -> None:
    """`--run-dir` below `--data`: the sheets that a run draws must not become its images."""
    images = write_files(tmp_path / "images", {f"{n}.png": png(n) for n in range(3)})
    record = {"config.json": b"{}", "metrics.jsonl": b"", "checkpoints/step-000000001/MANIFEST.json": b"{}"}
    write_files(images / "runs" / "mine", {**record, "samples/epoch-0001-samples.png": png(9)})
    seen = names(opened(images, tmp_path / "cache"))
    assert seen["train"] | seen["validation"] == {"0.png", "1.png", "2.png"}
