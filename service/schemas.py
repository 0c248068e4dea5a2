"""What all payloads share: null is absent, unknown fields are refused, item ids are strings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

MAX_ID_CHARACTERS = 256


class Payload(BaseModel):
    """A request body. A field that is null counts as absent; mark such fields `NullIsAbsent`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):  # an unknown field stays, to be refused
            known = cls.model_fields
            return {key: entry for key, entry in value.items() if entry is not None or key not in known}
        return value


class Answer(BaseModel):
    """A response body, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class _NullIsAbsent:
    """Lets a field's JSON schema say that null is accepted; `Payload` then takes the default."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "null"}]}


NullIsAbsent = _NullIsAbsent()


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 3.0 is the integer 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _decimal(value: Any) -> Any:
    number = _whole(value)
    return str(number) if isinstance(number, int) and not isinstance(number, bool) else value


ItemId = Annotated[
    str,
    # Behind `_decimal` in the order of work; before it in the list, or text would not be checked as text.
    StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS),
    BeforeValidator(_decimal),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_ID_CHARACTERS},
                {"type": "integer"},
            ],
            "description": "An item's id. An integer is read as its decimal string.",
        },
        mode="validation",
    ),
]
# Stands behind an integer's bounds: before them, they would not reach the JSON schema.
WHOLE = BeforeValidator(_whole)
UserId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS)]
Timestamp = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True, description="Unix seconds.")]
