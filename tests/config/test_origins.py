"""Later layers win leaf by leaf, origins follow the values, and a changed kind starts afresh."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unified_vae.config.base import dotted, flatten
from unified_vae.config.settings import Settings

_KEYS = st.sampled_from("abc")
_TREES = st.recursive(st.integers(), lambda inner: st.dictionaries(_KEYS, inner, min_size=1), max_leaves=8)
_OBJECTS = st.dictionaries(_KEYS, _TREES, min_size=1)


@given(st.lists(_OBJECTS, min_size=1, max_size=4))
def test_every_leaf_has_the_origin_of_the_layer_that_set_it(layers: list[dict[str, object]]) -> None:
    settings = Settings()
    for number, layer in enumerate(layers):
        settings.put(layer, str(number))
    values = dict(flatten(settings.values))
    assert set(settings.origins) == set(values)
    for keys, origin in settings.origins.items():
        assert dict(flatten(layers[int(origin)]))[keys] == values[keys]


@given(_OBJECTS, _OBJECTS)
def test_the_last_layer_is_kept_whole(first: dict[str, object], last: dict[str, object]) -> None:
    settings = Settings()
    settings.put(first, "first")
    settings.put(last, "last")
    assert dict(flatten(settings.values)).items() >= dict(flatten(last)).items()
    assert all(settings.origins[keys] == "last" for keys, _ in flatten(last))


def test_a_changed_kind_drops_settings_of_lower_layers() -> None:
    settings = Settings()
    settings.put({"optimizer": {"kind": "adamw", "lr": 1.0, "beta1": 0.9}}, "low")
    settings.put({"optimizer": {"kind": "sgd", "momentum": 0.5}}, "high")
    assert settings.values == {"optimizer": {"kind": "sgd", "momentum": 0.5}}
    assert set(settings.origins) == {("optimizer", "kind"), ("optimizer", "momentum")}


def test_the_same_kind_merges() -> None:
    settings = Settings()
    settings.put({"optimizer": {"kind": "adamw", "lr": 1.0}}, "low")
    settings.put({"optimizer": {"kind": "adamw", "beta1": 0.5}}, "high")
    assert settings.values == {"optimizer": {"kind": "adamw", "lr": 1.0, "beta1": 0.5}}


def test_laying_settings_over_others_leaves_them_unchanged() -> None:
    low, high = Settings(), Settings()
    low.put({"a": {"b": [1]}}, "low")
    high.put(low.values, low.origin)
    high.put({"a": {"b": [2], "c": 3}}, "high")
    assert low.values == {"a": {"b": [1]}}


def test_only_keeps_whole_subtrees() -> None:
    settings = Settings()
    settings.put({"a": {"b": 1, "c": 2}, "ab": 3}, dotted)
    assert settings.only(["a"]).values == {"a": {"b": 1, "c": 2}}
    assert settings.only(["a.c"]).origins == {("a", "c"): "a.c"}
