"""Suggestions: a slip of the pen finds its name, a far-off word finds none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unified_vae.core.spelling import alike, edits

from unified_vae.config.base import field_paths, suggest
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import MOST_LISTED, nearest

PATHS = field_paths(RunConfig)
_WORDS = st.text("abc_", max_size=6)


@given(_WORDS, _WORDS, _WORDS)
def test_edits_is_symmetric_bounded_and_zero_for_equals_alone(one: str, two: str, more: str) -> None:
    distance = edits(one, two)
    assert distance == edits(two, one)
    assert (distance == 0) == (one == two)
    assert abs(len(one) - len(two)) <= distance <= max(len(one), len(two))
    assert edits(one + more, two + more) <= distance


@given(
    st.text(
        "abcdef",
        min_size=4,
        max_size=12,
    ),
    st.data(),
)
def test_one_slip_is_always_understood(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    slips = [
        name[:place] + name[place + 1 :],
        name[:place] + "z" + name[place:],
        name[:place] + "z" + name[place + 1 :],
    ]
    if place:
        slips.append(name[: place - 1] + name[place] + name[place - 1] + name[place + 1 :])
    for slip in slips:
        assert alike(slip, ["zzzzzzzzzzzzzz", name]) == [name]


@pytest.mark.parametrize(
    ("word", "guesses"),
    [
        ("loss.kl.wieght", ["loss.kl.weight"]),
        ("loss.perceptul.weight", ["loss.perceptual.weight"]),
        ("kl.weight", ["loss.kl.weight"]),
        ("training.lr", ["training.optimizer.lr"]),
        ("trainig.epochs", ["training.epochs"]),
        ("data.agument.horizontal_flip", ["data.augment.horizontal_flip"]),
        ("training.optim", ["training.optimizer"]),
        ("DATA.source", ["data.source"]),
    ],
)
def test_settings_that_were_meant(word: str, guesses: list[str]) -> None:
    assert suggest(word, PATHS) == "Did you mean " + " or ".join(map(repr, guesses)) + "?"


@pytest.mark.parametrize(
    "word", ["loss.kl.colour", "loss.kl.beta", "foo", "model.zzzz", "", ".", "a.b.c", "wobble.lr.x"]
)
def test_far_off_words_get_no_guess_but_what_stands_there(word: str) -> None:
    answer = suggest(word, PATHS)
    assert answer.startswith("Known: ")
    owner = word.rpartition(".")[0] if word.startswith(("loss.", "model.")) else ""
    names = answer.removeprefix("Known: ").rstrip(".").split(", ")
    assert all(name.rpartition(".")[0] == owner for name in names)


@pytest.mark.parametrize("path", PATHS)
def test_every_setting_is_found_from_a_slip_in_its_last_word(path: str) -> None:
    slip = path[:-1] if len(path.rpartition(".")[2]) > 4 else path + "x"
    if slip not in PATHS:
        assert repr(path) in suggest(slip, PATHS), suggest(slip, PATHS)


def test_a_beginning_and_the_words_of_a_name_count() -> None:
    modes = ["quick_test", "fast_high_quality", "full_retrain"]
    assert alike("quick", modes) == ["quick_test"]
    assert alike("high_quality", modes) == ["fast_high_quality"]
    assert alike("retrain full", modes) == ["full_retrain"]
    assert alike("quality_control", modes) == []


def test_a_long_list_is_cut() -> None:
    answer = nearest("zzz", [f"name {number}" for number in range(MOST_LISTED + 5)])
    assert answer.endswith("and 5 more.") and f"name {MOST_LISTED}" not in answer
