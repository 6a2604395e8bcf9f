"""Attribute directions: what a linear world has to give back, labels of every kind, one sentence for mistakes."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.inference.small_models import COUNT, LATENTS
from unified_vae.analysis import attributes as module
from unified_vae.analysis import edit as verb
from unified_vae.analysis.attributes import Attribute, Directions, choose, is_table, read_table, roc_auc
from unified_vae.analysis.edit import Edited
from unified_vae.cli.commands.edit import spread
from unified_vae.core.errors import ConfigError, DataError, UserError
from unified_vae.core.events import Observer
from unified_vae.inference.load import load_model


def world(count: int, correlated: bool) -> tuple[np.ndarray, list[Attribute], np.ndarray]:
    """Latents that are a sum of what two attributes add, and noise; the second may follow the first."""
    rng = np.random.default_rng(0)
    hair = rng.integers(0, 3, count)
    follows = rng.random(count) < 0.8 if correlated else np.zeros(count, bool)
    beard = np.where(follows, hair == 2, rng.integers(0, 2, count)).astype(np.int64)
    truth = np.array([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 3.0]])
    latents = truth[hair] + beard[:, None] * truth[3] + 0.3 * rng.normal(size=(count, 4)) + 5
    attributes = [Attribute("hair", ["a", "b", "c"], hair), Attribute("beard", ["no", "yes"], beard)]
    return latents, attributes, truth


@pytest.mark.parametrize("correlated", [False, True])
def test_directions_are_independent_of_other_attributes(correlated: bool) -> None:
    latents, attributes, truth = world(4000, correlated)
    result = Directions(latents, attributes)
    assert np.allclose(result.direction("beard", 1), truth[3], atol=0.2)
    assert np.allclose(result.direction("hair", 2), truth[2] - (truth[0] + truth[1]) / 2, atol=0.2)
    moved = latents + result.shifts("hair", 2, latents)
    assert (result.predict("hair", moved).argmax(1) == 2).mean() > 0.98
    assert (result.predict("beard", moved).argmax(1) == result.predict("beard", latents).argmax(1)).mean() > 0.98
    back = latents + result.shifts("beard", 0, latents)
    assert (result.predict("beard", back).argmax(1) == 0).mean() > 0.98


def test_an_effect_that_depends_on_another_attribute_is_found() -> None:
    """Glasses lie elsewhere on a face that looks left: the average of both places is wrong for either."""
    rng = np.random.default_rng(0)
    turn, glasses = rng.integers(0, 2, 4000), rng.integers(0, 2, 4000)
    places = np.array([[0, 0, 2.0, 0], [0, 0, 0, 2.0]])
    latents = turn[:, None] * np.array([4.0, 0, 0, 0]) + glasses[:, None] * places[turn]
    latents += 0.2 * rng.normal(size=latents.shape)
    attributes = [Attribute("turn", ["left", "right"], turn), Attribute("glasses", ["no", "yes"], glasses)]
    without = latents[glasses == 0]
    shifts = Directions(latents, attributes).shifts("glasses", 1, without)
    assert np.abs(shifts - places[turn[glasses == 0]]).mean() < 0.15
    assert np.abs(Directions(latents, attributes).direction("glasses", 1)[2:] - 1).max() < 0.15


def test_the_probe_is_judged_on_images_it_has_not_seen() -> None:
    latents, attributes, _ = world(1000, False)
    result = Directions(latents[:800], [Attribute(a.name, a.values, a.numbers[:800]) for a in attributes])
    quality = result.score(latents[800:], Attribute("hair", ["a", "b", "c"], attributes[0].numbers[800:]))
    assert quality is not None and quality.accuracy > 0.97 and quality.images == 200 and quality.majority < 0.5
    chance = result.score(np.random.default_rng(1).permutation(latents[800:]), attributes[0].__class__(
        "hair", ["a", "b", "c"], attributes[0].numbers[800:]))  # fmt: skip
    assert chance is not None and chance.accuracy < 0.5
    assert min(quality.auc) > 0.99 and not any(map(quality.may_be_chance, range(3)))  # type: ignore[type-var]
    assert any(map(chance.may_be_chance, range(3)))


def test_each_value_has_its_own_figure_the_area_under_its_curve() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3, 600)
    latents = rng.normal(size=(600, 4))
    latents[:, 0] += 3 * (values == 0)  # the other two look alike
    fits = Directions(latents[:400], [Attribute("x", ["a", "b", "c"], values[:400])])
    quality = fits.score(latents[400:], Attribute("x", ["a", "b", "c"], values[400:]))
    assert quality is not None and quality.auc[0] is not None and quality.auc[0] > 0.97
    assert all(auc is not None and 0.6 < auc < 0.85 for auc in quality.auc[1:])
    truth, seen = np.array([1, 0, 1, 0, 0]), np.array([0.5, 0.1, 0.3, 0.3, 0.9])
    assert roc_auc(seen, truth == 1) == pytest.approx((2 + 1.5) / 6)
    assert roc_auc(seen, truth == 2) is None


def test_unknown_labels_are_left_out_and_dead_attributes_too() -> None:
    latents, attributes, truth = world(4000, False)
    half = attributes[1].numbers.copy()
    half[::2] = -1
    dead = Attribute("hat", ["no", "yes"], np.zeros(4000, np.int64))
    result = Directions(latents, [attributes[0], Attribute("beard", ["no", "yes"], half), dead])
    assert np.allclose(result.direction("beard", 1), truth[3], atol=0.25) and "hat" not in result.effects
    assert dead.is_dead and not attributes[0].is_dead


def test_more_latents_than_images_stay_finite() -> None:
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(30, 200))
    labels = Attribute("x", ["no", "yes"], (np.arange(30) % 2).astype(np.int64))
    assert np.isfinite(Directions(latents, [labels]).direction("x", 1)).all()


@pytest.mark.parametrize("width", [39, 40, 41, 300])
def test_either_moment_gives_the_minimum_of_the_ridge_s_loss(width: int) -> None:
    rng = np.random.default_rng(0)
    of, to = rng.normal(size=(40, width)), rng.normal(size=(40, 3))
    penalty = 0.01 * np.square(of).mean()
    stacked = np.concatenate([of, np.sqrt(40 * penalty) * np.eye(width)])
    expected = np.linalg.lstsq(stacked, np.concatenate([to, np.zeros((width, 3))]), rcond=None)[0]
    assert np.allclose(module._ridge(of, to), expected, atol=1e-9)


def test_few_images_need_no_covariance_of_all_latents() -> None:
    rng = np.random.default_rng(0)
    labels = Attribute("x", ["no", "yes"], (np.arange(40) % 2).astype(np.int64))
    latents = rng.normal(size=(40, 3000))
    tracemalloc.start()
    try:
        Directions(latents, [labels])
        assert tracemalloc.get_traced_memory()[1] < 8 * 3000**2 / 4
    finally:
        tracemalloc.stop()


IDS = [f"train/{number:06}.jpg" for number in range(1, 31)]
CELEBA = "30\nSmiling Young\n" + "".join(f"{n:06}.jpg {'-1' if n % 2 else ' 1'}  1\n" for n in range(1, 31))


def test_celebas_table_in_both_of_its_forms(tmp_path: Path) -> None:
    (tmp_path / "list_attr_celeba.txt").write_text(CELEBA)
    rows = [line.split() for line in CELEBA.splitlines()[2:]]
    text = "image_id,Smiling,Young\n" + "".join(",".join(row) + "\n" for row in rows)
    (tmp_path / "list_attr_celeba.csv").write_text("\ufeff" + text)
    for name in ("list_attr_celeba.txt", "list_attr_celeba.csv"):
        assert is_table(name)
        smiling, young = read_table(tmp_path / name, IDS)
        assert smiling.name == "Smiling" and smiling.counts().tolist() == [15, 15]
        assert smiling.numbers[1] == 1 and smiling.numbers[0] == 0 and young.is_dead
        assert choose([smiling, young], "Smiling") == (smiling, 1)
        with pytest.raises(ConfigError, match="Young cannot be learned: 30 of the labeled images have it, 0 do not"):
            choose([smiling, young], "Young")
        with pytest.raises(ConfigError, match="Did you mean 'Smiling'"):
            choose([smiling, young], "smilin")


def test_images_that_a_table_lacks_are_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,x,y\n000003.jpg,1,0\n000004.jpg,0,\nother.jpg,1,1\n")
    x, y = read_table(tmp_path / "a.csv", IDS)
    assert x.numbers[[2, 3]].tolist() == [1, 0] and (x.numbers >= 0).sum() == 2 and y.numbers[3] == -1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,x\nnowhere.jpg,1\n", "names none of the 30 images"),
        ("name,x\n000001.jpg,red\n", "holds 'red'"),
        ("name,x\n000001.jpg,1\n000002.jpg\n", "row 3 has 1 entries"),
        ("", "is no table"),
        ("just words\n", "is no table"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_table(tmp_path / "a.csv", IDS)


# --- the verb --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and light pictures in folders of their own."""
    folder, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for number in range(120):
        name, base = ("dark", 30) if number % 2 else ("light", 170)
        (folder / name).mkdir(exist_ok=True)
        pixels = rng.integers(base, base + 60, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def edit(model: Path, place: Path, labels: Path, images: Sequence[Path] = (), **options: object) -> Edited:
    usual = {"sheet": place / "e.png", "directions": place / "d.safetensors", "device": "cpu", "observer": Observer()}
    return verb.edit(model, images, str(labels), **{**usual, **options})  # type: ignore[arg-type]


def test_class_folders_give_a_sheet_and_directions(model: Path, classes: Path, tmp_path: Path) -> None:
    strengths = (-1.0, 0.0, 2.0)
    done = edit(model, tmp_path, classes, attribute="class=light", strengths=strengths)
    assert [path.name for path in done.files] == ["e.png", "d.safetensors", "d.json"]
    result = load_file(tmp_path / "d.safetensors")
    assert set(result) == {"class=dark", "class=light"} and result["class=light"].shape == (LATENTS,)
    assert np.allclose(result["class=light"], -result["class=dark"], atol=1e-6)
    about = json.loads((tmp_path / "d.json").read_text())
    assert about["attributes"]["class"]["held_out"]["accuracy"] > 0.9
    picture = Image.open(tmp_path / "e.png")
    assert picture.width > 4 * 64
    by_value = edit(model, tmp_path, classes, attribute="light", strengths=strengths)
    assert by_value.rows == done.rows


def test_strength_0_is_the_reconstruction(model: Path, classes: Path, tmp_path: Path) -> None:
    from unified_vae import VAE

    file = classes / "dark" / "1.png"
    edit(model, tmp_path, classes, [file], attribute="light", strengths=(0.0,))
    expected = VAE.from_pretrained(model, device="cpu").reconstruct(file)[0]
    zoomed = np.asarray(Image.open(tmp_path / "e.png").convert("RGB"), np.float64)
    shown = (expected * 255).round().to(torch.uint8).permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)
    height = shown.shape[0]
    assert any(
        np.abs(zoomed[top : top + height, left : left + height] - shown).max() <= 1
        for top in range(zoomed.shape[0] - height + 1)
        for left in range(height, zoomed.shape[1] - height + 1)
    )


def test_a_bad_file_is_left_off_the_sheet(model: Path, classes: Path, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.png", classes / "dark" / "1.png"
    bad.write_text("no image")
    edit(model, tmp_path, classes, [good], attribute="light", strengths=(0.0,))
    alone = (tmp_path / "e.png").read_bytes()
    done = edit(model, tmp_path, classes, [bad, good], attribute="light", strengths=(0.0,))
    assert (tmp_path / "e.png").read_bytes() == alone
    assert done.problem.endswith("bad.png: not an image that can be read; the others are done")
    (tmp_path / "d.safetensors").unlink()
    with pytest.raises(DataError, match="cannot be used"):
        edit(model, tmp_path, classes, [bad], attribute="light")
    assert not (tmp_path / "d.safetensors").exists()


def test_a_table_and_its_images(model: Path, classes: Path, tmp_path: Path) -> None:
    lines = [f"{n}.png,{1 if n % 2 else -1}" for n in range(120) if n != 7]
    (tmp_path / "a.csv").write_text("id,Dark\n" + "\n".join(lines) + "\n")
    table = tmp_path / "a.csv"
    done = edit(model, tmp_path, table, data=str(classes), attribute="Dark", strengths=(1.0,))
    assert [row[0] for row in done.rows] == ["Dark"] and len(done.files) == 3


def test_a_list_writes_nothing(model: Path, classes: Path, tmp_path: Path) -> None:
    done = edit(model, tmp_path, classes)
    assert [row[0] for row in done.rows] == ["class=dark", "class=light"] and "held out" in done.rows[0][2]
    assert not done.files and not list(tmp_path.iterdir())


def test_mistakes_are_one_sentence(model: Path, classes: Path, pictures: Path, tmp_path: Path) -> None:
    cases: list[tuple[type[UserError], str, Path, dict[str, object]]] = [
        (ConfigError, "there is no attribute 'hat'", classes, {"attribute": "hat"}),
        (DataError, "has no labels", classes / "dark", {"attribute": "hat"}),
        (ConfigError, "leave --data out", classes, {"data": "builtin", "attribute": "light"}),
        (DataError, "cannot be read", tmp_path / "a.csv", {"data": str(classes)}),
        (ConfigError, f"cannot be learned: {COUNT // 3 + 1} of", pictures, {"attribute": "dögs"}),
        (ConfigError, "ends in .png", classes, {"sheet": tmp_path / "e.jpg"}),
        (DataError, "not there", classes, {"images": [tmp_path / "no.png"], "attribute": "light"}),
    ]
    for kind, words, labels, options in cases:
        with pytest.raises(kind, match=words):
            edit(model, tmp_path, labels, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_runs_own_images_are_not_written_over(
    model: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(model, data=str(classes), require_data=False)
    monkeypatch.setattr(verb, "load_model", lambda *_, **__: loaded)
    image = classes / "dark" / "1.png"
    before = image.read_bytes()
    with pytest.raises(ConfigError, match="would be overwritten"):
        edit(model, tmp_path, tmp_path / "a.csv", attribute="Dark", sheet=image)
    assert image.read_bytes() == before


def test_a_sheet_of_many_images_says_what_it_leaves_out(model: Path, classes: Path, tmp_path: Path) -> None:
    notices: list[str] = []

    class Listening(Observer):
        def notice(self, text: str) -> None:
            notices.append(text)

    edit(model, tmp_path, classes, [classes], attribute="light", strengths=(0.0, 1.0), observer=Listening())
    assert any("the first 85 of 120 images" in text for text in notices)


def test_a_direction_that_may_be_noise_is_reported(
    model: Path, classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices: list[str] = []
    listening = Observer()
    monkeypatch.setattr(listening, "notice", notices.append)
    edit(model, tmp_path, classes, attribute="light", strengths=(1.0,), observer=listening)
    assert not notices
    drawn = np.random.default_rng(0).permutation(120)
    rows = "".join(f"{n}.png,{drawn[n] % 2}\n" for n in range(120))
    (tmp_path / "a.csv").write_text("id,Coin\n" + rows)
    edit(model, tmp_path, tmp_path / "a.csv", data=str(classes), attribute="Coin", observer=listening)
    assert len(notices) == 1 and "the direction may be noise" in notices[0] and "Coin" in notices[0]


def test_strengths_are_a_range_or_a_number() -> None:
    assert spread("-3..3", 7) == [-3, -2, -1, 0, 1, 2, 3] and spread("0..1.5", 4) == [0, 0.5, 1, 1.5]
    assert spread("2", 7) == [2]
    with pytest.raises(ConfigError, match="give a range"):
        spread("much", 7)
