"""What a grammar must allow so that tools are called: read back by the parser of the same format."""

import json
from collections.abc import Mapping
from itertools import product

import grammars
import pytest
from jsonschema import validate
from tool_texts import TOOLS, calls_of, parse, text_of

from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolChoice
from rayline.protos.errors import InvalidRequest
from rayline.protos.openai_chat import ChatCompletionBody
from rayline.protos.request_wire import spec_of, spec_to_pb
from rayline.protos.types import StructuredOutput
from rayline.router.grammars.grammar import tool_grammar
from rayline.router.grammars.wish import grammar_wish
from rayline.router.output_form import ChatFormats
from rayline.router.tools.call_grammar import ANY_OBJECT, NO_PARAMETERS, CallGrammar, call_grammar
from rayline.router.tools.formats import FORMATS

ADD, NOW = Tool("add", "", json.dumps(TOOLS["add"]), strict=True), Tool("now")
ANSWER = StructuredOutput("json_schema", '{"type": "array"}')


def grammar(
    format: str, answer: StructuredOutput | None = None, parallel: bool = True, **choice: str
) -> CallGrammar | None:
    tool_choice = ToolChoice(**choice)  # type: ignore[arg-type]
    conversation = Conversation((ChatMessage("user", "x"),), (ADD, NOW), tool_choice, parallel)
    return call_grammar(FORMATS[format], conversation, answer)


def written(grammar: CallGrammar, order: tuple[int, ...]) -> str:
    """An output that the grammar allows: the tags in some order, with arguments."""
    arguments = ['{"a": 1.5}', "{}"]
    calls = [grammar.tags[i].begin + arguments[i] + grammar.tags[i].end for i in order]
    return grammar.prefix + grammar.separator.join(calls) + grammar.suffix


def calls(grammar: CallGrammar, arguments: str) -> str:
    """A call of the first tool, the frame of all calls around it."""
    return grammar.prefix + grammar.tags[0].begin + arguments + grammar.tags[0].end + grammar.suffix


def compiled(grammar: CallGrammar | None, special_ids: Mapping[str, int] | None = None) -> str:
    """The text that workers compile. The embedded model knows no format's markers, so they are plain text in it."""
    assert grammar is not None
    return tool_grammar(
        grammar.tags,
        special_ids or {},
        triggers=grammar.triggers,
        opener=grammar.opener,
        banned=grammar.banned,
        separator=grammar.separator,
        prefix=grammar.prefix,
        suffix=grammar.suffix,
        most=grammar.most,
    )


@pytest.mark.parametrize("format", FORMATS)
def test_whatever_a_model_writes_under_the_grammar_is_calls_that_fit_the_tools(format: str) -> None:
    """Random tokens among those the grammar allows."""
    text = compiled(grammar(format, mode="required"))
    outputs = [output for seed in range(4) if (output := grammars.written(text, seed)) is not None]
    assert outputs
    for output in outputs:
        parsed = parse(format, list(output))
        assert text_of(parsed) == "" and calls_of(parsed)
        for name, arguments in calls_of(parsed):
            validate(json.loads(arguments), TOOLS[name])


@pytest.mark.parametrize("format", FORMATS)
def test_the_grammar_takes_calls_of_the_tools_and_nothing_else(format: str) -> None:
    forced = grammar(format, mode="required")
    assert forced is not None
    text, output = compiled(forced), written(forced, (0, 1, 0))
    assert grammars.accepts(text, output)
    assert not grammars.accepts(text, "")
    assert not grammars.accepts(text, "Well. " + output)
    assert not grammars.accepts(text, output.replace("add", "sub"))
    assert not grammars.accepts(text, output.replace("1.5", '"one"'))
    assert not grammars.accepts(compiled(grammar(format, mode="required", parallel=False)), output)


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if not format.opener])
def test_under_a_trigger_text_is_free_and_strict_tools_are_not(format: str) -> None:
    free = grammar(format)
    assert free is not None
    add, text = free.tags[0], compiled(free)
    for output in ("", "Hello.", f'Hm. {add.begin}{{"a": 2}}{add.end}'):
        assert grammars.accepts(text, output)
    assert not grammars.accepts(text, f'Hm. {add.begin}{{"a": "two"}}{add.end}')


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_forced_is_what_the_parser_reads(format: str) -> None:
    forced = grammar(format, mode="required")
    assert forced is not None and forced.most is None and not forced.triggers
    assert [tag.schema for tag in forced.tags] == [ADD.parameters, NO_PARAMETERS]
    calls = (("add", '{"a": 1.5}'), ("now", "{}"))
    for order in [(0,), (1,), *product((0, 1), repeat=3)]:
        parsed = parse(format, list(written(forced, order)))
        assert (text_of(parsed), calls_of(parsed)) == ("", tuple(calls[i] for i in order))


@pytest.mark.parametrize("format", FORMATS)
def test_a_named_tool_is_called_once(format: str) -> None:
    forced = grammar(format, mode="named", name="now")
    assert forced is not None and forced.most == 1
    assert calls_of(parse(format, [written(forced, (0,)).replace('{"a": 1.5}', "{}")])) == (("now", "{}"),)
    single = grammar(format, mode="required", parallel=False)
    assert single is not None and single.most == 1 and len(single.tags) == 2


@pytest.mark.parametrize("format", FORMATS)
def test_strict_tools_bind_the_calls_that_the_model_makes_by_itself(format: str) -> None:
    free = grammar(format)
    assert free is not None and free.triggers == (FORMATS[format].trigger,)
    assert [tag.schema for tag in free.tags] == [ADD.parameters, ANY_OBJECT]
    if free.opener:
        return
    assert all(tag.begin.startswith(free.triggers[0]) for tag in free.tags)
    parsed = parse(format, ["Well. ", free.tags[0].begin, "{}", free.tags[0].end])
    assert (text_of(parsed), calls_of(parsed)) == ("Well.", (("add", "{}"),))


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if format.opener])
def test_where_nothing_marks_a_call_an_output_that_begins_as_one_is_strict_calls(format: str) -> None:
    """And no other text begins so: what the parser reads as a call of a strict tool always fits its schema."""
    free = grammar(format)
    assert free is not None
    text, trigger = compiled(free), free.triggers[0]
    good, other, bad = (calls(free, arguments) for arguments in ('{"a": 1.5}', '{"a": 2}', '{"a": "one"}'))
    for output in ("", " \n", "Hello.", f"Hello {free.opener}", f"See {bad}", good, f"Well. {trigger}{good}"):
        assert grammars.accepts(text, output), output
    for blank in ("", " ", "\n", "\x1c", f"Well. {trigger}", trigger):
        assert not grammars.accepts(text, blank + bad), blank
    assert not grammars.accepts(text, free.opener + "1")
    assert not grammars.accepts(text, good + bad) and not grammars.accepts(text, good + " And more.")
    both = f"{good.removesuffix(free.suffix)}{free.separator}{other.removeprefix(free.prefix)}"
    single = grammar(format, parallel=False)
    assert grammars.accepts(text, both) and not grammars.accepts(compiled(single), both)
    assert [name for name, _ in calls_of(parse(format, [both]))] == ["add", "add"]


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if format.opener])
def test_the_special_token_of_a_call_may_follow_prose_under_strict_tools(format: str) -> None:
    free = grammar(format)
    assert free is not None
    marked = compiled(free, {free.triggers[0]: 5})
    place = grammars.matcher(marked)
    for byte in b"Hm. ":
        place.consume(grammars.byte_ids()[byte])
    assert place.mask().allows(5)
    place.consume(5)
    assert not place.mask().allows(grammars.byte_ids()[ord("H")]), "calls, and nothing else"


def test_a_strict_tool_cannot_be_called_in_tags_that_no_schema_holds() -> None:
    free = grammar("qwen3_coder")
    assert free is not None
    text = compiled(free)
    assert grammars.accepts(text, "Less than: a < b, <func")
    assert not grammars.accepts(text, "<function=add>\n<parameter=a>\none\n</parameter>\n</function>")
    assert not grammars.accepts(text, "<tool_call>\n<function=add>")


def test_tools_that_are_not_strict_leave_the_model_free() -> None:
    conversation = Conversation((ChatMessage("user", "x"),), (NOW,))
    assert call_grammar(FORMATS["hermes"], conversation) is None
    assert grammar("hermes", mode="none") is None
    assert call_grammar(FORMATS["hermes"], Conversation((ChatMessage("user", "x"),))) is None


@pytest.mark.parametrize("format", FORMATS)
def test_an_answer_in_a_form_or_a_call_but_not_both(format: str) -> None:
    both = grammar(format, ANSWER)
    assert both is not None and both.most == 1 and not both.triggers
    assert (both.tags[0].begin, both.tags[0].schema, both.tags[0].end) == ("", ANSWER.text, "")
    assert calls_of(parse(format, [both.tags[2].begin, "{}", both.tags[2].end])) == (("now", "{}"),)
    assert text_of(parse(format, ["[1, 2]"])) == "[1, 2]"
    anything = grammar(format, StructuredOutput("json_object"))
    assert anything is not None and json.loads(anything.tags[0].schema) == {"type": "object"}


@pytest.mark.parametrize("kind", ["regex", "choice", "grammar", "structural_tag"])
def test_a_form_that_leaves_no_room_for_calls_is_refused(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=kind) as caught:
        grammar("hermes", StructuredOutput(kind, "x"))  # type: ignore[arg-type]
    assert caught.value.field == "structured_output"


def test_forced_calls_leave_no_room_for_a_formed_answer() -> None:
    with pytest.raises(InvalidRequest, match="required"):
        grammar("hermes", ANSWER, mode="required")


@pytest.mark.parametrize("format", FORMATS)
def test_strict_comes_through_both_doors(format: str) -> None:
    function = {"name": "add", "parameters": TOOLS["add"], "strict": True}
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    spec = ChatCompletionBody(**body, tools=[{"type": "function", "function": function}]).spec("r")
    message = spec_to_pb(spec)
    for said in (spec, spec_of(message, lambda: "r")):
        wish = grammar_wish(said, ChatFormats(FORMATS[format]), {})
        assert wish is not None and wish.field == "tools"
        assert '"number"' in json.loads(wish.text)["grammars"][0]["lark_grammar"]
    function["strict"] = False
    free = ChatCompletionBody(**body, tools=[{"type": "function", "function": function}]).spec("r")
    assert grammar_wish(free, ChatFormats(FORMATS[format]), {}) is None
