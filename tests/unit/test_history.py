"""Histories kept token by token: equal to those made at once, whatever was resumed or forked in between."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.protos.plan import Admission, Fork, Plan
from rayline.protos.types import SamplingParams, Thinking, TokenRules
from rayline.workers.history import History, needs_history
from rayline.workers.resident import Residents

VOCAB = 6
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=150)
words = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3).map(tuple), max_size=5).map(tuple)
marks = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=3).map(tuple)
thoughts = st.none() | st.builds(Thinking, marks, marks, st.none() | st.integers(0, 20), st.booleans())
params = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    no_repeat_ngram_size=st.integers(0, 4),
)
rules = st.builds(TokenRules, words, st.just(""), thoughts)

Known = tuple[dict[int, float] | None, list[int], int | None]


def known(history: History) -> Known:
    """All that a history tells."""
    counts = history.counts and dict(zip(history.counts[0].tolist(), history.counts[1].tolist(), strict=True))
    return counts or None, sorted(set(history.banned)), history.forced


@given(params, rules, tokens, tokens, st.data())
@settings(deadline=None)
def test_a_history_grown_token_by_token_is_the_one_made_at_once(
    params: SamplingParams, rules: TokenRules, prompt: list[int], output: list[int], data: st.DataObject
) -> None:
    before = data.draw(st.integers(0, len(output)))
    grown = History(params, rules, prompt, output[:before])
    for token in output[before:]:
        grown.append(token)
    assert known(grown) == known(History(params, rules, prompt, output))


@given(params, rules, tokens, tokens, tokens)
@settings(deadline=None)
def test_forks_go_on_by_themselves(
    params: SamplingParams, rules: TokenRules, prompt: list[int], mine: list[int], its: list[int]
) -> None:
    first = History(params, rules, prompt, ())
    fork = first.copy()
    for token in mine:
        first.append(token)
    for token in its:
        fork.append(token)
    assert known(first) == known(History(params, rules, prompt, mine))
    assert known(fork) == known(History(params, rules, prompt, its))


def test_only_requests_that_look_back_have_a_history() -> None:
    plain = TokenRules()
    assert not needs_history(SamplingParams(top_p=0.5, min_tokens=3, logprobs=4), plain)
    assert not needs_history(SamplingParams(), TokenRules(thinking=Thinking((1,), (2,))))
    assert needs_history(SamplingParams(presence_penalty=0.1), plain)
    assert needs_history(SamplingParams(no_repeat_ngram_size=2), plain)
    assert needs_history(SamplingParams(), TokenRules(bad_words=((1,),)))
    assert needs_history(SamplingParams(), TokenRules(thinking=Thinking((1,), (2,), budget_tokens=0)))


# ---- thinking

START, END = (8, 9), (5, 6, 7)


def forced_by(output: Sequence[int], budget: int, is_open: bool = True) -> int | None:
    rules = TokenRules(thinking=Thinking(START, END, budget, is_open))
    return History(SamplingParams(), rules, (1, 2), output).forced


def finished(output: Sequence[int], budget: int, is_open: bool = True) -> list[int]:
    """The output with what is forced behind it."""
    found = list(output)
    while (token := forced_by(found, budget, is_open)) is not None:
        found.append(token)
    return found


def test_the_end_of_thinking_is_forced_token_by_token_when_the_budget_is_spent() -> None:
    assert forced_by([1, 1], 3) is None
    assert finished([1, 1, 1], 3) == [1, 1, 1, 5, 6, 7]
    assert finished([], 0) == [5, 6, 7]


def test_an_end_that_has_begun_is_not_begun_again() -> None:
    assert finished([1, 1, 5, 6], 4) == [1, 1, 5, 6, 7]
    assert finished([5, 5], 2) == [5, 5, 6, 7]


def test_thinking_that_ended_in_time_forces_nothing() -> None:
    assert finished([1, 5, 6, 7], 4) == [1, 5, 6, 7]
    assert finished([1, 5, 6, 7, *[1] * 50], 4) == [1, 5, 6, 7, *[1] * 50]


def test_only_tokens_inside_of_thinking_are_counted() -> None:
    assert finished([1] * 9, 2, is_open=False) == [1] * 9
    assert finished([1] * 9 + [8, 9, 1], 2, is_open=False) == [1] * 9 + [8, 9, 1]
    assert finished([1] * 9 + [8, 9, 1, 1], 2, is_open=False) == [1] * 9 + [8, 9, 1, 1, 5, 6, 7]


def test_thinking_comes_once_so_a_later_start_mark_forces_nothing() -> None:
    once = [1, 5, 6, 7, 8, 9]
    assert finished([*once, 1, 1, 1], 5) == [*once, 1, 1, 1]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 10), st.booleans())
def test_whatever_is_output_forcing_ends(output: list[int], budget: int, is_open: bool) -> None:
    assert len(finished(output, budget, is_open)) <= len(output) + len(END)


# ---- in residents


@pytest.mark.parametrize("is_asked_early", [True, False])
def test_a_resident_keeps_its_history_up_and_forks_copy_it(is_asked_early: bool) -> None:
    asked, residents = SamplingParams(frequency_penalty=1.0), Residents()
    residents.follow(Plan(1, 1, admitted=(Admission(3, (1, 2), (4,), asked),)))
    if is_asked_early:
        residents[3].kept_history()
    residents.gain(3, 4)
    residents.follow(Plan(1, 2, forked=(Fork(5, 3, asked),)))
    residents.gain(3, 2)
    residents.gain(5, 1)
    for number, counts in ((3, {4: 2.0, 2: 1.0}), (5, {4: 2.0, 1: 1.0})):
        history = residents[number].kept_history()
        assert history is not None
        assert known(history)[0] == counts


def test_a_resident_that_asks_for_nothing_keeps_nothing() -> None:
    residents = Residents()
    residents.follow(Plan(1, 1, admitted=(Admission(3, (1, 2), (), SamplingParams(top_p=0.9)),)))
    assert residents[3].kept_history() is None
