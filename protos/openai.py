"""What all bodies of the OpenAI HTTP API share.

An unknown field is refused. A field of the API that cannot be served is accepted with the values that change nothing
(NEUTRAL), and any other value is refused by name instead of being ignored. null is the default everywhere.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator

from rayline.protos.errors import InvalidRequest

ANY = "any value"  # the field is a label that changes no output
Allowed = tuple[object, ...] | str

NEUTRAL: dict[str, Allowed] = {
    "user": ANY,
    "safety_identifier": ANY,
    "prompt_cache_key": ANY,
    "prompt_cache_retention": ANY,
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "spaces_between_special_tokens": (True,),
}


class Body(BaseModel):
    """A JSON object whose unknown fields are refused and whose NEUTRAL fields may only say what changes nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[Mapping[str, Allowed]] = {}

    @model_validator(mode="before")
    @classmethod
    def drop_neutral(cls, values: Any) -> Any:
        """Raises InvalidRequest naming the field and the values it may have."""
        if not isinstance(values, dict):
            return values
        for field, allowed in cls.neutral.items():
            value = values.get(field)
            if value is not None and allowed != ANY and value not in allowed:
                choices = ", ".join(["null", *(repr(choice) for choice in allowed)])
                raise InvalidRequest(f"{field} = {value!r} is not supported: allowed is {choices}", field=field)
        return {field: value for field, value in values.items() if field not in cls.neutral}


class StreamOptions(Body):
    """What a stream carries besides its text. continuous_usage_stats: the usage so far in every chunk."""

    neutral = {"include_obfuscation": (False,)}

    include_usage: bool = False
    continuous_usage_stats: bool = False


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str = ""
    tokens: list[int]
