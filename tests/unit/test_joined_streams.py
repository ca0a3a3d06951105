"""A stream that was cut and resumed is the stream that was not cut, event for event, wherever the cut is."""

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeGroup, info, saying, service_of
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.protos.conversation import ChatMessage, Conversation, Tool
from rayline.protos.errors import InvalidRequest, Unavailable
from rayline.protos.events import ChoiceEnded, Delta, Finished, StreamEvent, Usage
from rayline.protos.group import GroupLoad
from rayline.protos.position import Position, Reading
from rayline.protos.types import EngineRequest, SamplingParams, Spec
from rayline.router.output_form import ChatFormats
from rayline.router.reasoning import FORMATS as REASONING
from rayline.router.service import Service
from rayline.router.tools.formats import FORMATS
from rayline.workers.journal import Journal

SAYING = "the quick brown fox jumps, \N{SNOWMAN} and so on"
CALLING = (
    "<think>two</think>Well:\n"
    '<tool_call>{"name": "add", "arguments": {"a": [1]}}</tool_call>'
    '<tool_call>{"name": "add"}</tool_call>'
)
CHAT = Conversation((ChatMessage("user", "hi"),), (Tool("add", "", '{"type": "object"}'),))

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "logprobs": {"logprobs": 2},
    "a stop string": {"stop": ("ps, ",)},
    "a stop string that is shown": {"stop": ("ox j",), "include_stop_str_in_output": True},
    "a length": {"max_tokens": 7},
    "scores of the prompt": {"prompt_logprobs": 1},
    "echo": {"echo": True},
    "echo, scored": {"echo": True, "prompt_logprobs": 0, "logprobs": 0},
    "the prompt alone": {"echo": True, "max_tokens": 0, "prompt_logprobs": 1},
    "three choices": {"n": 3},
    "choices with logprobs and an echo": {"n": 2, "logprobs": 1, "echo": True, "prompt_logprobs": 1},
    "the best of three": {"n": 1, "best_of": 3},
    "the best two of four": {"n": 2, "best_of": 4, "logprobs": 1},
    "beams": {"n": 2, "beam_width": 3},
    "beams, scored": {"n": 2, "beam_width": 3, "logprobs": 0},
    "thoughts and calls": {"conversation": CHAT},
    "choices with calls": {"conversation": CHAT, "n": 2},
}


def spec(case: dict[str, Any]) -> Spec:
    options = {name: case[name] for name in ("echo", "conversation") if name in case}
    params = {name: value for name, value in case.items() if name not in options}
    prompt = None if "conversation" in case else "the dog"
    return Spec("r1", "tiny", SamplingParams(**({"max_tokens": 300} | params)), prompt=prompt, **options)


def group(group_id: str, case: dict[str, Any], **changes: Any) -> FakeGroup:
    said = saying(CALLING if "conversation" in case else SAYING)

    def script(request: EngineRequest) -> Sequence[int]:
        """Each choice says something shorter than the one before."""
        ids, choice = said(request), int(request.request_id.partition("/")[2].partition("~")[0] or 0)
        return ids[: len(ids) - choice]

    def logprob(request: EngineRequest) -> float:
        return -0.25 * (int(request.request_id.partition("/")[2].partition("~")[0] or 0) * 7 % 4)

    described = info(group_id, max_model_len=1024)
    return FakeGroup(script, described, held=Journal(2**20, 1e6), logprob_of=logprob, **changes)


def service(*groups: FakeGroup, router: str) -> Service:
    chat = ChatFormats(FORMATS["hermes"], REASONING["think"])
    return service_of(*groups, chat=chat, router=router)


async def read(events: Any, count: int | None = None) -> list[StreamEvent]:
    """The first so many events, and then the client is gone."""
    read: list[StreamEvent] = []
    async with aclosing(events):
        async for event in events:
            read.append(event)
            if len(read) == count:
                break
    return read


def position(seen: Sequence[StreamEvent], choices: int) -> Position:
    reading = Reading(Position(), choices)
    assert [reading.take(event) for event in seen] == list(range(len(seen)))
    return reading.position


def new(events: Sequence[StreamEvent], start: Position, choices: int) -> list[StreamEvent]:
    """What a reader from `start` on gets, numbered without a gap."""
    reading = Reading(start, choices)
    taken = [(index, event) for event in events if (index := reading.take(event)) is not None]
    assert [index for index, _ in taken] == list(range(start.next_index, start.next_index + len(taken)))
    return [event for _, event in taken]


def untimed(event: StreamEvent) -> StreamEvent:
    """cached_tokens is the group's doing, like time."""
    if not isinstance(event, Finished):
        return event
    return replace(event, queue_s=0.0, overhead=None, usage=replace(event.usage, cached_tokens=0))


def by_choice(events: Sequence[StreamEvent]) -> dict[int | None, list[StreamEvent]]:
    """The order that is promised: of each choice's events, and of those of the whole stream."""
    found: dict[int | None, list[StreamEvent]] = {}
    for event in events:
        found.setdefault(event.choice if isinstance(event, Delta | ChoiceEnded) else None, []).append(untimed(event))
    return found


def assert_joined(joined: Sequence[StreamEvent], undisturbed: Sequence[StreamEvent], wanted: Spec) -> None:
    assert by_choice(joined) == by_choice(undisturbed)
    if wanted.params.n == 1:
        assert [untimed(event) for event in joined] == [untimed(event) for event in undisturbed]


async def resumed(router: Service) -> list[StreamEvent]:
    return await read(router.resume(await router.find("", "r1")))


def cuts(events: int) -> Sequence[int]:
    """Behind every event; of a long stream, the first ones, the last ones and each seventh between."""
    return [cut for cut in range(1, events + 1) if cut < 20 or cut > events - 8 or cut % 7 == 0]


def runs_of(groups: Sequence[FakeGroup]) -> int:
    return sum(len(each.requests) for each in groups)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("is_known", [True, False], ids=["said is known", "said is lost"])
async def test_a_stream_cut_at_any_event_and_resumed_is_whole(case: dict[str, Any], is_known: bool) -> None:
    wanted = spec(case)
    undisturbed = await read(service(group("g0", case), router="z").generate(wanted))
    assert isinstance(undisturbed[-1], Finished)
    for cut in cuts(len(undisturbed)):
        groups = [group("g0", case), group("g1", case, load=GroupLoad(outstanding_tokens=9))]
        seen = await read(service(*groups, router="a").generate(wanted), cut)
        second = service(*(groups if is_known else groups[1:]), router="b")
        before = runs_of(groups)
        rest = new(await resumed(second), position(seen, wanted.params.n), wanted.params.n)
        assert_joined([*seen, *rest], undisturbed, wanted)
        if is_known and cut == len(undisturbed):
            assert rest == [] and runs_of(groups) == before, "all was known: nothing had to be computed"


@given(st.sampled_from(sorted(CASES)), st.lists(st.integers(1, 12), max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_a_stream_may_be_cut_as_often_as_one_likes(name: str, reads: list[int], random: Any) -> None:
    """Each time by another router, over other groups, some of which have lost what they knew of tokens."""
    case = CASES[name]
    wanted = spec(case)

    async def scenario() -> None:
        undisturbed = await read(service(group("g0", case), router="z").generate(wanted))
        groups = [group(f"g{n}", case, load=GroupLoad(outstanding_tokens=n)) for n in range(3)]
        joined: list[StreamEvent] = []
        for turn, count in enumerate([*reads, 10**6]):
            router = service(*groups, router=f"router {turn}")
            if not turn:
                joined += await read(router.generate(wanted), count)
                continue
            start = position(joined, wanted.params.n)
            fresh = new(await resumed(router), start, wanted.params.n)
            joined += fresh[:count]
            for each in groups:
                each.load = GroupLoad(outstanding_tokens=random.randrange(9))
                if random.random() < 0.5:
                    for stream in each.held._streams.values():
                        each.held._cut(stream)
        assert_joined(joined, undisturbed, wanted)

    asyncio.run(scenario())


async def test_what_was_said_is_not_computed_again() -> None:
    groups = [group("g0", {}), group("g1", {}, load=GroupLoad(outstanding_tokens=9))]
    await read(service(*groups, router="a").generate(spec({})), 6)
    await resumed(service(*groups, router="b"))
    first, second = groups[0].requests
    said = groups[0].script(first)
    assert len(second.output_ids) >= 5 and list(second.output_ids) == list(said)[: len(second.output_ids)]
    assert second.params.seed == first.params.seed and second.prompt_ids == first.prompt_ids


def wayward(group_id: str, **changes: Any) -> FakeGroup:
    numbers = itertools.count(hash(group_id) % 50)

    def script(request: EngineRequest) -> Sequence[int]:
        """Behind what was said it goes on as it likes."""
        shift = next(numbers)
        return [*request.output_ids, *((7 * at + shift) % 90 + 33 for at in range(len(request.output_ids), 30))]

    described = replace(info(group_id, max_model_len=1024), exact=False)
    return FakeGroup(script, described, held=Journal(2**20, 1e6), **changes)


@pytest.mark.parametrize("case", ["plain", "logprobs", "a length", "three choices", "scores of the prompt", "beams"])
@pytest.mark.parametrize("is_runner_lost", [False, True])
async def test_what_was_shown_of_a_stream_that_is_not_exact_stays_true(case: str, is_runner_lost: bool) -> None:
    """Nobody could compute it again: the holders of its record have it, whoever ran it."""
    wanted = spec(CASES[case])
    for cut in range(1, 30):
        groups = [wayward(f"g{n}", load=GroupLoad(outstanding_tokens=n)) for n in range(3)]
        seen = await read(service(*groups, router="a").generate(wanted), cut)
        runner = next(each for each in groups if each.requests)
        left = [each for each in groups if each is not runner] if is_runner_lost else groups
        again = await resumed(service(*left, router="b"))
        rest = new(again, position(seen, wanted.params.n), wanted.params.n)
        parts = by_choice([*seen, *rest])
        whole = by_choice(again)
        for choice in range(wanted.params.n):
            assert parts[choice] == whole[choice]
        end = again[-1]
        assert isinstance(end, Finished) and not end.exact
        if isinstance(seen[-1], Finished):
            assert rest == [] and untimed(seen[-1]) == untimed(end)
            break


async def test_a_stream_that_became_inexact_on_its_way_is_held_from_then_on() -> None:
    """Its group was lost, and those that are left compute other bits."""
    exact = group("g0", {}, loss_after=4, loss=Unavailable("gone"))
    others = [wayward(f"h{n}", load=GroupLoad(outstanding_tokens=9 + n)) for n in range(2)]
    seen = await read(service(exact, *others, router="a").generate(spec({})), 9)
    again = await resumed(service(*others, router="b"))
    assert again[: len(seen)] == seen
    end = again[-1]
    assert isinstance(end, Finished) and not end.exact


@pytest.mark.parametrize(
    ("start", "choices"),
    [
        (Position(5), 2),
        (Position(5, (1, 1, 1)), 2),
        (Position(9, (1, 1)), 2),
        (Position(1, (1, 1)), 2),
    ],
)
def test_a_position_that_cannot_be_is_refused(start: Position, choices: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Reading(start, choices)
    assert caught.value.field == "seen"


def test_usage_is_that_of_the_whole_stream() -> None:
    async def scenario() -> Usage:
        groups = [group("g0", {"n": 2})]
        await read(service(*groups, router="a").generate(spec({"n": 2})), 6)
        end = (await resumed(service(*groups, router="b")))[-1]
        assert isinstance(end, Finished)
        return end.usage

    said = len(saying(SAYING)(EngineRequest("r", (1,), SamplingParams())))
    assert asyncio.run(scenario()).output_tokens == 2 * said - 1
