"""The choice of a group: what it promises for every load, and who gets the turn among equals."""

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.errors import Overloaded, Unavailable
from rayline.protos.group import GroupLoad
from rayline.router.policy import GroupView, Scorer, choose, least_outstanding, tokens_ahead


def view(group_id: str, own: int = 0, reported: int = 0, waiting: int = 0, **changes: Any) -> GroupView:
    load = GroupLoad(outstanding_tokens=reported, waiting=waiting)
    plain = GroupView(group_id, "m", True, False, load, own, waiting, 4)
    return replace(plain, **changes)


views = st.lists(
    st.builds(
        view,
        group_id=st.text("abcdef", min_size=1, max_size=3),
        own=st.integers(0, 10**6),
        reported=st.integers(0, 10**6),
        waiting=st.integers(0, 6),
        alive=st.booleans(),
        draining=st.booleans(),
    ),
    max_size=8,
    unique_by=lambda v: v.group_id,
)


def is_open(v: GroupView) -> bool:
    return v.alive and not v.draining and v.waiting < v.max_waiting


@given(views, st.integers(0, 10**6), st.integers(0, 1000))
def test_the_chosen_group_is_open_and_none_has_less_to_do(groups: list[GroupView], tokens: int, turn: int) -> None:
    by_id = {v.group_id: v for v in groups}
    try:
        choice = choose(tokens, groups, turn)
    except Unavailable:
        assert not any(v.alive and not v.draining for v in groups)
    except Overloaded as error:
        assert error.retry_after_s is not None and error.retry_after_s > 0
        assert not any(map(is_open, groups)) and any(v.alive and not v.draining for v in groups)
    else:
        chosen = by_id[choice.group_id]
        assert is_open(chosen)
        assert 0.0 <= choice.score <= 1.0
        assert tokens_ahead(chosen) == min(tokens_ahead(v) for v in groups if is_open(v))


@given(views.filter(lambda groups: any(map(is_open, groups))), st.randoms(), st.integers(0, 100))
def test_the_order_in_which_groups_are_listed_does_not_matter(
    groups: list[GroupView], shuffler: Random, turn: int
) -> None:
    shuffled = list(groups)
    shuffler.shuffle(shuffled)
    assert choose(10, groups, turn) == choose(10, shuffled, turn)


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_the_score_lies_between_0_and_1_and_falls_with_the_load(tokens: int, a: int, b: int) -> None:
    lighter, heavier = (least_outstanding(tokens, view("g", own=own)) for own in sorted((a, b)))
    assert 0.0 <= heavier <= lighter <= 1.0


def test_the_score_follows_its_formula() -> None:
    assert least_outstanding(100, view("g")) == 1.0
    assert least_outstanding(100, view("g", own=100)) == 0.5
    assert least_outstanding(100, view("g", own=20, reported=300)) == 0.25


def test_the_larger_of_own_count_and_report_decides() -> None:
    assert choose(1, [view("a", own=50), view("b", reported=40)], 0).group_id == "b"
    assert choose(1, [view("a", own=10, reported=90), view("b", own=40)], 0).group_id == "b"


def test_equal_groups_take_turns() -> None:
    groups = [view("b"), view("a"), view("c")]
    assert [choose(1, groups, turn).group_id for turn in range(6)] == ["a", "b", "c", "a", "b", "c"]


def test_requests_spread_evenly_when_each_choice_is_counted() -> None:
    sent: Counter[str] = Counter()
    for turn in range(300):
        groups = [view(name, own=sent[name]) for name in "abc"]
        sent[choose(7, groups, turn).group_id] += 7
    assert set(sent.values()) == {700}


def test_a_weighted_second_scorer_can_outvote_the_first() -> None:
    affinity = Scorer("affinity", 3.0, lambda tokens, v: 1.0 if v.group_id == "busy" else 0.0)
    load = Scorer("load", 1.0, least_outstanding)
    groups = [view("busy", own=10**6), view("idle")]
    assert choose(1, groups, 0, [load]).group_id == "idle"
    choice = choose(1, groups, 0, [load, affinity])
    assert choice.group_id == "busy"
    assert 0.75 <= choice.score <= 0.76


def test_a_choice_says_why() -> None:
    (reason,) = choose(1, [view("a", own=3), view("b", alive=False)], 0).reasons
    assert "3 tokens ahead" in reason and "1 open in 2 groups" in reason


def test_no_group_at_all_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="none of the 0 groups"):
        choose(1, [], 0)


def test_a_draining_group_does_not_make_a_full_deployment_look_free() -> None:
    with pytest.raises(Overloaded, match="1 groups are full: 4 requests wait, allowed are 4"):
        choose(1, [view("a", draining=True), view("b", waiting=4)], 0)
