"""The forms an output must have, in OpenAI's words (response_format) and in vLLM's (structured_outputs)."""

import json
from typing import Any, Literal

from pydantic import Field

from rayline.protos.errors import InvalidRequest
from rayline.protos.openai import Body
from rayline.protos.types import StructuredOutput

NEEDED = {"json_schema": {"json_schema"}, "structural_tag": {"structures", "triggers"}}  # beside its type


class JsonSchemaBody(Body):
    """A schema with a name. Without strict a schema is followed all the same."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormatBody(Body):
    """OpenAI's response_format, with structural tags as vLLM has them."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaBody | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None

    def form(self) -> StructuredOutput | None:
        """None for text. Raises InvalidRequest for a type without what it needs, or with what belongs to another."""
        given = self.model_dump(exclude_none=True).keys() - {"type"}
        if strange := sorted(given - NEEDED.get(self.type, set())):
            raise InvalidRequest(
                f"response_format.{strange[0]} cannot be combined with type = {self.type!r}", field="response_format"
            )
        match self.type:
            case "text":
                return None
            case "json_object":
                return StructuredOutput("json_object")
            case "json_schema":
                if self.json_schema is None:
                    raise InvalidRequest("response_format.json_schema is missing", field="response_format")
                return StructuredOutput("json_schema", json.dumps(self.json_schema.schema_))
            case "structural_tag":
                tag = self.model_dump(include={"type", "structures", "triggers"}, exclude_none=True)
                return StructuredOutput("structural_tag", json.dumps(tag))


class StructuredOutputsBody(Body):
    """vLLM's structured_outputs: exactly one of its fields."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | dict[str, Any] | None = None

    def form(self) -> StructuredOutput | None:
        """Raises InvalidRequest unless exactly one form is given; json_object = false counts as none."""
        given: list[StructuredOutput] = []
        if self.json_ is not None:
            given.append(StructuredOutput("json_schema", _json_text(self.json_)))
        if self.regex is not None:
            given.append(StructuredOutput("regex", self.regex))
        if self.choice is not None:
            given.append(StructuredOutput("choice", json.dumps(self.choice)))
        if self.grammar is not None:
            given.append(StructuredOutput("grammar", self.grammar))
        if self.json_object:
            given.append(StructuredOutput("json_object"))
        if self.structural_tag is not None:
            given.append(StructuredOutput("structural_tag", _json_text(self.structural_tag)))
        if len(given) > 1:
            kinds = ", ".join(form.kind for form in given)
            raise InvalidRequest(f"structured_outputs has {kinds}: allowed is one form", field="structured_outputs")
        return given[0] if given else None


def form_of(
    response_format: ResponseFormatBody | None, outputs: StructuredOutputsBody | None
) -> StructuredOutput | None:
    """The form a request asks for in either way. Raises InvalidRequest for both ways at once."""
    first = response_format.form() if response_format is not None else None
    second = outputs.form() if outputs is not None else None
    if first is not None and second is not None:
        raise InvalidRequest("structured_outputs cannot be combined with response_format", field="structured_outputs")
    return first or second


def _json_text(value: dict[str, Any] | str) -> str:
    return value if isinstance(value, str) else json.dumps(value)
