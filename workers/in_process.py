"""A group of one rank, run in the leader's own process: no socket, no second copy of anything."""

import time
from collections import deque
from collections.abc import Callable

from rayline.protos.plan import Plan, StepResult
from rayline.workers.deadline import InFlight, StepTimes
from rayline.workers.pipeline import RankStats
from rayline.workers.steps import Steps

UNSEEN_LIMITS = 2.0


class InProcess:
    """The pipeline of a 1 x 1 group: all plans in flight are launched when the oldest one's result is asked for."""

    def __init__(
        self,
        steps: Steps,
        stats: Callable[[], RankStats],
        window: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.window = window
        self._steps = steps
        self._stats = stats
        self._clock = clock
        self._in_flight = InFlight(StepTimes())
        self._plans: deque[Plan] = deque()  # to be launched

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def submit(self, plan: Plan) -> None:
        self._plans.append(plan)
        self._in_flight.submitted(plan, self._clock())

    def next_result(self) -> StepResult:
        while self._plans:
            self._steps.begin(self._plans.popleft())
        result = self._steps.finish()
        assert result is not None, "a single rank is its own last stage"
        self._in_flight.answered(self._clock(), result.busy_s)
        return result

    @property
    def limit_s(self) -> float:
        """For all in flight: a CPU computes what it launches. Nobody sees whether it does: what is granted on top goes
        by the clock alone."""
        return self._in_flight.all_limit_s * UNSEEN_LIMITS

    def check(self) -> None:
        """The rank is this process."""

    def rank_stats(self) -> tuple[RankStats, ...]:
        return (self._stats(),)

    def fence(self) -> None:
        """The rank is this process: whoever fences the group ends it."""

    def close(self) -> None:
        self._plans.clear()
