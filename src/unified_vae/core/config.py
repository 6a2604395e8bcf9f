"""The base of every config: frozen, closed, and documented by the docstring under each field."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of a run's settings. Unknown keys, wrong types, NaN and infinities are refused.

    The docstring under a field is its help text and goes into the JSON schema.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )
