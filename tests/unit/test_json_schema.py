"""JSON schemas: texts that follow them validate, by JSON Schema's own validator; what is not followed is refused."""

import json
from typing import Any

import jsonschema
import pytest
from grammars import accepts, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayline.protos.errors import InvalidRequest
from rayline.router.grammars.json_schema import json_schema

SCHEMAS: dict[str, Any] = {
    "anything": {},
    "object": {"type": "object"},
    "closed": {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 9}, "b": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "typed rest": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "list": {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False, "minItems": 2},
    "enum": {"enum": ["red", 1, None, {"a": [1]}]},
    "const": {"const": {"x": 'quote " and \\'}},
    "any of": {"anyOf": [{"type": "string", "pattern": "^[a-f]{3}$"}, {"type": "boolean"}]},
    "one of, apart": {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "integer"}]},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ],
        "additionalProperties": False,
        "properties": {"a": True, "b": True},
    },
    "recursion": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v"],
                "additionalProperties": False,
            }
        },
    },
    "definitions": {
        "definitions": {"a": {"type": "boolean"}},
        "type": "array",
        "items": {"$ref": "#/definitions/a"},
        "maxItems": 4,
    },
    "ranges": {"type": "integer", "minimum": -17, "exclusiveMaximum": 4},
    "fractions": {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 5},
    "patterns": {"type": "string", "pattern": "^(a|b)+-[0-9]{2}$"},
    "pattern in the middle": {"type": "string", "pattern": "x[0-9]", "maxLength": 12},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^s_": {"type": "string", "maxLength": 3}, "^i_": {"type": "integer"}},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "types": {"type": ["string", "null", "boolean"], "maxLength": 4},
    "named like keywords": {
        "type": "object",
        "properties": {"not": {"type": "integer"}, "x-guidance": {"type": "null"}, "type": {"enum": ["a"]}},
        "required": ["not", "type"],
        "additionalProperties": False,
    },
    "date": {"type": "string", "format": "date"},
    "no-ops": {"type": "array", "uniqueItems": False, "nullable": False, "items": {"type": "null"}, "maxItems": 2},
    "annotated": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.com/a",
        "title": "A",
        "description": "d",
        "default": True,
        "examples": [True],
        "$comment": "c",
        "deprecated": False,
        "readOnly": True,
        "x-order": 3,
        "type": "boolean",
    },
}


def grammar(schema: Any) -> str:
    return json.dumps({"grammars": [{"json_schema": json_schema(json.dumps(schema), "response_format")}]})


def why(text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        json_schema(text, "response_format")
    assert caught.value.field == "response_format"
    return caught.value.message


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_tokens_that_follow_a_schema_validate(name: str) -> None:
    text = grammar(SCHEMAS[name])
    found = [answer for seed in range(12) if (answer := written(text, seed)) is not None]
    assert found
    for answer in found:
        jsonschema.validate(json.loads(answer), SCHEMAS[name])


values = st.recursive(
    st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def schemas(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas that some value fits, of the keywords that are followed."""
    small = st.integers(0, 4)
    leaves = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.tuples(st.integers(-500, 500), small).map(lambda r: {"type": "integer", "minimum": r[0], "maximum": sum(r)}),
        st.tuples(small, small).map(lambda r: {"type": "string", "minLength": r[0], "maxLength": sum(r)}),
        st.lists(values, min_size=1, max_size=3).map(lambda v: {"enum": v}),
        values.map(lambda v: {"const": v}),
    )
    if depth == 0:
        return leaves
    inner = schemas(depth - 1)
    members = st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3)
    return st.one_of(
        leaves,
        st.tuples(inner, small).map(lambda r: {"type": "array", "items": r[0], "maxItems": r[1]}),
        st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}),
        members.map(
            lambda m: {"type": "object", "properties": m, "required": sorted(m)[:2], "additionalProperties": False}
        ),
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(schemas(), st.integers(0, 99))
def test_whatever_schema_is_generated_its_texts_validate(schema: dict[str, Any], seed: int) -> None:
    answer = written(grammar(schema), seed)
    if answer is not None:
        jsonschema.validate(json.loads(answer), schema)


@settings(max_examples=60)
@given(values)
def test_a_value_fits_the_schema_that_is_just_this_value(value: Any) -> None:
    text = grammar({"const": value})
    assert accepts(text, json.dumps(value, ensure_ascii=False))
    assert not accepts(text, json.dumps([value], ensure_ascii=False))


@pytest.mark.parametrize("indent", [None, 2, 4, "\t"])
def test_a_value_may_be_laid_out_as_json_usually_is(indent: int | str | None) -> None:
    value = {"a": [1, {"b": "c"}], "d": {}}
    assert accepts(grammar({"type": "object"}), json.dumps(value, indent=indent))


def test_blanks_come_to_an_end() -> None:
    text = grammar(
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    )
    assert accepts(text, '{ "a" : 1 }') and accepts(text, "{\n" + " " * 64 + '"a":1}')
    assert not accepts(text, '{  "a":1}') and not accepts(text, "{\n" + " " * 65 + '"a":1}')


@pytest.mark.parametrize(
    "keyword",
    [
        "not",
        "if",
        "then",
        "contains",
        "propertyNames",
        "dependentRequired",
        "unevaluatedProperties",
        "$dynamicRef",
        "minLenght",
    ],
)
def test_a_keyword_that_is_not_followed_is_refused_by_name(keyword: str) -> None:
    assert f"keyword {keyword!r} at #/properties/a/items" in why(
        json.dumps({"properties": {"a": {"items": {keyword: {}}}}})
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("[", "is not JSON"),
        ('{"const": NaN}', "NaN is no JSON number"),
        ('{"const": "\\ud800"}', "is not JSON"),
        ("false", "an object, not False"),
        ("3", "an object, not 3"),
        ('{"x-guidance": {"lenient": true}}', "'x-guidance' at #"),
        ('{"uniqueItems": true}', "'uniqueItems' at #"),
        ('{"nullable": true}', "'nullable' at #"),
        ('{"$ref": "https://example.com/a"}', "references into the schema"),
        ('{"$ref": 3}', "references into the schema"),
        ('{"anyOf": {}}', "#/anyOf must be a list"),
        ('{"properties": []}', "#/properties must be an object"),
        ('{"items": 3}', "#/items must be a JSON schema"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ("[" * 200_000, "nested too deeply"),
        ('{"items":' * 150 + "{}" + "}" * 150, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(text: str, words: str) -> None:
    assert words in why(text)


@given(st.text() | values.map(json.dumps))
def test_any_text_is_a_schema_or_an_invalid_request(text: str) -> None:
    try:
        json_schema(text, "response_format")
    except InvalidRequest as error:
        assert error.field == "response_format"
