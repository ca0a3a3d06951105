"""Streams that are moved on purpose: nothing of it is seen, whatever happens on the way."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeGroup, info, saying, service_of
from hypothesis import given
from hypothesis import strategies as st
from poison import in_no_time

from rayline.protos.errors import InvalidRequest, Overloaded, RaylineError, Unavailable
from rayline.protos.events import Delta, Failed, Finished, StreamEvent
from rayline.protos.group import GroupLoad
from rayline.protos.types import SamplingParams, Spec
from rayline.router.service import Service

SAYING = "the quick brown fox jumps over the lazy dog, 0123456789 zyxwvutsrq"
DRAINING = GroupLoad(draining=True)
BUSY = GroupLoad(outstanding_tokens=10**6, free_blocks=8)  # asked only when the others are gone
FREE = GroupLoad(free_blocks=8)


def timeless(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Where delays matter: no machine is too slow for them."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        in_no_time(test(*args, **kwargs))

    return run


def spec(**params: Any) -> Spec:
    return Spec("r1", "tiny", SamplingParams(**{"max_tokens": 40, **params}), prompt="the dog")


def group(group_id: str, **changes: Any) -> FakeGroup:
    return FakeGroup(saying(SAYING), info(group_id), **{"load": FREE, **changes})


def service(*groups: FakeGroup, patience_s: float = 0.0) -> Service:
    return service_of(*groups, clock=lambda: asyncio.get_running_loop().time(), patience_s=patience_s)


async def collect(
    service: Service, wanted: Spec, after: Mapping[int, Callable[[], object]] | None = None
) -> list[StreamEvent]:
    """The whole stream; when so many deltas have come, what is in `after` is done."""
    events, deltas = [], 0
    async for event in service.generate(wanted):
        events.append(event)
        if isinstance(event, Delta):
            deltas += 1
            if after and (act := after.get(deltas)) is not None:
                act()
    return events


def shown(events: list[StreamEvent], choice: int = 0) -> list[StreamEvent]:
    return [event for event in events if isinstance(event, Delta) and event.choice == choice]


def end(events: list[StreamEvent]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished) and last.overhead is not None
    return last


def moves(events: list[StreamEvent]) -> int:
    overhead = end(events).overhead
    assert overhead is not None
    return overhead.moves


def drain(service: Service, group: FakeGroup) -> None:
    group.load = DRAINING
    service.move_streams()


PARAMS: list[dict[str, Any]] = [
    {},
    {"logprobs": 2},
    {"stop": ("9 zyx",), "min_tokens": 4},
    {"n": 3},
    {"n": 1, "best_of": 2},
]


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 13])
async def test_a_stream_moved_after_any_token_shows_the_same(tokens: int, params: dict[str, Any]) -> None:
    undisturbed = await collect(service(group("g0")), spec(**params))
    first, second = group("g0"), group("g1", load=replace(BUSY, outstanding_tokens=1))
    routed = service(first, second)
    events = await collect(routed, spec(**params), {tokens: lambda: drain(routed, first)})
    for choice in range(params.get("n", 1)):
        assert shown(events, choice) == shown(undisturbed, choice)
    assert end(events).usage == end(undisturbed).usage and end(events).exact
    if not params.get("best_of"):
        assert moves(events) >= 1 and first.aborted and not first.finished
    assert not any(routed._ledger.outstanding_tokens(g.info.group_id) for g in (first, second))
    assert not first._cuts and not second._cuts, "no stream is left behind"


@timeless
async def test_the_old_group_goes_on_until_the_new_one_is_near() -> None:
    """What the new group has not seen costs it a quarter of a token's time, so at first it is left behind."""
    first, second = group("g0", delay_s=0.04), group("g1", load=BUSY, delay_s=0.04, prefill_s=0.01)
    routed = service(first, second)
    clock = asyncio.get_running_loop().time
    gaps, last_s = [], clock()
    async for event in routed.generate(spec()):
        if isinstance(event, Delta):
            gaps.append(clock() - last_s)
            last_s = clock()
            if len(gaps) == 14:
                drain(routed, first)
    rounds = [len(request.output_ids) for request in second.requests]
    assert not any(request.is_stalled for request in second.requests), "the old one brings tokens meanwhile"
    assert rounds[0] == 14 and len(rounds) > 1 and rounds == sorted(set(rounds))
    assert len(gaps) == 32 and max(gaps) < 0.4
    assert first.aborted == ["r1"] and second.finished == [f"r1+{len(rounds)}"]


@timeless
async def test_a_stream_that_gets_nowhere_in_its_group_is_taken_away_all_the_same() -> None:
    first, second = group("g0", delay_s=1e6), group("g1", load=BUSY)
    routed = service(first, second)
    reading = asyncio.create_task(collect(routed, spec()))
    while not first.requests:
        await asyncio.sleep(0)
    drain(routed, first)
    events = await asyncio.wait_for(reading, 10.0)
    assert "".join(e.text for e in events if isinstance(e, Delta)) == SAYING
    assert first.aborted == ["r1"]


async def test_a_client_that_does_not_read_holds_up_no_move() -> None:
    first, second = group("g0"), group("g1", load=BUSY)
    routed = service(first, second)
    events = routed.generate(spec())
    said = [await anext(events) for _ in range(4)]
    drain(routed, first)
    while len(second.requests) < 1 or not routed._movers["tiny"]._lanes:
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    assert all(cut.is_set() for cut in first._cuts.values()), "the old group was left although nobody reads"
    said += [event async for event in events]
    assert "".join(e.text for e in said if isinstance(e, Delta)) == SAYING


async def test_a_stream_that_ends_on_the_way_ends_its_other_half_too() -> None:
    first, second = group("g0"), group("g1", load=BUSY, delay_s=1e6)
    routed = service(first, second)
    events = await collect(routed, spec(), {3: lambda: drain(routed, first)})
    assert "".join(e.text for e in events if isinstance(e, Delta)) == SAYING
    assert first.finished == ["r1"] and second.aborted == ["r1+1"] and moves(events) == 0


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("gone"), InvalidRequest("another context")])
@timeless
async def test_where_the_new_group_does_not_take_it_a_stream_stays(error: RaylineError) -> None:
    first, second = group("g0", delay_s=0.005), group("g1", load=BUSY, refusal=error)
    routed = service(first, second)
    again = {n: routed.move_streams for n in range(4, 12)}
    events = await collect(routed, spec(), {3: lambda: drain(routed, first), **again})
    assert "".join(e.text for e in events if isinstance(e, Delta)) == SAYING
    assert first.finished == ["r1"] and moves(events) == 0
    assert len(second.requests) == 1, "it is not asked again at once"


@timeless
async def test_an_old_group_that_is_lost_on_the_way_is_no_loss() -> None:
    first = group("g0", loss=Unavailable("gone"), loss_after=6)
    second = group("g1", load=BUSY, delay_s=0.01)
    routed = service(first, second)
    events = await collect(routed, spec(), {3: lambda: drain(routed, first)})
    assert "".join(e.text for e in events if isinstance(e, Delta)) == SAYING and moves(events) == 1


async def test_a_new_group_that_is_lost_later_is_replaced_by_a_third() -> None:
    first, third = group("g0"), group("g2", load=replace(BUSY, outstanding_tokens=10**7))
    second = group("g1", load=BUSY, loss=Unavailable("gone"), loss_after=9)
    routed = service(first, second, third)
    events = await collect(routed, spec(), {3: lambda: drain(routed, first)})
    assert "".join(e.text for e in events if isinstance(e, Delta)) == SAYING and moves(events) == 2


@pytest.mark.parametrize("changes", [{"numerics": "another"}, {"weights": "others"}, {"exact": False}], ids=str)
async def test_where_bits_differ_the_stream_breaks_first_and_says_so(changes: dict[str, Any]) -> None:
    first, second = group("g0"), group("g1", load=BUSY)
    second.info = replace(second.info, **changes)
    routed = service(first, second)
    events = await collect(routed, spec(), {3: lambda: drain(routed, first)})
    assert "".join(e.text for e in events if isinstance(e, Delta)) == SAYING
    assert not end(events).exact and moves(events) == 1
    (request,) = second.requests
    assert len(request.output_ids) >= 3 and first.aborted == ["r1"]


@timeless
async def test_a_search_runs_in_both_groups_until_one_has_it() -> None:
    wanted = spec(beam_width=3, n=2)
    undisturbed = await collect(service(group("g0")), wanted)
    first, second = group("g0", refusal=None, delay_s=1e6), group("g1", load=BUSY)
    first.silent = True
    routed = service(first, second)
    reading = asyncio.create_task(collect(routed, wanted))
    await asyncio.sleep(0)
    drain(routed, first)
    events = await asyncio.wait_for(reading, 10.0)
    assert [shown(events, n) for n in (0, 1)] == [shown(undisturbed, n) for n in (0, 1)]


@timeless
async def test_balance_moves_a_long_stream_away_from_a_full_group() -> None:
    now = [0.0]
    first, second = group("g0", delay_s=0.001), group("g1", load=DRAINING)
    first.info, second.info = (replace(g.info, max_model_len=4096, max_waiting=100) for g in (first, second))
    routed = service_of(first, second, clock=lambda: now[0])
    wanted = replace(spec(max_tokens=900))
    readings = [asyncio.create_task(collect(routed, replace(wanted, request_id=f"r{n}"))) for n in range(6)]
    while len(first.requests) < 6:
        await asyncio.sleep(0)
    second.load = GroupLoad(free_blocks=10**4)
    assert not routed.move_streams(), "they have only just come"
    now[0] += 60.0
    (move,) = routed.move_streams()
    assert move.target == "g1" and not routed.move_streams(), "one at a time"
    events = [await reading for reading in readings]
    assert all("".join(e.text for e in es if isinstance(e, Delta)) == SAYING for es in events)
    assert sum(moves(es) for es in events) == 1 and len(second.finished) == 1


faults = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from(["move", "move", "lose"]), st.integers(0, 3)), max_size=6
)


@given(faults, st.integers(1, 3))
def test_whatever_is_moved_or_lost_no_token_comes_twice_and_none_is_left_out(
    plan: list[tuple[int, str, int]], n: int
) -> None:
    groups = [group(f"g{i}", load=FREE) for i in range(4)]

    async def scenario() -> list[StreamEvent]:
        routed = service(*groups, patience_s=1.0)
        due, acts = 0, dict[int, Callable[[], object]]()
        for gap, what, which in plan:
            due += gap
            acts[due] = lambda what=what, which=which: act(routed, what, which)  # type: ignore[misc]
        events = await collect(routed, spec(n=n), acts)
        assert not any(routed._ledger.outstanding_tokens(g.info.group_id) or g._cuts for g in groups)
        return events

    def act(routed: Service, what: str, which: int) -> None:
        chosen = groups[which]
        if what == "lose":
            for request_id in list(chosen._cuts):
                chosen.abort(request_id)
        for g in groups:
            g.load = DRAINING if what == "move" and g is chosen else FREE
        routed.move_streams()

    events = in_no_time(scenario())
    said = list(groups[0].script(next(g.requests[0] for g in groups if g.requests)))
    for choice in range(n):
        assert [t for e in shown(events, choice) if isinstance(e, Delta) for t in e.token_ids] == said
    assert sum(isinstance(event, Failed | Finished) for event in events) == 1
