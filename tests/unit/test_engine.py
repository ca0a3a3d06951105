"""The engine over simulated ranks: what it refuses, what it answers, and how full it keeps the pipeline."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_group import BLOCKS, VOCAB, TimedRanks, answer, engine_over, request

from rayline.protos.errors import InvalidRequest, Overloaded, PromptTooLong, RaylineError
from rayline.protos.events import EngineEvent, Finished, FinishReason, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams, Thinking, TokenRules
from rayline.workers.engine import Engine


def run(engine: Engine) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    return events


def tokens(events: list[EngineEvent], request_id: str) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.request_id == request_id]


REFUSED: dict[str, tuple[dict[str, Any], type[RaylineError], str, str]] = {
    "no prompt": ({"prompt_ids": ()}, InvalidRequest, "prompt_ids", "prompt_ids is empty: at least one token"),
    "a prompt that fills the context": (
        {"prompt_ids": (1,) * 64},
        PromptTooLong,
        "prompt",
        "prompt of 64 tokens leaves no room: max_model_len is 64",
    ),
    "a resumed stream that fills the context": (
        {"prompt_ids": (1,) * 60, "output_ids": (1,) * 4},
        PromptTooLong,
        "prompt",
        "prompt of 64 tokens leaves no room",
    ),
    "an id behind the vocabulary": (
        {"prompt_ids": (1, VOCAB, 2)},
        InvalidRequest,
        "prompt_ids",
        "prompt_ids holds 50: allowed are ids of 0 to 49",
    ),
    "a negative id": ({"prompt_ids": (1, -7, 2)}, InvalidRequest, "prompt_ids", "prompt_ids holds -7: allowed"),
    "an output id behind the vocabulary": (
        {"output_ids": (VOCAB,)},
        InvalidRequest,
        "output_ids",
        "output_ids holds 50: allowed",
    ),
    "a negative output id": ({"output_ids": (-1,)}, InvalidRequest, "output_ids", "output_ids holds -1: allowed"),
    "a resumed stream that has all its tokens": (
        {"output_ids": (1,) * 8},
        InvalidRequest,
        "output_ids",
        "output_ids holds 8 tokens: max_tokens = 8 leaves nothing to compute",
    ),
    "no seed": ({"params": SamplingParams(max_tokens=8)}, InvalidRequest, "seed", "seed is missing"),
    "a parameter out of range": (
        {"params": SamplingParams(top_p=0.0, seed=0)},
        InvalidRequest,
        "top_p",
        r"top_p = 0\.0 is out of range",
    ),
    "a bias of an id behind the vocabulary": (
        {"params": SamplingParams(logit_bias=((3, 1.0), (VOCAB, 1.0)), seed=0)},
        InvalidRequest,
        "logit_bias",
        "logit_bias holds 50: allowed are ids of 0 to 49",
    ),
    "an allowed id behind the vocabulary": (
        {"params": SamplingParams(allowed_token_ids=(3, 77), seed=0)},
        InvalidRequest,
        "allowed_token_ids",
        "allowed_token_ids holds 77: allowed",
    ),
    "a bad word of an id behind the vocabulary": (
        {"rules": TokenRules(bad_words=((1,), (2, 99)))},
        InvalidRequest,
        "bad_words",
        "bad_words holds 99: allowed",
    ),
    "a bad word without ids": (
        {"rules": TokenRules(bad_words=((),))},
        InvalidRequest,
        "bad_words",
        "bad_words holds a word without token ids",
    ),
    "thinking that would be ended by an id behind the vocabulary": (
        {"rules": TokenRules(thinking=Thinking((1,), (50,), 4))},
        InvalidRequest,
        "thinking_budget",
        "thinking_budget holds 50: allowed",
    ),
    "a resumed beam search": (
        {"params": SamplingParams(beam_width=2, max_tokens=8, seed=0), "output_ids": (1,)},
        InvalidRequest,
        "output_ids",
        "a beam search sends none before its end",
    ),
    "more beams than sequences run": (
        {"params": SamplingParams(beam_width=9, max_tokens=8, seed=0)},
        InvalidRequest,
        "beam_width",
        "beam_width = 9 is out of range: allowed is up to 8, the sequences this group runs at once",
    ),
    "more ends of beams than are looked at": (
        {"params": SamplingParams(beam_width=2, max_tokens=8, seed=0, stop_token_ids=tuple(range(65)))},
        InvalidRequest,
        "stop_token_ids",
        "up to 64 ids with beam_width",
    ),
    "beams that need more blocks than there are": (
        {"params": SamplingParams(beam_width=5, seed=0)},
        InvalidRequest,
        "beam_width",
        "beam_width = 5 may need 80 KV blocks of 4 tokens, this group has 64: give a smaller beam_width or max_tokens",
    ),
}


@pytest.mark.parametrize(("changes", "kind", "field", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_computed_is_refused_by_field(
    changes: dict[str, Any], kind: type[RaylineError], field: str, message: str
) -> None:
    engine = engine_over(TimedRanks())
    with pytest.raises(kind, match=message) as refused:
        engine.add(replace(request("r"), **changes))
    assert refused.value.field == field
    assert not engine.has_work


def test_a_request_id_that_is_running_is_refused_and_may_be_used_again_later() -> None:
    engine = engine_over(TimedRanks())
    engine.add(request("r"))
    with pytest.raises(InvalidRequest, match="request_id 'r' is already running") as refused:
        engine.add(request("r"))
    assert refused.value.field == "request_id"
    assert len(tokens(run(engine), "r")) == 8
    engine.add(request("r"))
    assert len(tokens(run(engine), "r")) == 8


def test_a_full_queue_is_overloaded_and_disturbs_nobody() -> None:
    engine = engine_over(TimedRanks(), max_waiting=1)
    engine.add(request("r"))
    with pytest.raises(Overloaded, match="at most 1 may wait"):
        engine.add(request("s"))
    assert tokens(run(engine), "r") == answer(request("r"))


def test_a_request_is_answered_as_the_model_answers_it() -> None:
    engine = engine_over(TimedRanks())
    asked = request("r", (3, 1, 4, 1, 5), tokens=20)
    engine.add(asked)
    events = run(engine)
    assert tokens(events, "r") == answer(asked)
    end = events[-1]
    assert isinstance(end, Finished) and end.reason is FinishReason.LENGTH
    assert (end.usage.prompt_tokens, end.usage.output_tokens) == (5, 20)


def test_a_resumed_stream_goes_on_where_it_was() -> None:
    whole = request("r", tokens=12)
    said = answer(whole)
    engine = engine_over(TimedRanks())
    engine.add(replace(whole, output_ids=tuple(said[:5])))
    events = run(engine)
    assert tokens(events, "r") == said[5:]
    assert [event.index for event in events if isinstance(event, TokenEvent)] == list(range(5, 12))


def test_the_largest_prompt_gets_one_token() -> None:
    engine = engine_over(TimedRanks())
    engine.add(request("r", (1,) * 63, tokens=8))
    assert len(tokens(run(engine), "r")) == 1


def test_an_abort_answers_with_the_end_of_the_request() -> None:
    engine = engine_over(TimedRanks())
    engine.add(request("r"))
    engine.step()
    (end,) = engine.abort("r")
    assert isinstance(end, Finished) and end.reason is FinishReason.ABORT
    assert engine.abort("r") == []
    assert run(engine) == []
    assert engine.load().free_blocks == BLOCKS


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_pipeline_is_kept_full(depth: int) -> None:
    ranks = TimedRanks(delay=depth + 1)
    engine = engine_over(ranks, depth=depth)
    for number in range(6):
        engine.add(request(f"r{number}", (number,), tokens=30))
    engine.step()
    for _ in range(10):
        engine.step()
        assert ranks.in_flight == depth, "one result was taken, the others are on their way"


def test_taking_a_result_plans_nothing_new() -> None:
    ranks = TimedRanks(delay=3)
    engine = engine_over(ranks, depth=2)
    for number in range(3):
        engine.add(request(f"r{number}", (number,), tokens=30))
    engine.step()
    plans = len(ranks.plans)
    while ranks.in_flight:
        engine.take_result()
    assert len(ranks.plans) == plans
    events = run(engine)
    assert isinstance(events[-1], Finished)


def test_an_idle_engine_does_nothing() -> None:
    ranks = TimedRanks()
    engine = engine_over(ranks)
    assert not engine.has_work and engine.step() == []
    assert ranks.plans == []


def test_closing_closes_the_ranks() -> None:
    ranks = TimedRanks()
    engine_over(ranks).close()
    assert ranks.closed == 1


@st.composite
def workloads(draw: st.DrawFn) -> list[EngineRequest]:
    prompts = draw(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=24), min_size=1, max_size=8))
    return [request(f"r{n}", tuple(prompt), draw(st.integers(1, 30))) for n, prompt in enumerate(prompts)]


@settings(max_examples=60)
@given(workloads(), st.integers(1, 3), st.integers(1, 4))
def test_every_request_is_answered_alike_whatever_runs_beside_it(
    workload: list[EngineRequest], depth: int, max_running: int
) -> None:
    ranks = TimedRanks(delay=depth + 1)
    engine = engine_over(ranks, depth=depth, max_running=max_running)
    for each in workload:
        engine.add(each)
    events = run(engine)
    for each in workload:
        assert tokens(events, each.request_id) == answer(each)
    ends = [event.request_id for event in events if isinstance(event, Finished)]
    assert sorted(ends) == sorted(each.request_id for each in workload)
    assert engine.load().free_blocks == BLOCKS
