"""Values in other notations than JSON, as JSON text."""

import ast
import json
from collections.abc import Collection, Mapping
from typing import Any


def as_json(value: Any) -> str:
    """JSON text that UTF-8 can hold: half a surrogate pair stays an escape. Raises ValueError for NaN and infinity."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def parameter_types(schema: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """JSON types that each parameter of a function may have; "any" where the schema leaves it open, none where it is
    silent."""
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {key: _types_of(value) for key, value in properties.items() if isinstance(value, Mapping)}


def json_of(text: str, types: Collection[str]) -> str:
    """A value written as plain text, of one of these JSON types: as itself where it is such a value, else a string."""
    value = _value_of(text.strip())
    if "any" in types or _type_of(value) in types or (_type_of(value) == "integer" and "number" in types):
        return as_json(value)
    return as_json(text if "string" in types else value)


def _types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    types = {name for name in _listed(schema.get("type")) if isinstance(name, str)}
    types |= {_type_of(value) for value in [*_listed(schema.get("enum")), *_listed(schema.get("const"))]}
    for branch in (*_listed(schema.get("anyOf")), *_listed(schema.get("oneOf"))):
        types |= _types_of(branch) if isinstance(branch, Mapping) else set()
    return frozenset(types or ({"any"} if {"$ref", "allOf"} & schema.keys() else set()))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


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
