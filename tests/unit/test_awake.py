"""Patience counts only the time in which a process was awake to be patient."""

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from rayline.cluster.awake import AwakeTime


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_that_is_looked_at_often_counts_in_full() -> None:
    clock = Clock()
    waited = AwakeTime(clock, 0.2)
    for _ in range(20):
        clock.now += 0.1
        waited.look()
    assert round(waited.look(), 6) == 2.0


def test_a_night_in_which_the_machine_slept_counts_as_one_short_step() -> None:
    clock = Clock()
    waited = AwakeTime(clock, 0.2)
    clock.now += 8 * 3600.0
    assert waited.look() == 0.2


def test_a_restart_forgets_what_was_waited_and_what_was_slept() -> None:
    clock = Clock()
    waited = AwakeTime(clock, 0.2)
    clock.now += 5.0
    waited.look()
    clock.now += 5.0
    waited.restart()
    assert waited.look() == 0.0


@given(st.lists(st.floats(0, 1e6), max_size=50), st.floats(0.01, 10))
def test_never_more_than_passed_and_never_more_than_a_step_for_each_look(steps: list[float], most_s: float) -> None:
    clock = Clock()
    waited = AwakeTime(clock, most_s)

    def looks() -> Iterator[float]:
        for step in steps:
            clock.now += step
            yield waited.look()

    seen = [0.0, *looks()]
    assert seen == sorted(seen)
    assert seen[-1] <= clock.now * (1 + 1e-9) + 1e-6
    assert seen[-1] <= len(steps) * most_s * (1 + 1e-9)
