"""Structured output from the engine of the embedded model: nasty texts, which fit all the same."""

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from grammars import byte_ids

from rayline.deploy.llm import LLM
from rayline.protos.errors import InvalidRequest
from rayline.protos.events import Failed, Finished, FinishReason, TokenEvent
from rayline.protos.types import (
    EngineRequest,
    SamplingParams,
    StructuredOutput,
    StructureKind,
    Thinking,
    TokenRules,
)
from rayline.router.grammars.grammar import TaggedSchema, grammar_text, tool_grammar
from rayline.workers.engine import Engine

EOS = 2
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["city"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5},
    {"type": "string", "minLength": 3, "maxLength": 20},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"enum": ["north", "south", 7, None]},
    {"type": "string", "format": "uuid"},
    {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False},
    {"type": "array", "items": PERSON["$defs"]["place"], "maxItems": 2},
]
REGEXES = [r"[A-Z]{2}[0-9]{1,4}", r"(yes|no|maybe), (really|not)\.", r"\([0-9]{3}\) [0-9]{3}-[0-9]{4}", "a{3,30}"]
CHOICES = ["positive", "negative", "neutral", "neutral, but"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("embedded", threads=1, max_model_len=1024) as llm:
        yield llm


def wild(kind: StructureKind, text: str, seed: int, **changes: Any) -> SamplingParams:
    wanted = StructuredOutput(kind, text)
    return SamplingParams(
        **({"temperature": 1.5, "seed": seed, "max_tokens": 400, "structured_output": wanted} | changes)
    )


def grammar_of(params: SamplingParams) -> str:
    assert params.structured_output is not None
    return grammar_text(params.structured_output, {})


def answers(llm: LLM, params: Sequence[SamplingParams]) -> list[tuple[str, FinishReason]]:
    found = llm.generate(["Answer: "] * len(params), list(params))
    return [(one.choices[0].text, one.choices[0].finish_reason) for one in found]


def request(llm: LLM, grammar: str, params: SamplingParams, *, thinking: Thinking | None = None) -> EngineRequest:
    ids = llm.tokenizer.encode("Answer: ")
    return EngineRequest("r", ids, params, rules=TokenRules(grammar=grammar, thinking=thinking))


def run(engine: Engine, requests: Sequence[EngineRequest]) -> tuple[dict[str, list[int]], dict[str, Finished | Failed]]:
    """Output ids and endings by request id."""
    tokens: dict[str, list[int]] = {one.request_id: [] for one in requests}
    ends: dict[str, Finished | Failed] = {}
    for one in requests:
        engine.add(one)
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, TokenEvent):
                tokens[event.request_id].append(event.token_id)
            elif isinstance(event, Finished | Failed):
                ends[event.request_id] = event
    return tokens, ends


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_a_batch_of_wild_texts_validates(llm: LLM, schema: dict[str, Any]) -> None:
    wished = [wild("json_schema", json.dumps(schema), seed) for seed in range(8)]
    ended = [text for text, reason in answers(llm, wished) if reason is FinishReason.STOP]
    assert len(ended) >= 6
    for text in ended:
        jsonschema.validate(json.loads(text), schema)


def test_every_kind_in_one_batch_with_free_requests_between(llm: LLM) -> None:
    wished = [
        *(wild("json_schema", json.dumps(PERSON), seed) for seed in range(3)),
        *(wild("json_object", "", seed) for seed in range(3)),
        *(wild("regex", pattern, seed) for seed, pattern in enumerate(REGEXES)),
        *(wild("choice", json.dumps(CHOICES), seed) for seed in range(3)),
        wild("grammar", 'start: NAME "=" NUMBER\nNAME: /[a-z]{1,9}/\nNUMBER: /[0-9]{1,9}/', 0),
        wild("grammar", 'root ::= [a-z]{1,9} "=" [0-9]{1,9}', 0),
    ]
    free = [SamplingParams(temperature=1.5, seed=seed, max_tokens=30) for seed in range(3)]
    alone = answers(llm, free)
    mixed = answers(llm, [*wished, *free])
    assert mixed[len(wished) :] == alone
    texts = [text for text, reason in mixed[: len(wished)] if reason is FinishReason.STOP]
    assert len(texts) >= len(wished) - 3
    for params, (text, reason) in zip(wished, mixed, strict=False):
        if reason is FinishReason.STOP and params.structured_output is not None:
            assert _fits(params.structured_output, text), text


def _fits(wanted: StructuredOutput, text: str) -> bool:
    if wanted.kind == "json_schema":
        jsonschema.validate(json.loads(text), json.loads(wanted.text))
        return True
    if wanted.kind == "json_object":
        return isinstance(json.loads(text), dict)
    if wanted.kind == "choice":
        return text in json.loads(wanted.text)
    return re.fullmatch(wanted.text if wanted.kind == "regex" else "[a-z]{1,9}=[0-9]{1,9}", text) is not None


def test_the_same_seed_gives_the_same_text_alone_and_in_a_batch(llm: LLM) -> None:
    wished = [wild("json_schema", json.dumps(schema), seed) for seed, schema in enumerate(SCHEMAS)]
    assert answers(llm, wished) == [answers(llm, [one])[0] for one in wished]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_complete_grammar_ends_the_stream(llm: LLM, ignore_eos: bool) -> None:
    params = wild("regex", "abc", 0, ignore_eos=ignore_eos)
    assert answers(llm, [params]) == [("abc", FinishReason.STOP)]


def test_min_tokens_do_not_hold_a_complete_grammar_open(llm: LLM) -> None:
    assert answers(llm, [wild("regex", "abc", 0, min_tokens=50)]) == [("abc", FinishReason.STOP)]


def test_min_tokens_and_ignore_eos_hold_one_open_that_can_go_on(llm: LLM) -> None:
    for changes in ({"min_tokens": 40}, {"ignore_eos": True, "max_tokens": 40}):
        ((text, _),) = answers(llm, [wild("regex", "(ab)*", 0, **changes)])
        assert re.fullmatch("(ab)*", text) and len(text) >= 40


def test_a_stop_token_does_not_cut_the_structure(llm: LLM) -> None:
    quote = byte_ids()[ord("b")]
    ((text, reason),) = answers(llm, [wild("regex", "[ab]{40}", 3, stop_token_ids=(quote,))])
    assert (re.fullmatch("a{40}", text), reason) and reason is FinishReason.STOP


def test_greedy_and_truncated_samplers_follow_too(llm: LLM) -> None:
    changes: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"top_k": 1},
        {"top_p": 0.01},
        {"min_p": 0.9},
        {"logprobs": 3},
        {"repetition_penalty": 1.5, "frequency_penalty": 1.0},
        {"logit_bias": ((EOS, 100.0),)},
    ]
    for text, reason in answers(llm, [wild("json_schema", json.dumps(PERSON), 1, **one) for one in changes]):
        if reason is FinishReason.STOP:
            jsonschema.validate(json.loads(text), PERSON)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_stream_resumed_at_any_token_goes_on_exactly(llm: LLM, place: int) -> None:
    params = wild("json_schema", json.dumps(SCHEMAS[place]), 5)
    grammar = grammar_of(params)
    whole, ends = run(llm.engine, [request(llm, grammar, params)])
    tokens = whole["r"]
    assert isinstance(ends["r"], Finished)
    resumed = [
        replace(request(llm, grammar, params), request_id=f"r{cut}", output_ids=tuple(tokens[:cut]))
        for cut in range(1, len(tokens))
    ]
    rest, _ = run(llm.engine, resumed)
    assert [tokens[:cut] + rest[f"r{cut}"] for cut in range(1, len(tokens))] == [tokens] * (len(tokens) - 1)


def test_preempted_streams_go_on_exactly() -> None:
    wished = [wild("json_schema", json.dumps(PERSON), seed, max_tokens=200) for seed in range(8)]
    with LLM("embedded", threads=1, max_model_len=256) as roomy:
        expected = answers(roomy, wished)
        block_bytes = roomy.engine.pipeline.rank_stats()[0].cache_bytes // roomy.engine.scheduler.pool.total
    with LLM("embedded", threads=1, max_model_len=256, kv_bytes=17 * block_bytes) as tight:
        assert answers(tight, wished) == expected
        assert tight.engine.scheduler.stats.preemptions > 0


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
def test_ranks_agree(llm: LLM, tp: int, pp: int) -> None:
    wished = [wild("json_schema", json.dumps(schema), seed) for seed, schema in enumerate(SCHEMAS)]
    with LLM("embedded", tp=tp, pp=pp, threads=1, max_model_len=1024) as sharded:
        assert answers(sharded, wished) == answers(llm, wished)


def test_a_grammar_that_fails_on_the_way_fails_its_request_alone(llm: LLM) -> None:
    """Ambiguous beyond the limits, which shows only after some tokens."""
    hostile = grammar_of(wild("grammar", 'start: s\ns: s s s | s s | "a" | "aa" | ""', 0))
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=700, ignore_eos=True)
    good = wild("json_schema", json.dumps(PERSON), 2)
    others = [replace(request(llm, grammar_of(good), good), request_id="good")]
    alone, _ = run(llm.engine, others)
    both, ends = run(llm.engine, [request(llm, hostile, params), *others])
    assert both["good"] == alone["good"] and isinstance(ends["good"], Finished)
    ending = ends["r"]
    assert isinstance(ending, Failed) and isinstance(ending.error, InvalidRequest)
    assert ending.error.field == "structured_output"


def test_rules_that_leave_no_token_fail_the_request(llm: LLM) -> None:
    letter = byte_ids()[ord("x")]
    for changes in ({"allowed_token_ids": (letter,)},):
        params = wild("regex", "[0-9]+", 0, **changes)
        _, ends = run(llm.engine, [request(llm, grammar_of(params), params)])
        ending = ends["r"]
        assert isinstance(ending, Failed) and "no token is left" in ending.error.message


def test_a_grammar_that_no_router_checked_fails_its_request_alone(llm: LLM) -> None:
    for text in ("", "x", "{}", '{"grammars":[{"lark_grammar":"start: a"}]}', "\x00"):
        params = SamplingParams(max_tokens=5, seed=0)
        tokens, ends = run(llm.engine, [request(llm, text, params)])
        assert isinstance(ends["r"], Failed) or (text == "" and tokens["r"])


def test_the_grammar_begins_where_thinking_ends(llm: LLM) -> None:
    start, end = byte_ids()[ord("<")], (byte_ids()[ord(">")],)
    params = wild("regex", "[0-9]{5}", 4)
    grammar = grammar_of(params)
    opened = Thinking((start,), end, budget_tokens=20, is_open=True)
    tokens, _ = run(llm.engine, [request(llm, grammar, params, thinking=opened)])
    cut = tokens["r"].index(end[0]) + 1
    assert 1 < cut <= 21
    assert re.fullmatch("[0-9]{5}", llm.tokenizer.decode(tokens["r"][cut:]))


def test_without_opened_thinking_the_model_may_think_or_answer(llm: LLM) -> None:
    start, end = byte_ids()[ord("<")], (byte_ids()[ord(">")],)
    closed = Thinking((start,), end, budget_tokens=5)
    for seed, bias in itertools.product(range(3), (-100.0, 100.0)):
        params = wild("regex", "[0-9]{5}", seed, logit_bias=((start, bias),))
        tokens, _ = run(llm.engine, [request(llm, grammar_of(params), params, thinking=closed)])
        ids = tokens["r"]
        answer = ids[ids.index(end[0]) + 1 :] if bias > 0 else ids
        assert (ids[0] == start) is (bias > 0)
        assert re.fullmatch("[0-9]{5}", llm.tokenizer.decode(answer))


def test_choices_of_one_family_follow_the_grammar_each_by_itself(llm: LLM) -> None:
    params = wild("json_schema", json.dumps(PERSON), 11)
    base = request(llm, grammar_of(params), params)
    family = [replace(base, request_id=f"f/{i}", family="f", params=replace(params, seed=100 + i)) for i in range(4)]
    together, ends = run(llm.engine, family)
    for one in family:
        alone, _ = run(llm.engine, [replace(one, family="")])
        assert together[one.request_id] == alone[one.request_id]
        ending = ends[one.request_id]
        if isinstance(ending, Finished) and ending.reason is FinishReason.STOP:
            jsonschema.validate(json.loads(llm.tokenizer.decode(together[one.request_id])), PERSON)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_every_beam_fits(llm: LLM, ignore_eos: bool) -> None:
    params = SamplingParams(beam_width=3, n=3, max_tokens=60, ignore_eos=ignore_eos, seed=0)
    text = grammar_of(wild("regex", "(cat|dog|bird|horse) [0-9]{1,3}", 0))
    _, ends = run(llm.engine, [request(llm, text, params)])
    ending = ends["r"]
    assert isinstance(ending, Finished) and len(ending.beams) == 3
    found = [llm.tokenizer.decode(beam.token_ids) for beam in ending.beams]
    assert len(set(found)) == 3 and all(re.fullmatch("(cat|dog|bird|horse) [0-9]{1,3}", one) for one in found)


def test_a_required_tool_call_is_well_formed(llm: LLM) -> None:
    tags = [
        TaggedSchema(f'<tool_call>{{"name": "{name}", "arguments": ', json.dumps(PERSON), "}</tool_call>")
        for name in ("f", "g")
    ]
    text = tool_grammar(tags, llm.tokenizer.special_names, most=1)
    tokens, _ = run(llm.engine, [request(llm, text, SamplingParams(temperature=1.5, seed=8, max_tokens=400))])
    written = llm.tokenizer.decode(tokens["r"])
    call = json.loads(written.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call["name"] in ("f", "g")
    jsonschema.validate(call["arguments"], PERSON)


def test_structural_tags_bind_only_what_follows_a_trigger(llm: LLM) -> None:
    tags = {"structures": [{"begin": "=", "schema": {"type": "integer"}, "end": ";"}], "triggers": ["="]}
    wished = [wild("structural_tag", json.dumps(tags), seed, max_tokens=150) for seed in range(8)]
    found = [text for text, _ in answers(llm, wished)]
    assert sum("=" in text for text in found) >= 2
    for text in found:
        *bound, _last = re.split("=", text)[1:] or [""]
        assert all(re.match(r"-?[0-9]+;", part) for part in bound)


def test_a_malformed_grammar_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="keyword 'not'"):
        answers(llm, [wild("json_schema", '{"not": {}}', 0)])
