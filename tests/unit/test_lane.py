"""Streams whose group is lost go on in another one: the client sees what it would have seen anyway."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeGroup, info, saying, service_of
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.blame import PROOF_TOKENS
from rayline.protos.errors import InvalidRequest, Overloaded, RaylineError, Unavailable
from rayline.protos.events import Delta, Failed, Finished, StreamEvent
from rayline.protos.group import GroupLoad
from rayline.protos.types import SamplingParams, Spec
from rayline.router.service import Service

SAYING = "the quick brown fox jumps"
BUSY = GroupLoad(outstanding_tokens=10**6)  # asked only when the others are gone


def spec(**params: Any) -> Spec:
    return Spec("r1", "tiny", SamplingParams(**{"max_tokens": 30, **params}), prompt="the dog")


def run(service: Service, wanted: Spec) -> list[StreamEvent]:
    async def collect() -> list[StreamEvent]:
        return [event async for event in service.generate(wanted)]

    return asyncio.run(collect())


def lost_after(tokens: int, group_id: str = "g0", **changes: Any) -> FakeGroup:
    return FakeGroup(saying(SAYING), info(group_id), loss=Unavailable("gone"), loss_after=tokens, **changes)


def whole(group_id: str = "g1", **changes: Any) -> FakeGroup:
    return FakeGroup(saying(SAYING), info(group_id), **{"load": BUSY, **changes})


def shown(events: list[StreamEvent]) -> list[StreamEvent]:
    """All but the end, which says how long it took and how often it moved."""
    assert isinstance(events[-1], Finished)
    return events[:-1]


def end(events: list[StreamEvent]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished) and last.overhead is not None
    return last


PARAMS: list[dict[str, Any]] = [
    {},
    {"logprobs": 2},
    {"stop": ("ck br",)},
    {"stop": ("jumps!",), "min_tokens": 4},
    {"max_tokens": 9},
    {"prompt_logprobs": 1},
    {"n": 3, "logprobs": 0},
    {"n": 1, "best_of": 3},
]


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("tokens", range(6))
def test_a_stream_cut_after_any_token_shows_the_same_as_an_undisturbed_one(tokens: int, params: dict[str, Any]) -> None:
    undisturbed = run(service_of(whole()), spec(**params))
    first, second = lost_after(tokens), whole()
    service = service_of(first, second)
    events = run(service, spec(**params))
    choices = params.get("best_of", params.get("n", 1))
    if choices == 1:
        assert shown(events) == shown(undisturbed)
    for choice in range(params.get("n", 1)):
        deltas, others = (
            [e for e in es if isinstance(e, Delta) and e.choice == choice] for es in (events, undisturbed)
        )
        assert deltas == others
    assert end(events).usage == end(undisturbed).usage and end(events).exact
    said = first.script(first.requests[0])
    assert all(list(request.output_ids) == list(said[:tokens]) for request in second.requests)
    assert all(request.is_stalled for request in second.requests)
    assert all(
        replace(r, output_ids=(), request_id=r.request_id.removesuffix("+1"), is_stalled=False) in first.requests
        for r in second.requests
    )
    assert not service._ledger.outstanding_tokens("g0") and not service._ledger.outstanding_tokens("g1")


def test_a_stream_that_moved_says_so() -> None:
    overhead = end(run(service_of(lost_after(3), whole()), spec())).overhead
    assert overhead is not None and overhead.moves == overhead.losses == 1
    overhead = end(run(service_of(whole()), spec())).overhead
    assert overhead is not None and overhead.moves == 0


def test_a_search_of_which_nothing_was_shown_begins_again() -> None:
    first = lost_after(0)
    events = run(service_of(first, whole()), spec(beam_width=3, n=2))
    assert shown(events) == shown(run(service_of(whole()), spec(beam_width=3, n=2)))


def test_a_stream_may_move_as_often_as_it_gains_tokens_between() -> None:
    script, moves = saying("abcdefghijklmnopqrstuvwxyz" * 3), 6
    wanted = spec(max_tokens=PROOF_TOKENS * (moves + 1))
    groups = [
        FakeGroup(script, info(f"g{n}"), GroupLoad(outstanding_tokens=n), loss=Unavailable("gone"), loss_after=after)
        for n, after in enumerate(range(PROOF_TOKENS, PROOF_TOKENS * (moves + 1), PROOF_TOKENS))
    ]
    events = run(service_of(*groups, FakeGroup(script, info("g99"), BUSY)), wanted)
    assert shown(events) == shown(run(service_of(FakeGroup(script)), wanted))
    overhead = end(events).overhead
    assert overhead is not None and overhead.moves == moves
    assert [request.is_stalled for group in groups for request in group.requests] == [False, *[True] * (moves - 1)]
    assert not any(request.apart_at is not None for group in groups for request in group.requests)


def test_a_stream_waits_for_a_group_that_is_being_rebuilt() -> None:
    first = lost_after(3)
    service = service_of(first, patience_s=5.0)
    groups = service.model("tiny").groups

    async def scenario() -> list[StreamEvent]:
        seen = []
        async for event in service.generate(spec()):
            seen.append(event)
            if sum(isinstance(e, Delta) for e in seen) == 3 and first.info.group_id in groups:
                asyncio.get_running_loop().call_later(0.1, groups.update, {"g0": whole("g0")})  # type: ignore[attr-defined]
        return seen

    assert shown(asyncio.run(scenario())) == shown(run(service_of(whole("g0")), spec()))


def test_without_another_group_the_loss_is_told_when_patience_ends() -> None:
    events = run(service_of(lost_after(3), patience_s=0.2), spec())
    assert isinstance(events[-1], Failed) and events[-1].error.message == "gone"
    assert sum(isinstance(event, Failed | Finished) for event in events) == 1


def test_a_full_group_is_passed_over_for_the_next() -> None:
    full = whole("g1", refusal=Overloaded("full"), load=GroupLoad(outstanding_tokens=5))
    events = run(service_of(lost_after(3), full, whole("g2")), spec())
    assert shown(events) == shown(run(service_of(whole()), spec()))


def test_a_group_of_the_same_numerics_is_preferred_and_another_one_is_not_called_exact() -> None:
    other = whole("g1", load=GroupLoad(outstanding_tokens=1))
    other.info = replace(other.info, numerics="another")
    same = whole("g2")
    assert end(run(service_of(lost_after(3), other, same), spec())).exact and same.requests
    other.requests.clear()
    assert not end(run(service_of(lost_after(3), other), spec())).exact and other.requests


@pytest.mark.parametrize("loss", [InvalidRequest("no"), ValueError("bug")])
def test_an_error_that_is_not_the_groups_loss_ends_the_request(loss: Exception) -> None:
    first, second = lost_after(3), whole()
    first.loss = loss
    events = run(service_of(first, second), spec())
    assert isinstance(events[-1], Failed) and second.requests == []


losses = st.lists(st.tuples(st.integers(0, 26), st.sampled_from([Unavailable("a"), Overloaded("b")])), max_size=5)


@given(losses, st.integers(1, 3))
def test_whatever_is_lost_no_token_comes_twice_and_none_is_left_out(
    faults: list[tuple[int, RaylineError]], n: int
) -> None:
    groups = [
        FakeGroup(
            saying(SAYING), info(f"g{i}"), GroupLoad(outstanding_tokens=i), loss=error, loss_after=tokens, requests=[]
        )
        for i, (tokens, error) in enumerate(faults)
    ]
    service = service_of(*groups, whole("g9"))
    events = run(service, spec(n=n))
    said = list(groups[0].script(groups[0].requests[0])) if groups else []
    for choice in range(n):
        ids = [t for e in events if isinstance(e, Delta) and e.choice == choice for t in e.token_ids]
        assert ids == said[: len(ids)] or not groups
    assert sum(isinstance(event, Failed | Finished) for event in events) == 1
    if isinstance(events[-1], Finished) and groups:
        assert events[-1].usage.output_tokens == n * len(said)
    assert not any(service._ledger.outstanding_tokens(g.info.group_id) for g in [*groups, whole("g9")])
