"""A group of one rank, run in the leader's own process: no socket, no second copy of anything."""

import time
from collections import deque
from collections.abc import Callable

from rayline.protos.plan import Plan, StepResult
from rayline.workers.deadline import InFlight, StepTimes
from rayline.workers.pipeline import RankStats
from rayline.workers.worker import Worker

UNSEEN_LIMITS = 2.0


class InProcess:
    """The pipeline of a 1 x 1 group: a plan is computed when its result is asked for."""

    def __init__(self, worker: Worker, clock: Callable[[], float] = time.monotonic):
        self._worker = worker
        self._clock = clock
        self._in_flight = InFlight(StepTimes())
        self._plans: deque[Plan] = deque()

    @property
    def window(self) -> int:
        return 1

    @property
    def in_flight(self) -> int:
        return len(self._plans)

    def submit(self, plan: Plan) -> None:
        self._plans.append(plan)
        self._in_flight.submitted(plan, self._clock())

    def next_result(self) -> StepResult:
        result = self._worker.execute(self._plans.popleft())
        assert result is not None, "a single rank is its own last stage"
        self._in_flight.answered(self._clock(), result.busy_s)
        return result

    @property
    def limit_s(self) -> float:
        """Nobody sees whether it computes: what is granted on top goes by the clock alone."""
        return self._in_flight.limit_s * UNSEEN_LIMITS

    def check(self) -> None:
        """The rank is this process."""

    def rank_stats(self) -> tuple[RankStats, ...]:
        return (self._worker.stats(),)

    def fence(self) -> None:
        """The rank is this process: whoever fences the group ends it."""

    def close(self) -> None:
        self._plans.clear()
