"""A group of one rank, run in the leader's own process: no socket, no second copy of anything."""

from collections import deque

from rayline.protos.plan import Plan, StepResult
from rayline.workers.pipeline import RankStats
from rayline.workers.worker import Worker


class InProcess:
    """The pipeline of a 1 x 1 group: a plan is computed when its result is asked for."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._plans: deque[Plan] = deque()

    @property
    def window(self) -> int:
        return 1

    @property
    def in_flight(self) -> int:
        return len(self._plans)

    def submit(self, plan: Plan) -> None:
        self._plans.append(plan)

    def next_result(self) -> StepResult:
        result = self._worker.execute(self._plans.popleft())
        assert result is not None, "a single rank is its own last stage"
        return result

    def check(self) -> None:
        """The rank is this process."""

    def rank_stats(self) -> tuple[RankStats, ...]:
        return (self._worker.stats(),)

    def close(self) -> None:
        self._plans.clear()
