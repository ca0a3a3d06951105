"""How long a step may take: no step whose time grows with its size is called stuck, and a stuck one soon is."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.plan import Plan, Slice
from rayline.workers.deadline import (
    FIRST_LIMIT_S,
    FIRST_STEPS,
    LEAST_LIMIT_S,
    MULTIPLE,
    NEW_SIZE_LIMIT_S,
    REMEMBERED,
    InFlight,
    StepSize,
    StepTimes,
    size_of,
)

sizes = st.builds(StepSize, st.integers(1, 8192), st.integers(0, 64), st.integers(1, 2**28))
costs = st.tuples(*[st.floats(0, 1e-2)] * 3, st.floats(0, 1e-6))
histories = st.lists(sizes, min_size=FIRST_STEPS, max_size=60)


def seconds(size: StepSize, cost: tuple[float, ...]) -> float:
    base, token, row, pair = cost
    return base + token * size.tokens + row * size.rows + pair * size.pairs


def times_of(history: list[StepSize], cost: tuple[float, ...], slower: list[float] | None = None) -> StepTimes:
    times = StepTimes()
    for size, factor in zip(history, slower or itertools.repeat(1.0), strict=False):
        times.record(size, factor * seconds(size, cost))
    return times


@given(histories, costs, sizes)
def test_whatever_was_seen_a_step_of_any_size_gets_a_multiple_of_its_time(
    history: list[StepSize], cost: tuple[float, ...], size: StepSize
) -> None:
    limit = times_of(history, cost).limit_s(size)
    assert limit >= 0.99 * MULTIPLE * seconds(size, cost)
    assert limit >= LEAST_LIMIT_S


@given(histories, costs, sizes, st.data())
def test_steps_that_were_disturbed_only_lengthen_the_limits(
    history: list[StepSize], cost: tuple[float, ...], size: StepSize, data: st.DataObject
) -> None:
    factors = data.draw(st.lists(st.floats(1.0, 50.0), min_size=len(history), max_size=len(history)))
    assert times_of(history, cost, factors).limit_s(size) >= times_of(history, cost).limit_s(size)


@given(histories, costs, sizes, st.integers(1, 8))
def test_a_larger_step_gets_no_less_time(
    history: list[StepSize], cost: tuple[float, ...], size: StepSize, times: int
) -> None:
    larger = StepSize(size.tokens * times, size.rows + times, size.pairs * times)
    estimator = times_of([*history, size, larger], cost)
    assert estimator.limit_s(larger) >= estimator.limit_s(size)


@given(sizes, st.floats(0, 100), st.integers(1, 16))
def test_equal_steps_get_a_multiple_of_their_time_and_no_more(size: StepSize, took_s: float, depth: int) -> None:
    times = StepTimes(depth)
    for _ in range(FIRST_STEPS):
        times.record(size, took_s)
    assert times.limit_s(size) == max(LEAST_LIMIT_S, MULTIPLE * depth * took_s)


@given(sizes, st.lists(st.floats(0, 1000), max_size=REMEMBERED // 2))
def test_a_few_slow_steps_among_many_lengthen_nothing(size: StepSize, outliers: list[float]) -> None:
    times = StepTimes()
    for took_s in [0.005] * REMEMBERED + outliers:
        times.record(size, took_s)
    assert times.limit_s(size) == LEAST_LIMIT_S


@given(sizes, st.floats(0.2, 100))
def test_a_machine_that_has_become_slow_is_believed_soon(size: StepSize, took_s: float) -> None:
    times = StepTimes()
    for _ in range(100):
        times.record(size, 0.005)
    for _ in range(REMEMBERED // 2 + 1):
        times.record(size, took_s)
    assert times.limit_s(size) >= MULTIPLE * took_s * 0.999


@given(sizes)
def test_the_first_steps_get_all_the_time_they_may_need(size: StepSize) -> None:
    times = StepTimes()
    for _ in range(FIRST_STEPS):
        assert times.limit_s(size) == FIRST_LIMIT_S
        times.record(size, 0.001)
    assert times.limit_s(size) == LEAST_LIMIT_S


def test_the_first_step_of_a_size_gets_time_to_make_ready_for_it() -> None:
    times, decode, prompt = StepTimes(), StepSize(1, 1, 100), StepSize(512, 1, 512 * 512)
    for _ in range(100):
        times.record(decode, 0.00001)
    assert times.limit_s(decode) == LEAST_LIMIT_S
    assert times.limit_s(prompt) == NEW_SIZE_LIMIT_S
    times.record(prompt, 0.1)
    assert times.limit_s(prompt) == LEAST_LIMIT_S


def test_a_long_prompt_after_many_single_tokens_is_judged_by_earlier_prompts() -> None:
    times, decode, prompt = StepTimes(), StepSize(1, 1, 100), StepSize(512, 1, 512 * 512)
    times.record(prompt, 0.4)
    for _ in range(1000):
        times.record(decode, 0.005)
    assert times.limit_s(prompt) == MULTIPLE * 0.4
    assert times.limit_s(decode) == LEAST_LIMIT_S


@given(st.integers(1, 8192), st.integers(1, 64), st.floats(0, 100))
def test_steps_without_rows_tell_nothing_of_what_rows_cost(tokens: int, rows: int, took_s: float) -> None:
    times = StepTimes()
    for _ in range(FIRST_STEPS):
        times.record(StepSize(tokens, 0, tokens), took_s)
    assert times.limit_s(StepSize(tokens, rows, tokens)) == FIRST_LIMIT_S
    times.record(StepSize(tokens, rows, tokens), took_s)
    assert times.limit_s(StepSize(tokens, rows, tokens)) == max(LEAST_LIMIT_S, MULTIPLE * took_s)


def test_the_size_of_a_plan_counts_tokens_rows_and_pairs() -> None:
    slices = (
        Slice(1, 10, 1, 0, (), True),
        Slice(2, 0, 8, 0, (), True, forks=(3, 4)),
        Slice(5, 4, 4, 0, (), False, scores=True),
    )
    assert size_of(Plan(0, 0, slices=slices)) == StepSize(13, 1 + 3 + 4, 11 + 64 + 32)


PLAN = Plan(0, 0, slices=(Slice(1, 0, 4, 0, (), True),))


def test_a_plan_that_had_to_wait_for_another_one_is_timed_from_its_turn() -> None:
    times = StepTimes()
    flight = InFlight(times)
    for _ in range(4):
        flight.submitted(PLAN, 100.0)
    for now_s in (101.0, 102.0, 103.0, 104.0):
        flight.answered(now_s, 0.0)
    assert len(flight) == 0
    assert times.limit_s(size_of(PLAN)) == MULTIPLE * 1.0


def test_results_that_were_read_late_and_together_count_what_the_rank_was_busy() -> None:
    times = StepTimes()
    flight = InFlight(times)
    for _ in range(3):
        flight.submitted(PLAN, 0.0)
    for _ in range(3):
        flight.answered(3.0, 1.0)
    assert times.limit_s(size_of(PLAN)) == MULTIPLE * 1.0


def test_plans_that_are_launched_one_after_the_other_get_the_time_of_all() -> None:
    times = StepTimes()
    in_flight = InFlight(times)
    assert in_flight.all_limit_s == LEAST_LIMIT_S
    for step, count in enumerate((1, 40)):
        for _ in range(3):
            times.record(StepSize(count, 1, count), 0.5 * count)
        in_flight.submitted(Plan(0, step, slices=(Slice(0, 0, count, 0, (), True),)), now_s=0.0)
    assert in_flight.all_limit_s == times.limit_s(StepSize(1, 1, 1)) + times.limit_s(StepSize(40, 1, 1600))
    in_flight.answered(1.0, 0.5)
    assert in_flight.all_limit_s == in_flight.limit_s


def test_with_nothing_in_flight_the_limit_is_the_least() -> None:
    flight = InFlight(StepTimes())
    assert flight.limit_s == LEAST_LIMIT_S
    flight.submitted(PLAN, 0.0)
    assert flight.limit_s == FIRST_LIMIT_S
