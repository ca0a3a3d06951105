"""Groups whose place keeps killing them: new ones are kept out for longer and longer, then tried, then trusted."""

import pytest
from fakes import FakeGroup, info, saying, service_of
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.group import GroupLoad
from rayline.protos.types import SamplingParams, Spec
from rayline.router.breaker import (
    FIRST_HOLD_S,
    LONGEST_HOLD_S,
    MOST_SHORT_LIVES,
    SHORT_LIFE_S,
    WINDOW_S,
    Breaker,
    Trust,
    hold_s,
    trust,
)
from rayline.router.ledger import Ledger
from rayline.router.policy import choose, view_of


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def lives(
    breaker: Breaker, clock: Clock, count: int, seconds: float, place: str = "a", explained: bool = False
) -> None:
    for n in range(count):
        breaker.joined(f"{place}{n}", place)
        clock.now_s += seconds
        breaker.left(f"{place}{n}", is_explained=explained)
        clock.now_s += 5.0


def test_a_group_whose_place_killed_others_is_kept_out_then_tried_then_trusted() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    lives(breaker, clock, MOST_SHORT_LIVES, 8.0)
    breaker.joined("next", "a")
    breaker.joined("elsewhere", "b")
    assert breaker.trust("next") is Trust.NONE and breaker.trust("elsewhere") is Trust.FULL
    clock.now_s += FIRST_HOLD_S
    assert breaker.trust("next") is Trust.ON_TRIAL
    clock.now_s += SHORT_LIFE_S
    assert breaker.trust("next") is Trust.FULL


def test_an_older_group_in_the_same_place_stays_trusted() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.joined("old", "a")
    lives(breaker, clock, 5, 8.0)
    assert breaker.trust("old") is Trust.FULL


@pytest.mark.parametrize(("seconds", "explained"), [(SHORT_LIFE_S, False), (8.0, True)], ids=["long", "explained"])
def test_long_lives_and_explained_ends_say_nothing_against_a_place(seconds: float, explained: bool) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    lives(breaker, clock, 8, seconds, explained=explained)
    breaker.joined("next", "a")
    assert breaker.trust("next") is Trust.FULL


def test_what_is_long_ago_is_forgotten() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    lives(breaker, clock, 8, 8.0)
    clock.now_s += WINDOW_S
    breaker.joined("next", "a")
    assert breaker.trust("next") is Trust.FULL


@given(st.lists(st.floats(0.0, WINDOW_S * 2), max_size=12), st.floats(0.0, 3 * WINDOW_S))
def test_the_time_out_grows_with_each_short_life_up_to_a_bound(ends: list[float], now_s: float) -> None:
    held = hold_s(ends, now_s)
    assert 0.0 <= held <= LONGEST_HOLD_S
    assert hold_s([*ends, now_s], now_s) >= held
    order = [trust(held, age) for age in (0.0, held, held + SHORT_LIFE_S)]
    assert order == ([Trust.NONE, Trust.ON_TRIAL, Trust.FULL] if held else [Trust.FULL] * 3)


def group(name: str, trusted: Trust, waiting: int = 0) -> FakeGroup:
    load = GroupLoad(waiting=waiting, outstanding_tokens=0 if trusted is not Trust.FULL else 1000)
    return FakeGroup(saying("x"), info(name), load, trust=trusted)


def chosen(*groups: FakeGroup, outstanding: int = 0) -> str:
    ledger = Ledger()
    ledger.lease("b", outstanding)
    return choose(10, [view_of(each, ledger) for each in groups], 0).group_id


def test_a_group_that_is_kept_out_gets_nothing_while_there_is_another() -> None:
    assert chosen(group("a", Trust.FULL), group("b", Trust.NONE)) == "a"
    assert chosen(group("b", Trust.NONE)) == "b", "better than nothing"


def test_a_group_on_trial_gets_one_request_at_a_time() -> None:
    assert chosen(group("a", Trust.FULL), group("b", Trust.ON_TRIAL)) == "b"
    assert chosen(group("a", Trust.FULL), group("b", Trust.ON_TRIAL), outstanding=5) == "a"


def test_full_groups_are_not_chosen_for_being_trusted() -> None:
    full = group("a", Trust.FULL, waiting=4)
    assert chosen(full, group("b", Trust.NONE)) == "b"


async def test_a_service_leaves_out_what_is_kept_out() -> None:
    kept, other = group("g0", Trust.NONE), group("g1", Trust.FULL)
    service = service_of(kept, other)

    for n in range(4):
        wanted = Spec(f"r{n}", "tiny", SamplingParams(max_tokens=3), prompt="the dog")
        assert [event async for event in service.generate(wanted)]
    assert not kept.requests and len(other.requests) == 4
