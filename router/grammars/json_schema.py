"""Which JSON schemas can be followed. What cannot is refused by name: nothing is ignored silently.

Follows JSON Schema 2020-12 and drafts 4 to 2019-09, as far as the grammar library implements them.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from rayline.protos.errors import InvalidRequest

MAX_DEPTH = 100  # objects and lists in one another
# Between the parts of a value: a blank, or a new line and its indentation. A model that has lost its way must go on.
WHITESPACE = r"(\x20|\r?\n[\x20\t]{0,64})"

VALUES = {  # keywords whose value is no schema
    *("$ref", "type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
ANNOTATIONS = {  # they say nothing about which values fit
    *("$schema", "$id", "id", "$anchor", "$comment", "$vocabulary", "title", "description", "default"),
    *("example", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType"),
    *("contentSchema", "discriminator", "externalDocs", "xml"),
}
SCHEMA = {"additionalProperties", "additionalItems"}  # their value is a schema,
SCHEMAS = {"anyOf", "allOf", "oneOf", "prefixItems"}  # a list of schemas,
NAMED_SCHEMAS = {"properties", "patternProperties", "$defs", "definitions"}  # schemas by name
NO_OPS = {"uniqueItems": False, "nullable": False}  # allowed to say what holds anyway


def json_schema(text: str, field: str) -> dict[str, Any]:
    """The grammar library's form of a JSON schema. Raises InvalidRequest naming what cannot be followed."""
    schema = parsed_json(text, field)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        _refuse(field, f"a JSON schema is an object, not {_named(schema)}")
    return {**_checked(schema, field, "#"), "x-guidance": {"whitespace_pattern": WHITESPACE}}


def parsed_json(text: str, field: str) -> Any:
    """JSON as the standard has it: no NaN, no half characters, nothing nested too deeply."""
    try:
        tree = json.loads(text, parse_constant=_not_json)
        text.encode()
        json.dumps(tree, ensure_ascii=False).encode()
    except RecursionError:
        _too_deep(field)
    except (ValueError, UnicodeError) as error:
        raise InvalidRequest(f"{field} is not JSON: {error}", field=field) from None
    for _ in _nodes(tree, field):
        pass
    return tree


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _nodes(tree: Any, field: str) -> Iterator[Any]:
    """Everything in a tree, without recursion. Raises InvalidRequest when it is nested too deeply."""
    layer, depth = [tree], 0
    while layer:
        yield from layer
        depth += 1
        if depth > MAX_DEPTH:
            _too_deep(field)
        below: list[Any] = []
        for node in layer:
            if isinstance(node, (dict, list)):
                below.extend(node.values() if isinstance(node, dict) else node)
        layer = below


def _checked(schema: Mapping[str, Any], field: str, path: str) -> dict[str, Any]:
    """A copy of a schema without keywords that say nothing."""
    kept: dict[str, Any] = {}
    for key, value in schema.items():
        where = f"{path}/{key}"
        if key in NO_OPS and value is NO_OPS[key]:
            continue
        if key in SCHEMA or (key == "items" and not isinstance(value, list)):
            kept[key] = _sub_schema(value, field, where)
        elif key in SCHEMAS or key == "items":
            kept[key] = [_sub_schema(item, field, f"{where}/{i}") for i, item in enumerate(_list(value, field, where))]
        elif key in NAMED_SCHEMAS:
            members = _object(value, field, where)
            kept[key] = {name: _sub_schema(member, field, f"{where}/{name}") for name, member in members.items()}
        elif key in VALUES:
            kept[key] = _plain_value(key, value, field, where)
        elif key in ("$schema", "$id", "id", "$anchor"):
            kept[key] = value  # references are found by these
        elif key not in ANNOTATIONS and (not key.startswith("x-") or key == "x-guidance"):
            _refuse(field, f"keyword {key!r} at {path} is not supported")
    return kept


def _plain_value(key: str, value: Any, field: str, where: str) -> Any:
    if key == "$ref" and not (isinstance(value, str) and value.startswith("#")):
        _refuse(field, f"$ref = {value!r} at {where} is not supported: allowed are references into the schema itself")
    return value


def _sub_schema(value: Any, field: str, where: str) -> Any:
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        _refuse(field, f"{where} must be a JSON schema, not {_named(value)}")
    return _checked(value, field, where)


def _list(value: Any, field: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(field, f"{where} must be a list, not {_named(value)}")
    return value


def _object(value: Any, field: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(field, f"{where} must be an object, not {_named(value)}")
    return value


def _named(value: Any) -> str:
    return repr(value)[:60]


def _too_deep(field: str) -> NoReturn:
    _refuse(field, f"it is nested too deeply: allowed are {MAX_DEPTH} objects and lists in one another")


def _refuse(field: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{field} cannot be followed: {why}", field=field)
