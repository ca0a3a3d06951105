"""Values in other notations than JSON, as JSON text."""

import ast
import json
from collections.abc import Collection
from typing import Any


def as_json(value: Any) -> str:
    """JSON text that UTF-8 can hold: half a surrogate pair stays an escape. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def json_of(text: str, types: Collection[str]) -> str:
    """A value written as plain text, of one of these JSON types: as itself where it is such a value, else a string."""
    value = _value_of(text.strip())
    if "any" in types or _type_of(value) in types or (_type_of(value) == "integer" and "number" in types):
        return as_json(value)
    return as_json(text if "string" in types else value)


def _value_of(text: str) -> Any:
    """The JSON value or Python literal that `text` is, else the text."""
    try:
        value = json.loads(text)
        as_json(value)
        return value
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
        as_json(value)
        return value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null" if value is None else "array")
