"""Thinking comes once, is counted, and is ended when its budget is spent."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.types import Thinking
from rayline.workers.thought import Thought


def thought(thinking: Thinking, *, comes_first: bool = True) -> Thought:
    return Thought(thinking, comes_first=comes_first)


def took(place: Thought, tokens: Sequence[int]) -> list[bool]:
    return [place.append(token) for token in tokens]


def test_thinking_that_the_prompt_opened_goes_on_to_its_end() -> None:
    place = thought(Thinking((10,), (11, 12), is_open=True))
    assert took(place, [5, 11, 11, 12, 5]) == [True, True, True, True, False]
    assert not place.is_open and place.first is None


def test_before_a_grammar_thinking_begins_with_the_first_token_or_never() -> None:
    place = thought(Thinking((10,), (11,)))
    assert place.first == 10
    assert took(place, [10, 3, 11, 10]) == [True, True, True, False]
    other = thought(Thinking((10,), (11,)))
    assert took(other, [3, 10]) == [False, False] and other.first is None


def test_before_free_text_thinking_may_begin_later_but_once() -> None:
    place = thought(Thinking((10,), (11,), budget_tokens=2), comes_first=False)
    took(place, [3, 4])
    assert place.may_begin and not place.is_open
    took(place, [10, 5, 6])
    assert place.is_open and place.forced == 11
    took(place, [11, 10])
    assert not place.is_open and not place.may_begin and place.forced is None


def test_a_mark_of_several_tokens_is_written_to_its_end_before_a_grammar() -> None:
    place = thought(Thinking((10, 11, 12), (13,)))
    assert place.begun is None and place.append(10) and place.begun == 11
    assert place.append(11) and place.begun == 12 and place.append(12)
    assert place.is_open and place.begun is None


def test_a_spent_budget_forces_what_is_missing_of_the_end() -> None:
    place = thought(Thinking((), (11, 12), budget_tokens=2, is_open=True))
    assert place.forced is None
    place.append(5)
    assert place.forced is None
    place.append(11)
    assert place.forced == 12
    place.append(12)
    assert not place.is_open and place.forced is None


def test_a_budget_of_nothing_ends_thinking_at_once() -> None:
    place = thought(Thinking((10,), (11,), budget_tokens=0))
    place.append(10)
    assert place.forced == 11


def test_thinking_that_has_no_end_mark_is_never_inside() -> None:
    place = thought(Thinking((10,), (), is_open=True))
    assert not place.is_open and not place.may_begin and took(place, [10, 5]) == [False, False]


marks = st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)


@given(marks, marks, st.lists(st.integers(0, 3), max_size=20), st.booleans(), st.booleans())
def test_the_end_is_where_a_search_in_the_tokens_finds_it(
    start: tuple[int, ...], end: tuple[int, ...], tokens: list[int], is_open: bool, comes_first: bool
) -> None:
    place = thought(Thinking(start, end, is_open=is_open), comes_first=comes_first)
    took(place, tokens)
    begin = 0 if is_open else _after(start, tokens, 0)
    if begin is not None and not is_open and comes_first and begin != len(start):
        begin = None
    if begin is None:
        assert not place.is_open
    else:
        assert place.is_open == (_after(end, tokens, begin) is None)


@given(marks, marks, st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_a_copy_goes_on_by_itself(
    start: tuple[int, ...], end: tuple[int, ...], before: list[int], after: list[int]
) -> None:
    thinking = Thinking(start, end, budget_tokens=3)
    whole, first = thought(thinking, comes_first=False), thought(thinking, comes_first=False)
    took(first, before)
    twin = first.copy()
    took(first, [3, 3, 3])
    assert took(whole, [*before, *after])[len(before) :] == took(twin, after)
    assert (whole.is_open, whole.may_begin, whole.forced) == (twin.is_open, twin.may_begin, twin.forced)


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_following_what_is_forced_spends_no_more_than_budget_and_mark(budget: int) -> None:
    place = thought(Thinking((), (8, 9), budget_tokens=budget, is_open=True))
    tokens = 0
    while place.is_open:
        place.append(5 if place.forced is None else place.forced)
        tokens += 1
    assert tokens == budget + 2


def _after(mark: tuple[int, ...], tokens: list[int], begin: int) -> int | None:
    """Where the first `mark` in tokens[begin:] ends."""
    ends = (at + len(mark) for at in range(begin, len(tokens) - len(mark) + 1))
    return next((stop for stop in ends if tuple(tokens[stop - len(mark) : stop]) == mark), None)
