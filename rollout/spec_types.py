"""What every part of a spec is made of: the closed base class, durations, and numbers that may come as strings.

The custom resource has no floats, so each number may be written as a string. Each type says in its JSON Schema what
it accepts, so that the published schema (schema.py) and the reader can't drift apart.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

DURATION_PATTERN = r"^([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)?$"
_DURATION = re.compile(DURATION_PATTERN)
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def parse_duration_s(value: object) -> object:
    """Read `"90s"`, `"1.5m"`, `90` as seconds; what is not a duration is left for the schema to refuse.

    >>> parse_duration_s("1.5m")
    90.0
    """
    if isinstance(value, str):
        found = _DURATION.match(value)
        if not found:
            raise ValueError(f"{value!r} is not a duration; write it as 500ms, 30s, 5m, 1h or a number of seconds")
        return float(found[1]) * _UNIT_S[found[2]]
    return _no_boolean(value)


def _no_boolean(value: object) -> object:
    """True would otherwise be read as 1: nobody means that."""
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number; write one, for instance 1")  # noqa: TRY004 - pydantic's word
    return value


class Text:
    """Marks a number that may also be written as a string of this form, as it must be in the custom resource."""

    def __init__(self, pattern: str, example: str) -> None:
        self._pattern = pattern
        self._example = example

    def _read(self, value: object) -> object:
        if isinstance(value, str) and not re.match(self._pattern, value):
            raise ValueError(f"{value!r} is not a number; write it like {self._example}")
        return _no_boolean(value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        return core_schema.no_info_before_validator_function(self._read, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": self._pattern}]}


class _DurationText:
    """Durations in the JSON Schema: a number of seconds, or a string with a unit."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": DURATION_PATTERN}]}


WHOLE_PATTERN = r"^[0-9]{1,9}$"
WHOLE = Text(WHOLE_PATTERN, '4 or "4"')
"""Mark of a whole number."""

DECIMAL = Text(r"^[0-9]{1,9}(\.[0-9]{1,15})?$", '"0.05"')
"""Mark of a number with a fraction."""

Duration = Annotated[float, Field(ge=0), BeforeValidator(parse_duration_s), _DurationText()]
"""Seconds."""


class Spec(BaseModel):
    """Base: closed, frozen, camelCase outside and snake_case inside."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


def seconds(value: float) -> str:
    """A duration for people: `90 s`, `5 min`, `2 h`.

    >>> seconds(300.0)
    '5 min'
    """
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if value >= size and math.isclose(value % size, 0.0, abs_tol=1e-9):
            return f"{value / size:.0f} {unit}"
    return f"{value:g} s"
