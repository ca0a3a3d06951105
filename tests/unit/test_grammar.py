"""Each kind of structured output as one grammar, and tool calls in a model's notation."""

import json
import re

import pytest
from grammars import accepts, matcher, tokenizer, written
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.protos.errors import InvalidRequest
from rayline.protos.types import StructuredOutput, StructureKind
from rayline.router.grammars.grammar import TaggedSchema, grammar_text, tool_grammar

INTEGER, BOOLEAN = '{"type": "integer"}', '{"type": "boolean"}'
TAGS = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"},
        {"begin": "<f=b>", "schema": {"type": "boolean"}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}


def grammar(kind: StructureKind, text: str = "") -> str:
    return grammar_text(StructuredOutput(kind, text), {})


def why(kind: StructureKind, text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        grammar(kind, text)
    assert caught.value.field == "structured_output"
    return caught.value.message


def test_a_json_object_is_any_object() -> None:
    text = grammar("json_object")
    assert accepts(text, '{"a": [1, {"b": null}]}')
    assert not accepts(text, "[1]") and not accepts(text, "3")


REGEXES = [
    r"[a-z]{3}-\d{2,4}",
    r"^(yes|no)$",
    r"^a|b$",
    r"a/b\/c",
    r"price: \$[0-9]+",
    r"x\\$",
    "a\nb",
    r'"[^"]*"',
    r"(?i)abc",
    r"[a-z]{1,3}@[a-zé]{1,2}\.(com|org)",
    r"[^\n]{0,20}",
    r"",
]


@pytest.mark.parametrize("pattern", REGEXES)
def test_random_tokens_that_follow_a_regular_expression_match_it(pattern: str) -> None:
    text = grammar("regex", pattern)
    found = [answer for seed in range(12) if (answer := written(text, seed)) is not None]
    assert found and all(re.fullmatch(pattern, answer) for answer in found)


@pytest.mark.parametrize(("pattern", "wrong"), [("a|b", "ab"), (r"a\$", "a"), ("^a$", "^a$"), ("a.b", "a\nb")])
def test_what_does_not_match_is_not_taken(pattern: str, wrong: str) -> None:
    assert not re.fullmatch(pattern, wrong)
    assert not accepts(grammar("regex", pattern), wrong)


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6))
def test_a_choice_is_exactly_one_of_the_texts(choices: list[str]) -> None:
    text = grammar("choice", json.dumps(choices, ensure_ascii=False))
    assert all(accepts(text, choice) for choice in choices)
    assert written(text, 0) in choices
    longer = max(choices, key=len) + "x"
    assert not accepts(text, longer) and not accepts(text, "")


def test_ten_thousand_choices_are_one_automaton() -> None:
    choices = [f"choice {i * 7919 % 100_003}" for i in range(10_000)]
    text = grammar("choice", json.dumps(choices))
    assert accepts(text, choices[-1]) and not accepts(text, "choice x")


@pytest.mark.parametrize("choices", ["[]", '[""]', "[1]", '"a"', "{}", "x", json.dumps(["a"] * 10_001)])
def test_choices_are_a_list_of_texts(choices: str) -> None:
    assert "structured_output" in why("choice", choices)


def test_a_lark_grammar_is_taken_as_it_is() -> None:
    text = grammar("grammar", 'start: NAME "=" NUMBER\nNAME: /[a-z]+/\nNUMBER: /[0-9]+/\n%ignore " "')
    assert accepts(text, "ab = 12") and not accepts(text, "ab = c")


def test_a_gbnf_grammar_is_translated() -> None:
    text = grammar("grammar", 'root ::= name "=" [0-9]+\nname ::= [a-z]+')
    assert accepts(text, "ab=12") and not accepts(text, "ab=")


def test_neither_notation_is_refused_with_the_line() -> None:
    assert "line 2" in why("grammar", 'root ::= "a"\n$')


@pytest.mark.parametrize("text", ["", "hello", "x<f=a>12</f> and <f=b>true</f>", "a<f<f=a>1</f><", "<f=a>-3</f>"])
def test_text_is_free_until_a_trigger(text: str) -> None:
    assert accepts(grammar("structural_tag", json.dumps(TAGS)), text)


@pytest.mark.parametrize("text", ["<f=a>true</f>", "<f=c", "x<f=a>1", "<f=a>1</g>", "x<f="])
def test_what_follows_a_trigger_is_one_of_its_tags(text: str) -> None:
    assert not accepts(grammar("structural_tag", json.dumps(TAGS)), text)


@pytest.mark.parametrize(
    "change",
    [
        {"triggers": []},
        {"triggers": ["<g="]},
        {"triggers": ["<f=", "<f=a"]},
        {"triggers": [""]},
        {"triggers": [3]},
        {"triggers": "x"},
        {"structures": []},
        {"structures": [3]},
        {"structures": [{"begin": "<f=", "schema": {}}]},
        {"structures": [{"begin": "<f=", "schema": {"not": {}}, "end": ""}]},
        {"structures": [{"begin": 3, "schema": {}, "end": ""}]},
        {"format": {}},
    ],
)
def test_structural_tags_that_are_none_are_refused(change: dict[str, object]) -> None:
    assert "structured_output" in why("structural_tag", json.dumps(TAGS | change))


def test_a_required_call_is_one_of_the_tools_and_nothing_else() -> None:
    tags = [TaggedSchema("<a>", INTEGER, "</a>"), TaggedSchema("<b>", BOOLEAN, "</b>")]
    text = tool_grammar(tags, {}, separator="\n")
    assert accepts(text, "<a>1</a>") and accepts(text, "<a>1</a>\n<b>true</b>\n<a>2</a>")
    assert not accepts(text, "") and not accepts(text, "hm <a>1</a>") and not accepts(text, "<a>1</a><b>true</b>")


def test_no_more_calls_than_allowed() -> None:
    tags = [TaggedSchema("<a>", INTEGER, "</a>")]
    assert not accepts(tool_grammar(tags, {}, most=1), "<a>1</a><a>1</a>")
    twice = tool_grammar(tags, {}, most=2)
    assert accepts(twice, "<a>1</a><a>1</a>") and not accepts(twice, "<a>1</a><a>1</a><a>1</a>")


def test_calls_may_be_a_list() -> None:
    tags = [TaggedSchema(f'{{"name": "{name}", "arguments": ', '{"type": "object"}', "}") for name in "ab"]
    text = tool_grammar(tags, {}, prefix="[", separator=", ", suffix="]")
    assert accepts(text, '[{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": 1}}]')
    assert not accepts(text, "[]") and not accepts(text, '[{"name": "c", "arguments": {}}]')


def test_special_tokens_in_a_frame_are_the_tokens_themselves() -> None:
    words = tokenizer()
    name, token_id = next((name, i) for name, i in sorted(words.special_names.items()) if i != words.eos_id)
    tags = [TaggedSchema(f"{name}a:", INTEGER), TaggedSchema(f"{name}b:", BOOLEAN)]
    place = matcher(tool_grammar(tags, words.special_names, triggers=[name]))
    for token in words.encode("some text", add_special_tokens=False):
        place.consume(token)
    assert place.mask().allows(token_id)
    place.consume(token_id)
    assert not place.mask().allows(words.eos_id or 0)
    for token in words.encode("b:true", add_special_tokens=False):
        place.consume(token)
    assert place.mask().allows(words.eos_id or 0)


def test_a_tool_whose_schema_cannot_be_followed_is_named_by_the_callers_field() -> None:
    with pytest.raises(InvalidRequest, match="keyword 'not'") as caught:
        tool_grammar([TaggedSchema("<a>", '{"not": {}}')], {}, field="tools[0].parameters")
    assert caught.value.field == "tools[0].parameters"


def test_tools_without_a_call_are_none() -> None:
    with pytest.raises(InvalidRequest, match="0 tags"):
        tool_grammar([], {})
