"""The bounded queue of a group, how fast it drains, and when refused clients are told to come again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_bench import Bench, limits

from rayline.cluster.retry_hint import LEAST_S, MOST_S, UNKNOWN_RATE_S, RetryHints, excess
from rayline.protos.errors import Overloaded
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.scheduling.drain_rate import MEMORY_S, DrainRate


def refusal(bench: Bench, prompt: int = 4) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        bench.add("one too many", prompt=prompt)
    return caught.value


# ---- the queue


def test_the_queue_is_bounded_by_tokens_too() -> None:
    bench = Bench(limits(max_waiting_tokens=50, max_running=1))
    bench.add("a", prompt=30)
    bench.add("b", prompt=20)
    error = refusal(bench, prompt=1)
    assert error.field == "max_waiting_tokens" and "at most 50 may wait" in error.message
    bench.step()
    assert bench.scheduler.load().waiting_tokens == 20
    bench.add("c", prompt=30)


def test_a_prompt_larger_than_the_bound_may_wait_alone() -> None:
    bench = Bench(limits(max_waiting_tokens=5))
    bench.add("large", prompt=40)
    refusal(bench, prompt=1)
    bench.run()
    assert bench.finished("large")


def test_a_stream_that_goes_on_elsewhere_counts_with_its_output() -> None:
    bench = Bench(limits(max_waiting_tokens=50))
    params = SamplingParams(max_tokens=30, ignore_eos=True, seed=0)
    bench.scheduler.add(EngineRequest("moved", (1,) * 10, params, output_ids=(2,) * 20), 0.0)
    assert bench.scheduler.load().waiting_tokens == 30


def test_choices_of_one_request_wait_with_one_prompt() -> None:
    bench = Bench()
    params = SamplingParams(max_tokens=4, ignore_eos=True, seed=0)
    for number in range(5):
        bench.scheduler.add(EngineRequest(f"r/{number}", (1,) * 10, params, family="r"), 0.0)
    load = bench.scheduler.load()
    assert (load.waiting, load.waiting_tokens) == (5, 10)


@given(st.lists(st.tuples(st.sampled_from(["add", "abort", "step"]), st.integers(1, 30)), max_size=40))
def test_waiting_tokens_are_those_of_the_waiting(actions: list[tuple[str, int]]) -> None:
    bench = Bench(limits(max_running=2, max_waiting_tokens=60), blocks=20)
    prompts: dict[str, int] = {}
    for number, (action, size) in enumerate(actions):
        if action == "add":
            try:
                bench.add(f"r{number}", prompt=size, max_tokens=20)
                prompts[f"r{number}"] = size
            except Overloaded:
                pass
        elif action == "abort":
            bench.scheduler.abort(f"r{size}")
        else:
            bench.step()
        running = {s.request.request_id for s in bench.scheduler.live if s.place.name == "RUNNING"}
        waits = [s.request.request_id for s in bench.scheduler.live if s.request.request_id not in running]
        assert bench.scheduler.load().waiting_tokens == sum(prompts[name] for name in waits)
    bench.run()
    assert bench.scheduler.load().waiting_tokens == 0


# ---- the rate


def test_the_rate_is_that_of_tokens_that_start_while_others_wait() -> None:
    drain = DrainRate()
    for step in range(401):
        drain.look(waiting=5, now_s=step * 0.01)
        drain.started(3)
    assert drain.tokens_per_s == pytest.approx(300.0, rel=0.05)


def test_what_starts_while_nobody_waits_says_nothing() -> None:
    drain = DrainRate()
    for step in range(400):
        drain.started(3)
        drain.look(waiting=0, now_s=step * 0.01)
    assert drain.tokens_per_s == 0.0
    drain.look(waiting=1, now_s=100.0)
    drain.started(10)
    drain.look(waiting=0, now_s=100.1)
    assert drain.tokens_per_s == 0.0, "a tenth of a second is too short to say"
    drain.look(waiting=1, now_s=200.0)
    drain.started(10)
    drain.look(waiting=1, now_s=200.5)
    assert drain.tokens_per_s == pytest.approx(20.0), "and the time between did not count"


def test_a_change_is_believed_within_seconds() -> None:
    drain, now_s = DrainRate(), 0.0
    for tokens in (100, 10):
        for _ in range(round(3 * MEMORY_S / 0.05)):
            now_s += 0.05
            drain.started(tokens)
            drain.look(waiting=1, now_s=now_s)
    assert drain.tokens_per_s == pytest.approx(200.0, rel=0.6) and drain.tokens_per_s >= 200.0


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 3), st.floats(0.0, 3.0)), max_size=50))
def test_the_rate_is_never_negative_and_never_above_the_fastest_stretch(steps: list[tuple[int, int, float]]) -> None:
    drain, now_s = DrainRate(), 0.0
    for tokens, waiting, pause_s in steps:
        now_s += pause_s
        drain.started(tokens)
        drain.look(waiting, now_s)
        assert 0.0 <= drain.tokens_per_s <= sum(tokens for tokens, _, _ in steps) / 0.25


# ---- the hints


def test_nothing_is_known_before_anything_was_measured() -> None:
    assert RetryHints().refuse(100, 100, 0.0, 0.0) == UNKNOWN_RATE_S


def test_the_hint_is_the_time_until_there_is_room() -> None:
    assert RetryHints().refuse(100, 500, 250.0, 7.0) == pytest.approx(2.0)


def test_those_who_are_refused_are_told_to_come_one_behind_the_other() -> None:
    hints = RetryHints()
    told = [hints.refuse(100, 100, 1000.0, 0.0) for _ in range(20)]
    assert told == pytest.approx([0.1 * n for n in range(1, 21)])


def test_who_was_refused_has_come_back_after_a_while() -> None:
    hints = RetryHints()
    for _ in range(20):
        hints.refuse(100, 100, 1000.0, 0.0)
    assert hints.refuse(100, 100, 1000.0, 1.0) == pytest.approx(1.1)
    assert hints.refuse(100, 100, 1000.0, 60.0) == pytest.approx(0.1)


def test_a_flood_is_told_no_more_than_the_longest_hint_and_forgotten_soon() -> None:
    hints = RetryHints()
    told = [hints.refuse(1000, 1000, 1000.0, 0.0) for _ in range(10_000)]
    assert max(told) == MOST_S
    assert hints.refuse(1000, 1000, 1000.0, MOST_S) <= 2.0


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e7), st.floats(0, 1e6), st.floats(0, 10)), max_size=30))
def test_a_hint_is_always_a_time_that_can_be_waited(refused: list[tuple[int, float, float, float]]) -> None:
    hints, now_s = RetryHints(), 0.0
    for tokens, missing, rate, pause_s in refused:
        now_s += pause_s
        assert LEAST_S <= hints.refuse(tokens, missing, rate, now_s) <= MOST_S


def test_what_must_leave_before_there_is_room() -> None:
    assert excess(waiting=3, waiting_tokens=30, max_waiting=4, max_waiting_tokens=100, tokens=50) == 0
    assert excess(waiting=4, waiting_tokens=40, max_waiting=4, max_waiting_tokens=100, tokens=5) == 10
    assert excess(waiting=3, waiting_tokens=90, max_waiting=4, max_waiting_tokens=100, tokens=50) == 40
    assert excess(waiting=0, waiting_tokens=0, max_waiting=4, max_waiting_tokens=10, tokens=50) == 0


def test_a_group_that_drains_fast_says_to_come_again_soon() -> None:
    told = {}
    for step_s in (0.01, 0.1):
        bench = Bench(limits(max_running=1, max_waiting=20))
        for number in range(21):
            bench.scheduler.add(_request(f"r{number}"), bench.now_s)
            if not number:
                bench.step()
        while bench.scheduler.load().waiting > 10:
            bench.step()
            bench.now_s += step_s
        for number in range(21, 31):
            bench.scheduler.add(_request(f"r{number}"), bench.now_s)
        told[step_s] = refusal(bench).retry_after_s or 0.0
    assert told[0.1] == pytest.approx(10 * told[0.01], rel=0.5)


def _request(request_id: str) -> EngineRequest:
    return EngineRequest(request_id, (1, 2, 3, 4), SamplingParams(max_tokens=6, ignore_eos=True, seed=0))
