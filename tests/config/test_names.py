"""Suggestions: a typo finds its name, a far-off word finds none."""

from __future__ import annotations

import pytest

from unified_vae.config.base import field_paths, suggest
from unified_vae.config.run import RunConfig
from unified_vae.core.errors import MOST_LISTED, close_names, nearest

PATHS = field_paths(RunConfig)


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


def test_every_setting_is_found_from_a_typo_in_its_last_word() -> None:
    for path in PATHS:
        typo = path[:-1] if len(path.rpartition(".")[2]) > 4 else path + "x"
        if typo not in PATHS:
            assert repr(path) in suggest(typo, PATHS), suggest(typo, PATHS)


def test_the_beginning_of_a_name_counts() -> None:
    modes = ["quick_test", "fast_high_quality", "full_retrain"]
    assert close_names("quick", modes) == ["quick_test"]
    assert close_names("full", modes) == ["full_retrain"]
    assert close_names("high_quality", modes) == ["fast_high_quality"]
    assert close_names("zebra", modes) == []


def test_a_long_list_is_cut() -> None:
    answer = nearest("zzz", [f"name {number}" for number in range(MOST_LISTED + 5)])
    assert answer.endswith("and 5 more.") and f"name {MOST_LISTED}" not in answer
