"""The built-in faces: the same on every machine, one scene at every size, labels that can be seen."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest

from unified_vae.data.cartoon import faces
from unified_vae.data.cartoon.canvas import Canvas, circle, coverage, line_coverage, stripes
from unified_vae.data.cartoon.faces import ATTRIBUTE_NAMES, draw_faces, draw_factors, face_attributes, face_factors

SEED = 7


def box_halved(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    n, height, width, channels = pictures.shape
    blocks = pictures.astype(np.float32).reshape(n, height // 2, 2, width // 2, 2, channels)
    return blocks.mean(axis=(2, 4))


@pytest.mark.parametrize("size", [8, 17, 64, 256])
def test_any_size_and_number(size: int) -> None:
    for n in (0, 1, 3):
        pictures = draw_faces(SEED, np.arange(n), size)
        assert pictures.shape == (n, size, size, 3)
        assert pictures.dtype == np.uint8


def test_a_face_does_not_depend_on_its_company() -> None:
    indices = np.array([40, 3, 1_000_003, 17, 3, 99, 0, 12])
    together = draw_faces(SEED, indices, 32)
    alone = np.concatenate([draw_faces(SEED, [index], 32) for index in indices])
    np.testing.assert_array_equal(together, alone)
    order = np.random.default_rng(0).permutation(len(indices))
    np.testing.assert_array_equal(draw_faces(SEED, indices[order], 32), together[order])


@pytest.mark.parametrize("pixels_at_once", [1, 5 * 24 * 24, 10**9])
def test_faces_do_not_depend_on_the_chunks(pixels_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw_faces(SEED, np.arange(23), 24)
    monkeypatch.setattr(faces, "_PIXELS_AT_ONCE", pixels_at_once)
    np.testing.assert_array_equal(draw_faces(SEED, np.arange(23), 24), expected)


def test_same_bits_on_every_machine() -> None:
    """Exactly rounded arithmetic only, so that this digest holds on any processor and system.

    It changes when the drawing is changed; results measured on the old pictures then no longer compare.
    """
    digest = hashlib.sha256(draw_faces(0, np.arange(64), 32).tobytes()).hexdigest()
    assert digest == "216334fbaa5cc404ae4f958c1dfea2ab11dc78e1a35c413cade234fd2878a77f"


def test_seeds_and_indices_give_different_faces() -> None:
    pictures = np.concatenate([draw_faces(seed, np.arange(40), 16) for seed in (0, 1, 2)])
    assert len({picture.tobytes() for picture in pictures}) == 120


@pytest.mark.parametrize(("size", "tolerance"), [(16, 7.0), (32, 4.0), (64, 2.5), (128, 1.6)])
def test_smaller_pictures_show_the_same_scene(size: int, tolerance: float) -> None:
    """A picture is the picture of twice the size, shrunk; tolerance is the mean error in grey levels."""
    small = draw_faces(SEED, np.arange(12), size).astype(np.float32)
    shrunk = box_halved(draw_faces(SEED, np.arange(12), 2 * size))
    error = np.abs(small - shrunk).mean()
    unrelated = np.abs(small - np.roll(shrunk, 1, axis=0)).mean()
    assert error < tolerance
    assert error < unrelated / 6


@pytest.mark.parametrize("attribute", ATTRIBUTE_NAMES)
def test_every_value_of_an_attribute_looks_different(attribute: str) -> None:
    """At 64 pixels, on every face; most faces show it in at least a dozen pixels."""
    factors = face_factors(SEED, np.arange(24))
    pictures = {
        value: draw_factors(factors.with_value(attribute, value), 64).astype(np.int16)
        for value in ATTRIBUTE_NAMES[attribute]
    }
    for one, other in combinations(pictures, 2):
        changed = (np.abs(pictures[one] - pictures[other]).max(axis=-1) > 24).sum(axis=(1, 2))
        assert changed.min() >= 2, f"{attribute}: {one} and {other} look alike on a face"
        assert np.median(changed) >= 12, f"{attribute}: {one} and {other} are hard to tell apart"


def test_an_attribute_changes_nothing_but_its_own_place() -> None:
    """New clothes leave the picture above them alone."""
    bun = face_factors(SEED, np.arange(8)).with_value("hair_style", "bun")
    before, after = draw_factors(bun, 64), draw_factors(bun.with_value("clothes_colour", "red"), 64)
    np.testing.assert_array_equal(before[:, :44], after[:, :44])
    assert (before[:, 58:] != after[:, 58:]).any()


def test_labels_are_the_values_that_are_drawn() -> None:
    labels = face_attributes(SEED, np.arange(30))
    assert list(labels) == list(ATTRIBUTE_NAMES)
    factors = face_factors(SEED, np.arange(30))
    pictures = draw_factors(factors, 24)
    for attribute, numbers in labels.items():
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            same = factors.take(rows).with_value(attribute, ATTRIBUTE_NAMES[attribute][number])
            np.testing.assert_array_equal(draw_factors(same, 24), pictures[rows])


def test_attributes_are_balanced() -> None:
    labels = face_attributes(SEED, np.arange(20_000))
    for attribute, numbers in labels.items():
        share = np.bincount(numbers, minlength=len(ATTRIBUTE_NAMES[attribute])) / len(numbers)
        assert len(share) == len(ATTRIBUTE_NAMES[attribute])
        if "none" in ATTRIBUTE_NAMES[attribute]:
            expected = np.array([0.5] + [0.5 / (len(share) - 1)] * (len(share) - 1))
        else:
            expected = np.full(len(share), 1 / len(share))
        np.testing.assert_allclose(share, expected, rtol=0.1)


def test_attributes_are_independent() -> None:
    """Cramer's V of every pair; independent attributes of 20,000 faces stay below 0.03."""
    labels = face_attributes(SEED, np.arange(20_000))
    for one, other in combinations(ATTRIBUTE_NAMES, 2):
        joint = np.zeros((len(ATTRIBUTE_NAMES[one]), len(ATTRIBUTE_NAMES[other])))
        np.add.at(joint, (labels[one], labels[other]), 1 / 20_000)
        expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        v = np.sqrt(((joint - expected) ** 2 / expected).sum() / (min(joint.shape) - 1))
        assert v < 0.03, f"{one} and {other} go together"


@pytest.mark.parametrize("size", [64, 128])
def test_blur_shows(size: int) -> None:
    """A 3 x 3 mean takes away several grey levels of fine detail on every face."""
    pictures = draw_faces(SEED, np.arange(24), size).astype(np.float32)
    blurred = np.mean(
        [np.roll(pictures, (down, right), axis=(1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1)], axis=0
    )
    lost = np.abs(pictures - blurred)[:, 1:-1, 1:-1].mean(axis=(1, 2, 3))
    assert lost.min() > 2.0


def test_coverage_sums_to_the_area() -> None:
    """A disc and a line thinner than a pixel keep their areas, whatever the size of the pixels."""
    for size in (32, 64, 256):
        with Canvas(1, size).whole(slice(0, 1)) as patch:
            pixels = np.full((1, 1, 1), size / 2, dtype=np.float32)
            disc = coverage(circle(patch.x, patch.y, 0.6), pixels).sum() * (2 / size) ** 2
            line = line_coverage(np.abs(patch.x - 0.1) + 0 * patch.y, 0.003, pixels).sum() * (2 / size) ** 2
        assert disc == pytest.approx(np.pi * 0.36, rel=0.01)
        assert line == pytest.approx(2 * 0.006, rel=0.01)


def test_stripes_finer_than_a_pixel_become_their_mean() -> None:
    phase = np.linspace(0, 50, 11, dtype=np.float32)
    np.testing.assert_allclose(stripes(phase, 0.3, 1000.0), 0.3, atol=1e-3)
