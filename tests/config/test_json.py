"""The JSON reader reads what the standard library writes."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from unified_vae.config.presets import MAX_KEY, parse_json

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_KEY)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_TEXT, inner), max_leaves=20)


@given(_VALUES, st.sampled_from([None, 2]), st.booleans())
def test_reads_what_the_standard_library_writes(value: object, indent: int | None, ascii_only: bool) -> None:
    read = parse_json(json.dumps(value, indent=indent, ensure_ascii=ascii_only), "x")
    assert json.dumps(read) == json.dumps(value)  # tells 1 from 1.0 and from true
