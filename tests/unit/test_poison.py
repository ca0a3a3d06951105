"""Poison among innocents: the real service over groups that die of it. It is found in time, and nobody else pays."""

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest
from fakes import CHAT
from hypothesis import given, settings
from hypothesis import strategies as st
from poison import AT_ONCE, IN_DECODE, LATE, POISONS, World, in_no_time
from scheduler_bench import alone
from small_tokenizers import served

from rayline.protos.blame import Presence, Record, Suspect
from rayline.protos.errors import DeadlineExceeded, Overloaded, Quarantined, RaylineError, Unavailable
from rayline.protos.events import Delta, Failed, Finished, StreamEvent
from rayline.protos.types import EngineRequest, SamplingParams, Spec, choice_seed
from rayline.router import docket as docket_module
from rayline.router.blame import after_loss, fingerprint
from rayline.router.docket import BlameLimits, Docket
from rayline.router.service import ServedModel, Service

LIMITS = BlameLimits()
BOUND = LIMITS.poison_losses + 1
Seen = list[StreamEvent] | RaylineError


def service_over(world: World, docket: Docket | None = None) -> Service:
    loop = asyncio.get_running_loop()
    tokenizer = served("byte_level", CHAT, bos_token="<s>", eos_token="</s>")
    model = ServedModel("tiny", tokenizer, world.groups, 0)  # type: ignore[arg-type]
    dockets = {"tiny": docket or Docket(LIMITS, loop.time)}
    return Service({"tiny": model}, loop.time, lambda: 7, 60.0, wall_clock=loop.time, dockets=dockets)


def spec(name: str, first: int = 1, tokens: int = 25, **params: Any) -> Spec:
    """`first`: the prompt's first token, which says whether it is poison."""
    sampling = SamplingParams(**{"max_tokens": tokens, "ignore_eos": True, "seed": 3, **params})
    ids = (first, *(sum(map(ord, name)) * place % 40 for place in range(1, 6)))
    return Spec(name, "tiny", sampling, prompt_ids=ids)


async def read(service: Service, wanted: Spec, after_s: float = 0.0) -> Seen:
    """As clients do it asks again while there is no group to begin in, or no room: nothing has been accepted then."""
    await asyncio.sleep(after_s)
    for _ in range(1000):
        try:
            return [event async for event in service.generate(wanted)]
        except (Unavailable, Overloaded):
            await asyncio.sleep(0.1)
        except RaylineError as error:
            return error
    raise AssertionError("never accepted")


def play(*wanted: Spec, groups: int = 2, strikes: list[tuple[int, int]] | None = None, depth: int = 1) -> Any:
    """All requests at once, with faults at (ticks, place): what each saw, and the world afterwards."""

    async def scenario() -> tuple[list[Seen], World]:
        world = World(groups, depth)
        service = service_over(world)
        for ticks, place in strikes or []:
            asyncio.get_running_loop().call_later(ticks / 20, world.strike, place)
        task = asyncio.create_task(world.run())
        seen = await asyncio.gather(*(read(service, each, 0.03 * n) for n, each in enumerate(wanted)))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return seen, world

    return in_no_time(scenario())


def error_of(seen: Seen) -> RaylineError | None:
    if isinstance(seen, RaylineError):
        return seen
    return seen[-1].error if isinstance(seen[-1], Failed) else None


def token_ids(seen: Seen, choice: int = 0) -> list[int]:
    assert not isinstance(seen, RaylineError), seen
    return [t for event in seen if isinstance(event, Delta) and event.choice == choice for t in event.token_ids]


def expected(wanted: Spec, choice: int = 0) -> list[int]:
    params = replace(wanted.params, seed=choice_seed(wanted.params.seed or 0, choice))
    return alone(wanted.prompt_ids or (), params, 64)


def assert_undisturbed(wanted: Spec, seen: Seen) -> None:
    assert error_of(seen) is None, error_of(seen)
    assert isinstance(seen, list) and isinstance(seen[-1], Finished)
    for choice in range(0 if wanted.params.beam_width else wanted.params.n):
        assert token_ids(seen, choice) == expected(wanted, choice)


@pytest.mark.parametrize("kind", POISONS, ids=["at once", "late", "in decode"])
@pytest.mark.parametrize("depth", [1, 2])
def test_poison_is_found_after_its_bound_and_innocents_see_what_they_would_have_seen_anyway(
    kind: int, depth: int
) -> None:
    innocents = [spec(f"i{n}", tokens=40) for n in range(6)]
    (*seen, last), world = play(*innocents, spec("poison", kind), depth=depth)
    for wanted, events in zip(innocents, seen, strict=True):
        assert_undisturbed(wanted, events)
    assert type(error_of(last)) is Quarantined
    assert world.deaths == sum(world.kills.values()) == BOUND


def test_what_poison_said_before_it_killed_is_what_it_would_have_said() -> None:
    wanted = spec("poison", LATE)
    (seen,), _ = play(wanted)
    assert token_ids(seen) == expected(wanted)[: len(token_ids(seen))] and len(token_ids(seen)) >= 4


@pytest.mark.parametrize("params", [{"n": 3}, {"beam_width": 2, "seed": None}], ids=["choices", "beams"])
def test_choices_and_searches_are_found_too(params: dict[str, Any]) -> None:
    innocents = [spec(f"i{n}", tokens=40) for n in range(3)]
    (*seen, last), world = play(*innocents, spec("poison", AT_ONCE, **params))
    for wanted, events in zip(innocents, seen, strict=True):
        assert_undisturbed(wanted, events)
    assert type(error_of(last)) is Quarantined
    assert world.deaths == BOUND


def test_a_retry_is_refused_at_once_and_after_a_while_no_more() -> None:
    async def scenario() -> None:
        world = World(2)
        service = service_over(world)
        task = asyncio.create_task(world.run())
        assert type(error_of(await read(service, spec("p1", AT_ONCE)))) is Quarantined
        deaths = world.deaths
        again = spec("p1", AT_ONCE, seed=99)
        refused = await read(service, again)
        assert isinstance(refused, Quarantined), "before anything is promised"
        assert "fingerprint" in refused.message and world.deaths == deaths
        assert error_of(await read(service, spec("i1"))) is None
        await asyncio.sleep(LIMITS.quarantine_s + 1.0)
        assert type(error_of(await read(service, again))) is Quarantined and world.deaths == 2 * deaths
        task.cancel()

    in_no_time(scenario())


def test_a_client_that_gives_up_and_asks_again_is_found_out_all_the_same() -> None:
    async def scenario() -> None:
        world = World(2)
        service = service_over(world)
        task = asyncio.create_task(world.run())
        errors = []
        for attempt in range(6):
            wanted = spec(f"p{attempt}", AT_ONCE)
            wanted = Spec(wanted.request_id, "tiny", wanted.params, prompt_ids=spec("p", AT_ONCE).prompt_ids)
            try:
                errors.append(await asyncio.wait_for(read(service, wanted), 0.5))
            except TimeoutError:
                await asyncio.sleep(2.0)
        assert [type(error) for error in errors][-1] is Quarantined
        assert world.deaths == BOUND
        task.cancel()

    in_no_time(scenario())


def test_whoever_waits_while_one_like_it_is_computed_alone_gets_the_verdict_too() -> None:
    async def scenario() -> None:
        world = World(2)
        service = service_over(world)
        task = asyncio.create_task(world.run())
        first = asyncio.create_task(read(service, spec("p", AT_ONCE)))
        while world.deaths < LIMITS.poison_losses:
            await asyncio.sleep(0.01)
        first.cancel()
        while len(world.groups) < 2:
            await asyncio.sleep(0.01)
        ids = spec("p", AT_ONCE).prompt_ids
        both = (replace(spec(name, AT_ONCE), prompt_ids=ids) for name in ("one", "two"))
        seen = await asyncio.gather(*(read(service, wanted) for wanted in both))
        assert [type(error_of(each)) for each in seen] == [Quarantined, Quarantined]
        assert world.deaths == BOUND
        task.cancel()

    in_no_time(scenario())


def test_whoever_waits_while_one_like_it_is_computed_alone_waits_no_longer_than_its_client() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        world, docket = World(1), Docket(LIMITS, loop.time)
        service = service_over(world, docket)
        task = asyncio.create_task(world.run())
        (group,) = world.groups.values()
        admitted: list[EngineRequest] = []
        add = group.engine.add
        group.engine.add = lambda request: (admitted.append(request), add(request))[1]  # type: ignore[method-assign]
        wanted = spec("i1")
        assert_undisturbed(wanted, await read(service, wanted))
        (request,) = admitted
        docket.hear([Suspect(fingerprint(request), Record(LIMITS.poison_losses, 0), LIMITS.quarantine_s)])
        docket.case(request).run(request, "elsewhere")  # and stays there for ever
        seen = await asyncio.wait_for(read(service, replace(wanted, request_id="i2", timeout_s=3.0)), 4.0)
        assert type(error_of(seen)) is DeadlineExceeded and admitted == [request]
        task.cancel()

    in_no_time(scenario())


def test_two_poisons_are_both_found() -> None:
    innocents = [spec(f"i{n}", tokens=50) for n in range(4)]
    (*seen, one, two), world = play(*innocents, spec("pa", AT_ONCE), spec("pbb", LATE), groups=3)
    for wanted, events in zip(innocents, seen, strict=True):
        assert_undisturbed(wanted, events)
    assert type(error_of(one)) is type(error_of(two)) is Quarantined
    assert max(world.kills.values()) <= BOUND


SEARCH = {"beam_width": 2, "seed": None, "tokens": 40}


def lost_searches(*tokens: int) -> tuple[Seen, Seen, list[bool]]:
    """A search beside a stream, each time lost with its group when it has come to so many tokens: what both saw, and
    whether it was computed alone then."""

    async def scenario() -> tuple[Seen, Seen, list[bool]]:
        world = World(1)
        service = service_over(world)
        task = asyncio.create_task(world.run())
        stream = asyncio.create_task(read(service, spec("i1", tokens=50)))
        search = asyncio.create_task(read(service, spec("beam", **SEARCH)))
        alone = []
        for come in tokens:
            group = await world.until_searched(come)
            alone.append(bool(group.apart))
            world.end(group)
        seen = await search, await stream
        task.cancel()
        return *seen, alone

    return in_no_time(scenario())


def test_a_search_is_not_to_blame_for_losses_where_it_has_been_through_before() -> None:
    (undisturbed,), _ = play(spec("beam", **SEARCH))
    seen, stream, alone = lost_searches(25, 4, 12, 3, 25, 2, 14, 7)
    assert alone == [False] * 8
    assert_undisturbed(spec("i1", tokens=50), stream)
    assert error_of(seen) is None and token_ids(seen) == token_ids(undisturbed)


def test_a_search_that_is_lost_at_one_place_again_and_again_is_computed_alone_there_and_then_it_shows() -> None:
    seen, stream, alone = lost_searches(20, 22, 21)
    assert alone == [False, False, True]
    assert type(error_of(seen)) is Quarantined
    assert_undisturbed(spec("i1", tokens=50), stream)


def test_a_search_that_poisons_late_is_found_after_its_bound() -> None:
    poison, innocents = spec("poison", IN_DECODE, **SEARCH), [spec(f"i{n}", tokens=40) for n in range(3)]
    (*seen, last), world = play(*innocents, poison)
    for wanted, events in zip(innocents, seen, strict=True):
        assert_undisturbed(wanted, events)
    assert type(error_of(last)) is Quarantined and world.deaths == BOUND


@pytest.mark.parametrize(
    ("record", "presence", "position", "was_apart", "after"),
    [
        (Record(), Presence.AMONG, 0, False, Record(1, 0)),
        (Record(1, 0), Presence.AMONG, 3, False, Record(2, 3)),
        (Record(1, 40), Presence.AMONG, 36, False, Record(2, 40)),
        (Record(1, 40), Presence.AMONG, 32, False, Record(1, 40)),
        (Record(2, 40), Presence.ALONE, 32, True, Record(2, 40)),
        (Record(2, 40), Presence.ALONE, 33, True, Record(2, 40, is_guilty=True)),
        (Record(2, 40), Presence.ALONE, 47, True, Record(2, 40, is_guilty=True)),
        (Record(2, 40), Presence.AMONG, 48, True, Record(1, 48)),
        (Record(2, 40), Presence.AMONG, 41, True, Record(2, 40)),
        (Record(2, 40), Presence.ABSENT, 41, False, Record(2, 40)),
    ],
)
def test_what_a_loss_adds_to_a_record(
    record: Record, presence: Presence, position: int, was_apart: bool, after: Record
) -> None:
    assert after_loss(record, presence, position, was_apart) == after


def test_nobody_takes_the_fingerprint_of_a_request_that_nothing_is_held_against(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def taken(request: EngineRequest) -> str:
        raise AssertionError("of a prompt of 100 000 tokens that takes milliseconds")

    monkeypatch.setattr(docket_module, "fingerprint", taken)
    wanted = spec("i1", n=3)
    (seen,), _ = play(wanted)
    assert_undisturbed(wanted, seen)


strikes = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 3)), max_size=8)
poisons = st.lists(st.sampled_from(POISONS), max_size=2)
shapes = st.lists(st.sampled_from([{}, {}, {"n": 2}, {"beam_width": 2, "seed": None}]), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(strikes, poisons, shapes, st.integers(1, 3), st.integers(1, 2))
def test_whatever_strikes_when_innocents_end_well_and_poison_is_found_in_time(
    faults: list[tuple[int, int]], kinds: list[int], innocents: list[dict[str, Any]], groups: int, depth: int
) -> None:
    """Faults strike at any time but while a suspect is computed alone."""
    good = [spec(f"i{n}", tokens=30, **params) for n, params in enumerate(innocents)]
    bad = [spec(f"p{n}" * (n + 1), kind) for n, kind in enumerate(kinds)]
    seen, world = play(*good, *bad, groups=groups, strikes=faults, depth=depth)
    for wanted, events in zip(good, seen, strict=False):
        assert_undisturbed(wanted, events)
    for wanted, events in zip(bad, seen[len(good) :], strict=True):
        assert type(error_of(events)) is Quarantined
        assert 0 < world.kills[wanted.prompt_ids or ()] <= BOUND
