"""Several answers to one request, beams, echoed and scored prompts: through the router's core, over fake groups."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import pytest
from fakes import FakeGroup, info, saying, service_of
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import served

from rayline.protos.errors import InvalidRequest, Overloaded, RaylineError, Unavailable
from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    Failed,
    Finished,
    FinishReason,
    PromptScored,
    Started,
    StreamEvent,
    Usage,
)
from rayline.protos.group import GroupLoad
from rayline.protos.types import EngineRequest, SamplingParams, Spec, choice_seed
from rayline.router.service import Service

TOKENIZER = served("byte_level")
TEXTS = ["the dog", "the quick brown fox", "fox", "jumps over"]


def number_of(request: EngineRequest) -> int:
    return int(request.request_id.partition("/")[2] or 0)


def each_its_own(request: EngineRequest) -> Sequence[int]:
    """Choice i says the i-th text."""
    return TOKENIZER.encode(TEXTS[number_of(request) % len(TEXTS)], add_special_tokens=False)


def spec(prompt: str = "lazy dog", **changes: object) -> Spec:
    params = {"max_tokens": 20} | {k: changes.pop(k) for k in list(changes) if k in SamplingParams.__slots__}
    return replace(Spec("r1", "tiny", SamplingParams(**params), prompt=prompt), **changes)  # type: ignore[arg-type]


async def collect(service: Service, wanted: Spec) -> list[StreamEvent]:
    return [event async for event in service.generate(wanted)]


def run(service: Service, wanted: Spec) -> list[StreamEvent]:
    return asyncio.run(collect(service, wanted))


def text_of(events: Sequence[StreamEvent], choice: int) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta) and event.choice == choice)


def ends_of(events: Sequence[StreamEvent]) -> list[ChoiceEnded]:
    return [event for event in events if isinstance(event, ChoiceEnded)]


def finished_of(events: Sequence[StreamEvent]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


# ---- n


def test_each_choice_is_a_request_of_one_family_with_a_seed_of_its_own() -> None:
    group = FakeGroup(each_its_own)
    run(service_of(group), spec(n=3, seed=7, cache_salt="s", tenant="t", priority=2))
    assert [request.request_id for request in group.requests] == ["r1/0", "r1/1", "r1/2"]
    assert [request.params.seed for request in group.requests] == [choice_seed(7, i) for i in range(3)]
    for request in group.requests:
        assert (request.family, request.cache_salt, request.tenant, request.priority) == ("r1", "s", "t", 2)
        assert request.prompt_ids is group.requests[0].prompt_ids and request.params.n == 1


def test_one_choice_has_no_family_and_the_clients_own_name() -> None:
    group = FakeGroup(each_its_own)
    run(service_of(group), spec())
    assert (group.requests[0].request_id, group.requests[0].family) == ("r1", "")


def test_choices_come_interleaved_and_each_one_ends_before_the_stream_does() -> None:
    group = FakeGroup(each_its_own, delay_s=0.001)
    events = run(service_of(group), spec(n=4))
    assert [text_of(events, choice) for choice in range(4)] == TEXTS
    assert sorted(ended.choice for ended in ends_of(events)) == [0, 1, 2, 3]
    order = [event.choice for event in events if isinstance(event, Delta)]
    assert len(list(groupby(order))) > 4, "each choice waits for the one before it"
    for choice in range(4):
        mine = [event for event in events if isinstance(event, Delta | ChoiceEnded) and event.choice == choice]
        assert isinstance(mine[-1], ChoiceEnded)


def test_the_prompt_counts_once_and_the_output_of_every_choice() -> None:
    group = FakeGroup(each_its_own)
    finished = finished_of(run(service_of(group), spec(n=3)))
    said = sum(len(each_its_own(request)) for request in group.requests)
    assert finished.usage == Usage(len(group.requests[0].prompt_ids), said, cached_tokens=1)


def test_a_stop_string_ends_its_own_choice_alone() -> None:
    group = FakeGroup(each_its_own, delay_s=0.002)
    events = run(service_of(group), spec(n=3, stop=("quick",)))
    assert [text_of(events, choice) for choice in range(3)] == ["the dog", "the ", "fox"]
    reasons = {ended.choice: ended.stop_reason for ended in ends_of(events)}
    assert reasons == {0: None, 1: "quick", 2: None}
    assert group.aborted == ["r1/1"] and sorted(group.finished) == ["r1/0", "r1/2"]


def test_a_choice_is_aborted_before_a_slow_reader_takes_its_end() -> None:
    group = FakeGroup(saying("the fox"))

    async def scenario() -> None:
        stream = service_of(group).generate(spec(stop=("the",)))
        assert isinstance(await anext(stream), Started)
        assert group.aborted == ["r1"]
        await stream.aclose()

    asyncio.run(scenario())


def test_leaving_the_stream_aborts_all_choices() -> None:
    group = FakeGroup(each_its_own, delay_s=0.01)

    async def scenario() -> None:
        stream = service_of(group).generate(spec(n=4))
        await anext(stream)
        await stream.aclose()
        assert sorted(group.aborted) == ["r1/0", "r1/1", "r1/2", "r1/3"]

    asyncio.run(scenario())


def test_all_choices_move_to_another_group_when_one_is_refused_before_any_token() -> None:
    full = FakeGroup(
        each_its_own,
        info=info("g0"),
        delay_s=0.01,
        refusal=Overloaded("full", retry_after_s=1.0),
        refuses=lambda request: number_of(request) == 2,
    )
    free = FakeGroup(each_its_own, info=info("g1"), load=GroupLoad(outstanding_tokens=10**6))
    events = run(service_of(full, free), spec(n=3))
    assert [text_of(events, choice) for choice in range(3)] == TEXTS[:3]
    assert len(full.requests) == len(free.requests) == 3 and len(full.aborted) == 2


def test_a_choice_that_fails_later_fails_the_request_and_aborts_the_others() -> None:
    group = FakeGroup(
        each_its_own,
        delay_s=0.001,
        refusal=Unavailable("gone"),
        refuses=lambda request: False,
        loss=Unavailable("gone"),
        loss_after=2,
    )
    events = run(service_of(group), spec(n=3))
    assert isinstance(events[-1], Failed) and events[-1].request_id == "r1"
    assert sum(isinstance(event, Failed | Finished) for event in events) == 1
    assert len(group.aborted) + len(group.finished) == 3


# ---- best_of


def test_the_best_choices_come_first_with_their_scores() -> None:
    group = FakeGroup(each_its_own, logprob_of=lambda request: [-2.0, -0.5, -3.0, -1.0][number_of(request)])
    events = run(service_of(group), spec(n=2, best_of=4))
    assert [text_of(events, choice) for choice in range(2)] == [TEXTS[1], TEXTS[3]]
    assert [(ended.choice, ended.score) for ended in ends_of(events)] == [(0, -0.5), (1, -1.0)]
    assert all(not event.logprobs for event in events if isinstance(event, Delta))
    said = sum(len(each_its_own(request)) for request in group.requests)
    assert finished_of(events).usage.output_tokens == said and len(group.requests) == 4


def test_the_logprobs_of_ranked_choices_are_shown_when_asked_for() -> None:
    group = FakeGroup(each_its_own, logprob_of=lambda request: -float(number_of(request)))
    events = run(service_of(group), spec(n=1, best_of=2, logprobs=1))
    shown = [entry for event in events if isinstance(event, Delta) for entry in event.logprobs]
    assert len(shown) == len(each_its_own(group.requests[0])) and all(len(entry.top) == 1 for entry in shown)


def test_nothing_of_a_ranked_answer_is_shown_before_all_choices_have_ended() -> None:
    group = FakeGroup(each_its_own, delay_s=0.001)

    async def scenario() -> None:
        stream = service_of(group).generate(spec(n=1, best_of=3))
        assert isinstance(await anext(stream), Started)
        await anext(stream)
        assert len(group.finished) == 3
        await stream.aclose()

    asyncio.run(scenario())


def test_best_of_n_ranks_nothing() -> None:
    events = run(service_of(FakeGroup(each_its_own)), spec(n=2, best_of=2))
    assert [text_of(events, choice) for choice in range(2)] == TEXTS[:2]
    assert all(ended.score is None for ended in ends_of(events))


# ---- beams


def test_beams_come_as_whole_choices_best_first() -> None:
    group = FakeGroup(saying("the fox"))
    events = run(service_of(group), spec(n=2, beam_width=3))
    (request,) = group.requests
    assert (request.params.beam_width, request.params.n, request.family) == (3, 2, "")
    kinds = [type(event) for event in events]
    assert kinds == [Started, Delta, ChoiceEnded, Delta, ChoiceEnded, Finished]
    assert text_of(events, 0) == "the fox" and "the fox".startswith(text_of(events, 1))
    assert [ended.score for ended in ends_of(events)] == [0.0, -1.0]
    assert finished_of(events).usage.output_tokens == sum(len(e.token_ids) for e in events if isinstance(e, Delta))


def test_beams_have_the_logprobs_of_their_own_tokens_when_asked_for() -> None:
    events = run(service_of(FakeGroup(saying("the fox"))), spec(beam_width=2, logprobs=0))
    (delta,) = [event for event in events if isinstance(event, Delta)]
    assert [entry.token_id for entry in delta.logprobs] == list(delta.token_ids)
    assert {entry.logprob for entry in delta.logprobs} == {-0.5}


# ---- echo and scored prompts


@pytest.mark.parametrize("n", [1, 3])
def test_an_echo_is_the_first_delta_of_each_choice(n: int) -> None:
    group = FakeGroup(each_its_own)
    events = run(service_of(group), spec(n=n, echo=True))
    for choice in range(n):
        first, *rest = [event for event in events if isinstance(event, Delta) and event.choice == choice]
        assert first.is_echo and first.text == "lazy dog" and first.token_ids == group.requests[0].prompt_ids
        assert not any(delta.is_echo for delta in rest) and "".join(delta.text for delta in rest) == TEXTS[choice]
    assert finished_of(events).usage.output_tokens == sum(len(each_its_own(request)) for request in group.requests)


@pytest.mark.parametrize(("n", "best_of"), [(1, None), (3, None), (2, 4)])
def test_prompt_logprobs_come_once_before_the_first_delta(n: int, best_of: int | None) -> None:
    group = FakeGroup(each_its_own)
    events = run(service_of(group), spec("the lazy dog jumps", n=n, best_of=best_of, prompt_logprobs=2))
    prompt_ids = group.requests[0].prompt_ids
    assert isinstance(events[1], PromptScored)
    scored = events[1].tokens
    assert [entry.token_id for entry in scored] == list(prompt_ids)
    assert [entry.logprob for entry in scored] == [None, *(-float(at) for at in range(1, len(prompt_ids)))]
    assert [len(entry.top) for entry in scored] == [0, *[2] * (len(prompt_ids) - 1)]
    assert sum(isinstance(event, PromptScored) for event in events) == 1
    asked = [request.params.prompt_logprobs for request in group.requests]
    assert asked == [2] + [None] * (len(asked) - 1), "the first choice scores the prompt for all"


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    events = run(service_of(FakeGroup(saying("x"))), spec(prompt="", prompt_logprobs=0))
    assert isinstance(events[1], PromptScored) and [entry.logprob for entry in events[1].tokens] == [None]


def test_an_echo_of_a_scored_prompt_carries_its_logprobs() -> None:
    events = run(service_of(FakeGroup(saying("x"))), spec("the lazy dog", echo=True, prompt_logprobs=0))
    scored, echo = events[1], events[2]
    assert isinstance(scored, PromptScored) and isinstance(echo, Delta)
    assert echo.is_echo and echo.logprobs == scored.tokens


def test_a_prompt_is_scored_without_any_output() -> None:
    group = FakeGroup(saying("fox"))
    events = run(service_of(group), spec("the lazy dog", echo=True, prompt_logprobs=1, max_tokens=0))
    assert [type(event) for event in events] == [Started, PromptScored, Delta, ChoiceEnded, Finished]
    assert ends_of(events)[0].reason is FinishReason.LENGTH
    assert finished_of(events).usage == Usage(len(group.requests[0].prompt_ids), 0, cached_tokens=1)
    assert group.requests[0].params.max_tokens == 1, "an engine cannot but sample a token"


def test_no_output_without_an_echo_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="max_tokens = 0 is out of range: allowed is 1 or more, 0 with echo"):
        run(service_of(FakeGroup(saying("x"))), spec(max_tokens=0))


def test_started_brings_the_prompts_ids_when_asked_for() -> None:
    group = FakeGroup(saying("x"))
    for wanted in (True, False):
        first = run(service_of(group), spec(return_prompt_ids=wanted))[0]
        assert isinstance(first, Started)
        assert first.prompt_ids == (group.requests[-1].prompt_ids if wanted else ())


# ---- whatever is asked for


def choices_left(events: Sequence[StreamEvent], n: int) -> set[int]:
    """The choices that have not ended, in a stream that is checked for its order."""
    left = set(range(n))
    for number, event in enumerate(events):
        assert isinstance(event, Started) == (number == 0)
        assert number == 1 or not isinstance(event, PromptScored)
        assert number == len(events) - 1 or not isinstance(event, Finished | Failed)
        if isinstance(event, Delta | ChoiceEnded):
            assert event.choice in left
        if isinstance(event, ChoiceEnded):
            left.remove(event.choice)
    return left


@given(
    n=st.integers(1, 4),
    extra=st.integers(0, 2),
    echo=st.booleans(),
    prompt_logprobs=st.none() | st.just(1),
    stop=st.sampled_from([(), ("fox",), ("o",)]),
    max_tokens=st.integers(0, 5),
    loss_after=st.none() | st.integers(0, 3),
    walks_away_after=st.none() | st.integers(0, 9),
)
def test_every_choice_ends_once_after_its_deltas_and_the_stream_ends_once(
    n: int,
    extra: int,
    echo: bool,
    prompt_logprobs: int | None,
    stop: tuple[str, ...],
    max_tokens: int,
    loss_after: int | None,
    walks_away_after: int | None,
) -> None:
    loss = None if loss_after is None else Unavailable("gone")
    group = FakeGroup(each_its_own, loss=loss, loss_after=loss_after or 0)
    service = service_of(group)
    wanted = spec(n=n, best_of=n + extra, echo=echo, prompt_logprobs=prompt_logprobs, stop=stop, max_tokens=max_tokens)

    async def scenario() -> list[StreamEvent]:
        stream = service.generate(wanted)
        seen: list[StreamEvent] = []
        async for event in stream:
            seen.append(event)
            if len(seen) == walks_away_after:
                break
        await stream.aclose()
        return seen

    try:
        events = asyncio.run(scenario())
    except RaylineError:
        events = []
    left = choices_left(events, n)
    if events and isinstance(events[-1], Finished):
        assert not left
    elif events and len(events) != walks_away_after:
        assert isinstance(events[-1], Failed)
    assert len(group.aborted) + len(group.finished) == len(group.requests)
    assert service.running == 0
    assert not service._ledger.outstanding_tokens("g0")
