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
        if isinstance(value, dict):
            return {key: entry for key, entry in value.items() if entry is not None}
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


def _decimal(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ItemId = Annotated[
    str,
    BeforeValidator(_decimal),
    StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS),
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
UserId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS)]
Timestamp = Annotated[float, Field(ge=0, allow_inf_nan=False, description="Unix seconds.")]
