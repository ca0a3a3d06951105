"""The desk: grammars checked beside everything else, within limits that no text can break."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayline.protos.errors import InternalError, InvalidRequest, Overloaded
from rayline.protos.types import StructuredOutput, StructureKind
from rayline.router.grammars import desk as grammar_desk
from rayline.router.grammars.desk import GrammarDesk
from rayline.router.grammars.sandbox import GrammarSandbox


@pytest.fixture(scope="module")
def desk() -> Iterator[GrammarDesk]:
    desk = GrammarDesk({"<|tool|>": 7, "[CALL]": 300}, 1000)
    yield desk
    desk.close()


def chain(size: int, link: Any, last: Any) -> str:
    """A schema of `size` definitions, each of which refers to the next."""
    definitions = {f"n{i}": link({"$ref": f"#/$defs/n{i + 1}"}) for i in range(size)}
    return json.dumps({"$ref": "#/$defs/n0", "$defs": {**definitions, f"n{size}": last}})


def nested(text: str, times: int) -> str:
    return text * times


HOSTILE: dict[str, tuple[StructureKind, str]] = {
    "references of references": ("json_schema", chain(4000, lambda next: next, {"type": "integer"})),
    "objects of objects": ("json_schema", chain(3000, lambda next: {"properties": {"a": next}}, {})),
    "2^60 of all": ("json_schema", chain(60, lambda next: {"allOf": [next, next]}, {"type": "integer"})),
    "2^60 of any": ("json_schema", chain(60, lambda next: {"anyOf": [next, next]}, {"type": "integer"})),
    "3^12 of all": (
        "json_schema",
        json.dumps(
            {"allOf": [{"anyOf": [{"properties": {f"p{i}": {"const": j}}} for j in range(3)]} for i in range(12)]}
        ),
    ),
    "patterns that meet": (
        "json_schema",
        json.dumps({"allOf": [{"type": "string", "pattern": f"^(.*a.{{{i}}}.*)$"} for i in range(10, 40)]}),
    ),
    "ten thousand names": ("json_schema", json.dumps({"required": [f"k{i}" for i in range(10_000)]})),
    "ten thousand values": ("json_schema", json.dumps({"enum": [f"value-{i * 7919}" for i in range(10_000)]})),
    "a milliard items": ("json_schema", '{"type": "array", "minItems": 1000000000}'),
    "a milliard letters": ("json_schema", '{"type": "string", "minLength": 1000000000}'),
    "nothing fits": ("json_schema", '{"type": "string", "minLength": 5, "maxLength": 2}'),
    "references to itself": ("json_schema", '{"$ref": "#"}'),
    "powers of repetition": ("regex", "((a{0,1000}){0,1000}){0,1000}"),
    "thousands of stars": ("regex", ".*" * 5000),
    "thousands of perhapses": ("regex", "".join(f"(x{i})?" for i in range(20_000))),
    "parentheses": ("regex", nested("(", 50_000) + "a" + nested(")", 50_000)),
    "rules of rules": ("grammar", "start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(9000)) + '\na9000: "x"'),
    "terminals of terminals": (
        "grammar",
        "start: A0\n" + "\n".join(f'A{i}: A{i + 1} "y"' for i in range(9000)) + '\nA9000: "x"',
    ),
    "2^60 terminals": (
        "grammar",
        "start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(60)) + '\nA60: "x"',
    ),
    "no way out": ("grammar", "start: a\na: b\nb: a"),
    "groups of groups": ("grammar", "root ::= " + nested("(", 50_000)),
    "too long": ("grammar", 'root ::= "' + "x" * 300_000 + '"'),
}
ENDS_THE_PROCESS = {"references of references", "objects of objects", "patterns that meet", "rules of rules"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_done_soon(desk: GrammarDesk, name: str) -> None:
    kind, text = HOSTILE[name]
    began = time.process_time()
    try:
        desk.grammar_now(StructuredOutput(kind, text))
    except InvalidRequest as error:
        assert error.field == "structured_output" and len(error.message) < 600
        assert name not in {"a milliard items", "ten thousand values"}
    else:
        assert name not in ENDS_THE_PROCESS
    assert time.process_time() - began < 1.0  # of this process, which is not where it is compiled


def test_after_a_grammar_that_ended_its_process_the_next_is_served(desk: GrammarDesk) -> None:
    for name in sorted(ENDS_THE_PROCESS):
        with pytest.raises(InvalidRequest):
            desk.grammar_now(StructuredOutput(HOSTILE[name][0], HOSTILE[name][1] + " "))
        assert desk.grammar_now(StructuredOutput("regex", f"a{{{len(name)}}}"))


async def test_a_hostile_grammar_does_not_hold_up_the_event_loop(desk: GrammarDesk) -> None:
    kind, text = HOSTILE["patterns that meet"]
    task = asyncio.create_task(desk.grammar(StructuredOutput(kind, text + "\n")))
    longest_s, before = 0.0, time.thread_time()  # other processes may hold up this one
    while not task.done():
        await asyncio.sleep(0.005)
        now = time.thread_time()
        longest_s, before = max(longest_s, now - before), now
    with pytest.raises(InvalidRequest, match="too long to compile"):
        await task
    assert longest_s < 0.3


async def test_others_are_served_while_a_hostile_one_is_tried(desk: GrammarDesk) -> None:
    kind, text = HOSTILE["patterns that meet"]
    for number in range(grammar_desk.SANDBOXES):
        await desk.grammar(StructuredOutput("regex", f"all processes run {number}"))
    hostile = asyncio.create_task(desk.grammar(StructuredOutput(kind, text + "\t")))
    await asyncio.sleep(0)
    await desk.grammar(StructuredOutput("regex", "another one"))
    assert not hostile.done()
    with pytest.raises(InvalidRequest):
        await hostile


async def test_only_so_many_grammars_wait(desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_desk, "MAX_WAITING", 3)
    asked = [desk.grammar(StructuredOutput("regex", f"wait{i}")) for i in range(8)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(answer, str) for answer in answers) == 3
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 5


def test_a_grammar_is_checked_once(desk: GrammarDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = StructuredOutput("regex", "once"), StructuredOutput("regex", "(once")
    first = desk.grammar_now(good)
    with pytest.raises(InvalidRequest) as refused:
        desk.grammar_now(bad)
    monkeypatch.setattr(GrammarSandbox, "text", None)
    assert desk.grammar_now(good) == first
    with pytest.raises(InvalidRequest, match="cannot be followed") as again:
        desk.grammar_now(bad)
    assert again.value is not refused.value


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrammarSandbox, "text", lambda self, kind, text, field: text * 2)
    monkeypatch.setattr(grammar_desk, "MAX_REMEMBERED_BYTES", 3000)
    desk = GrammarDesk({}, 1000)
    for i in range(100):
        desk.grammar_now(StructuredOutput("regex", f"{i:0100}"))
    assert len(desk._known) == 10 and desk._known_bytes == 3000
    desk.close()


def test_the_field_is_the_callers(desk: GrammarDesk) -> None:
    with pytest.raises(InvalidRequest, match="response_format") as caught:
        desk.grammar_now(StructuredOutput("json_schema", '{"not": {}}'), field="response_format")
    assert caught.value.field == "response_format"


def test_special_tokens_are_known_by_name_and_id(desk: GrammarDesk) -> None:
    assert desk.grammar_now(StructuredOutput("grammar", 'start: <|tool|> "x" <[300]>'))
    with pytest.raises(InvalidRequest, match="unknown special token"):
        desk.grammar_now(StructuredOutput("grammar", "start: <|other|>"))


def test_a_finished_text_is_checked_too(desk: GrammarDesk) -> None:
    good = '{"grammars":[{"lark_grammar":"start: \\"a\\""}]}'
    assert desk.checked_now(good, "tools") == good
    with pytest.raises(InvalidRequest, match="tools"):
        desk.checked_now('{"grammars":[{"lark_grammar":"start: b"}]}', "tools")


def test_processes_start_with_the_first_question_and_end_with_the_desk() -> None:
    before = {child.pid for child in psutil.Process().children()}
    desk = GrammarDesk({}, 1000)
    assert {child.pid for child in psutil.Process().children()} == before
    desk.grammar_now(StructuredOutput("regex", "a"))
    started = {child.pid for child in psutil.Process().children()} - before
    assert len(started) == 1
    desk.close()
    assert not started & {child.pid for child in psutil.Process().children()}


def test_a_process_that_dies_between_two_questions_is_replaced() -> None:
    sandbox = GrammarSandbox({}, 1000)
    assert sandbox.text("regex", "a", "f")
    assert sandbox._child is not None
    os.kill(sandbox._child.pid, signal.SIGKILL)
    sandbox._child.wait()
    assert sandbox.text("regex", "b", "f")
    sandbox.close()


@pytest.mark.parametrize("executable", ["/bin/false", "/nowhere/python"])
def test_a_process_that_cannot_start_is_no_fault_of_the_request(
    monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(InternalError, match="does not start"):
        GrammarSandbox({}, 1000).text("regex", "a", "f")


KINDS: list[StructureKind] = ["json_schema", "json_object", "regex", "choice", "grammar", "structural_tag"]
PIECES = st.sampled_from(
    ["start", ":", "root", "::=", '"a"', "/", "[", "]", "(", ")", "|", "*", "{", "}", "%json", "\\", "\n", "x"]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.sampled_from(KINDS), st.text(max_size=40) | st.lists(PIECES, max_size=25).map("".join))
def test_any_text_is_a_grammar_or_an_invalid_request(desk: GrammarDesk, kind: StructureKind, text: str) -> None:
    try:
        desk.grammar_now(StructuredOutput(kind, text))
    except InvalidRequest as error:
        assert error.field == "structured_output"
