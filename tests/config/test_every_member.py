"""Every member of every union of settings: it is built, goes through JSON unchanged, and explains each field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unified_vae.config.base import Config, dotted, members, nested, tag_of
from unified_vae.config.presets import PresetBook, from_command_line
from unified_vae.config.run import RunConfig
from unified_vae.config.settings import Settings
from unified_vae.core.errors import ConfigError

BOOK = PresetBook.load(shipped=Path(__file__).parents[2] / "config" / "config_unified.json")


def places(model: type[Config] = RunConfig, at: str = "") -> dict[tuple[str, str], type[Config]]:
    """(path, kind) -> class, of every object that settings may hold; the kind is empty outside of unions."""
    result = {}
    for name, field in model.model_fields.items():
        for member in members(field.annotation):
            path = f"{at}.{name}" if at else name
            tag = tag_of(member)
            result[path, "" if tag is None else tag[1]] = member
            result |= places(member, path)
    return result


PLACES = places()


def test_every_union_is_walked() -> None:
    kinds = {kind for _, kind in PLACES}
    assert {"adamw", "sgd", "plateau", "cyclical", "geco", "free_bits", "spatial", "residual"} <= kinds


@pytest.mark.parametrize("place", PLACES, ids=" ".join)
def test_a_member_is_built_and_goes_through_json(place: tuple[str, str]) -> None:
    path, kind = place
    member = PLACES[place]
    tag = tag_of(member)
    words = [f"{path}.{tag[0]}={kind}"] if tag else []
    run = BOOK.compose({"loss": "mse_l1"}, from_command_line({}, words))
    assert RunConfig.model_validate(json.loads(run.config.model_dump_json())) == run.config
    assert RunConfig.model_validate_json(run.config.model_dump_json()) == run.config
    assert isinstance(value_at(run.config, path), member)


@pytest.mark.parametrize("member", sorted(set(PLACES.values()) | {RunConfig}, key=lambda each: each.__name__))
def test_a_member_and_its_fields_are_described(member: type[Config]) -> None:
    assert member.__doc__ and member.__doc__ != Config.__doc__
    tag = tag_of(member)
    silent = [
        name
        for name, field in member.model_fields.items()
        if not field.description and not members(field.annotation) and (tag is None or name != tag[0])
    ]
    assert silent == []


def test_replace_validates_and_leaves_the_original() -> None:
    config = RunConfig()
    changed = config.replace(**{"training.batch_size": 32, "training.gradient_accumulation_steps": 4, "seed": 3})
    assert (changed.training.batch_size, changed.training.gradient_accumulation_steps, changed.seed) == (32, 4, 3)
    assert config == RunConfig()
    for wrong in (
        {"training.epochs": 0},
        {"training.epoch": 3},
        {"trainig.epochs": 3},
        {"training.gradient_accumulation_steps": 99},
        {"loss.mse.weight": 0.0},
    ):
        with pytest.raises(ConfigError):
            config.replace(**wrong)


def test_no_config_is_copied_without_validation() -> None:
    source = Path(__file__).parents[2] / "src"
    assert [path for path in source.rglob("*.py") if "model_copy(" in path.read_text(encoding="utf-8")] == []


def test_a_nested_path_is_what_it_says() -> None:
    settings = Settings()
    settings.put(nested("loss.kl.weight", 2.0), "here")
    assert {dotted(keys): origin for keys, origin in settings.origins.items()} == {"loss.kl.weight": "here"}


def value_at(value: object, path: str) -> object:
    for name in path.split("."):
        value = getattr(value, name)
    return value
