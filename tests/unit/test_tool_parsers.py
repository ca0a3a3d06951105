"""Tool calls in text: real outputs of each format, cut anywhere; nothing that a model said is lost."""

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tool_texts import EXAMPLES, TOOLS, WRITERS, Said, calls_of, parse, text_of

from rayline.protos.events import ToolCallDelta
from rayline.router.tools.formats import FORMATS
from rayline.router.tools.output import CallIds
from rayline.router.tools.parser import ToolParser

MARKERS = sorted({marker for format in FORMATS.values() for marker in format.markers})
SCRAPS = [*MARKERS, "<function=", "</function>", "<parameter=", "</parameter>", "now", "add", '"name"', '"arguments"']
SCRAPS += [*'{}[](),:;="\\\n ', "```json", "```", "1", "e", "null", "é", '{"name": "now"', "now(", "a=", ">"]


def cuts(text: str, draw: st.DrawFn) -> list[str]:
    """The text in pieces, cut where hypothesis likes."""
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@st.composite
def outputs_in_pieces(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """(format, output, its pieces): scraps of all formats in any order."""
    output = "".join(draw(st.lists(st.sampled_from(SCRAPS) | st.text(max_size=4), max_size=14)))
    return draw(st.sampled_from(sorted(FORMATS))), output, cuts(output, draw)


def without_layout(text: str) -> str:
    return re.sub(r"\s", "", text)


@pytest.mark.parametrize("said", EXAMPLES, ids=lambda said: f"{said.format}: {said.output[:30]}")
def test_an_output_is_read_as_text_and_calls(said: Said) -> None:
    for size in (1, 3, len(said.output)):
        pieces = [said.output[at : at + size] for at in range(0, len(said.output), size)]
        parsed = parse(said.format, pieces)
        assert (text_of(parsed), calls_of(parsed)) == (said.text, said.calls)


@given(st.data())
def test_real_outputs_say_the_same_wherever_they_are_cut(data: st.DataObject) -> None:
    said = data.draw(st.sampled_from(EXAMPLES))
    parsed = parse(said.format, cuts(said.output, data.draw))
    assert (text_of(parsed), calls_of(parsed)) == (said.text, said.calls)


@given(outputs_in_pieces())
def test_any_output_says_the_same_wherever_it_is_cut(drawn: tuple[str, str, list[str]]) -> None:
    format, output, pieces = drawn
    whole, cut = parse(format, [output]), parse(format, pieces)
    assert (text_of(cut), calls_of(cut)) == (text_of(whole), calls_of(whole))


@given(outputs_in_pieces())
def test_an_output_without_calls_comes_out_as_it_was(drawn: tuple[str, str, list[str]]) -> None:
    format, output, pieces = drawn
    parsed = parse(format, pieces)
    if not calls_of(parsed):
        assert text_of(parsed) == output


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(sorted(TOOLS)), st.dictionaries(st.text(), JSON, max_size=4), st.booleans()), max_size=3
)


@pytest.mark.parametrize("format", WRITERS)
@given(calls=CALLS, data=st.data())
def test_calls_with_any_arguments_come_out_as_they_went_in(
    format: str, calls: list[tuple[str, dict[str, object], bool]], data: st.DataObject
) -> None:
    written = tuple((name, json.dumps(arguments, ensure_ascii=escaped)) for name, arguments, escaped in calls)
    parsed = parse(format, cuts(WRITERS[format](written), data.draw) if calls else [])
    assert calls_of(parsed) == written
    assert text_of(parsed) == ""


PYTHON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "class", "größe"]), PYTHON), st.data())
def test_python_literals_become_the_json_they_mean(arguments: dict[str, object], data: st.DataObject) -> None:
    output = f"[add({', '.join(f'{name}={value!r}' for name, value in arguments.items())}), now()]"
    (name, text), last = calls_of(parse("pythonic", cuts(output, data.draw)))
    assert name == "add" and json.loads(text) == arguments
    assert last == ("now", "{}")


@given(st.text(st.characters(exclude_categories=["Cs"])), st.data())
def test_a_string_between_tags_is_told_as_it_is(content: str, data: st.DataObject) -> None:
    output = f"<function=write>\n<parameter=content>\n{content}\n</parameter>\n</function>"
    ((name, text),) = calls_of(parse("qwen3_coder", cuts(output, data.draw)))
    if "</parameter>" not in content:
        assert name == "write" and json.loads(text) == {"content": content}


def test_arguments_come_piece_by_piece() -> None:
    parsed = parse("hermes", ['<tool_call>{"name": "add", "arguments"', ': {"a": 1', '2, "b"', ": 3}}", "</tool_call>"])
    call_id = CallIds((1, 2, 3)).of(0)
    assert [part.calls for part in parsed] == [
        (),
        (ToolCallDelta(0, call_id, "add", '{"a": 1'),),
        (ToolCallDelta(0, arguments='2, "b"'),),
        (ToolCallDelta(0, arguments=": 3}"),),
        (),
        (),
    ]


def test_prose_is_told_at_once_but_for_what_may_begin_a_call() -> None:
    parser = ToolParser(FORMATS["hermes"], TOOLS, CallIds())
    assert [parser.push(text).text for text in ("Hello ", "world <", "b> <tool", "s>")] == [
        "Hello",
        " world",
        " <b>",
        " <tools>",
    ]


def test_json_that_is_no_call_is_not_held_back() -> None:
    parser = ToolParser(FORMATS["llama3"], TOOLS, CallIds())
    assert parser.push('{"answer": "a lo').text == '{"answer": "a lo'


def test_markers_that_are_special_tokens_are_in_no_text() -> None:
    hidden = frozenset(FORMATS["mistral"].markers)
    assert text_of(parse("mistral", ["Well[TOOL_", "CALLS] no[AR", "GS]thing[CALL_ID]."], hidden)) == "Well nothing."
    assert text_of(parse("mistral", ["Well [TOOL_CALLS]"])) == "Well [TOOL_CALLS]"


@pytest.mark.parametrize("format", WRITERS)
def test_of_parallel_calls_only_as_many_are_told_as_are_wanted(format: str) -> None:
    output = WRITERS[format]((("add", '{"a": 1}'), ("now", "{}")))
    assert calls_of(parse(format, list(output), most=1)) == (("add", '{"a": 1}'),)


def test_ids_of_calls_are_a_function_of_prompt_choice_and_number() -> None:
    ids = [CallIds(prompt, choice).of(index) for prompt in [(), (1,), (1, 2)] for choice in (0, 1) for index in (0, 1)]
    assert len(set(ids)) == len(ids) and CallIds((1,)).of(0) == CallIds([1]).of(0)
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", call_id) for call_id in ids)
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", CallIds((1,), style="mistral").of(0))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scrap", ["<tool_call>", '{"name": ', "\n", "add(a=", "<function=a>"])
def test_an_output_of_endless_scraps_costs_little(format: str, scrap: str) -> None:
    """What a model in a loop says; a piece takes microseconds, however much came before."""
    began_s = time.process_time()
    parsed = parse(format, ["[", *[scrap] * 5_000])
    assert time.process_time() - began_s < 2.0
    assert calls_of(parsed) or text_of(parsed) == "[" + scrap * 5_000
