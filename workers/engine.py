"""The engine of one group: requests in, token events out, one step at a time. Single-threaded."""

import math
from collections import deque
from collections.abc import Callable

from rayline.protos.errors import InvalidRequest
from rayline.protos.events import EngineEvent, Finished
from rayline.protos.group import GroupLoad
from rayline.protos.types import EngineRequest
from rayline.workers.pipeline import Pipeline
from rayline.workers.scheduling.request_check import check_request
from rayline.workers.scheduling.resumed import end_of
from rayline.workers.scheduling.scheduler import Scheduler


class Engine:
    """Joins the scheduler, which knows token ranges, and the pipeline, which computes them."""

    def __init__(self, scheduler: Scheduler, pipeline: Pipeline, vocab_size: int, clock: Callable[[], float]):
        self.scheduler = scheduler
        self.pipeline = pipeline
        self._vocab_size = vocab_size
        self._clock = clock
        self._submitted_s: deque[float] = deque()
        self._last_result_s = -math.inf

    def add(self, request: EngineRequest) -> None:
        """Accept a request: exactly one Finished or Failed will follow. Raises InvalidRequest, Overloaded or
        DeadlineExceeded instead."""
        self._check(request)
        self.scheduler.add(request, self._clock())

    def end_of(self, request: EngineRequest) -> Finished | None:
        """The end of a resumed request of which nothing is left to compute."""
        return end_of(request, self.scheduler.limits.max_model_len, self.scheduler.eos_token_ids)

    def abort(self, request_id: str) -> list[EngineEvent]:
        """End a request now; the returned events hold its Finished unless it had ended before."""
        return self.scheduler.abort(request_id)

    def step(self) -> list[EngineEvent]:
        """Keep the pipeline full, then take in the oldest result; what is late ends first, in a call of its own: a
        result that never comes must not keep that from being told."""
        now_s = self._clock()
        if late := self.scheduler.expire(now_s):
            return late
        while self.pipeline.in_flight < self.pipeline.window and (plan := self.scheduler.plan(now_s)):
            self.pipeline.submit(plan)
            self._submitted_s.append(self._clock())
        return self.take_result() if self.pipeline.in_flight else []

    def take_result(self) -> list[EngineEvent]:
        """Wait for the oldest plan in flight and plan nothing new. Its time is that since the result before it, which
        is what streams feel, whether the stages of a pipeline overlap or not."""
        result, now_s = self.pipeline.next_result(), self._clock()
        began_s = max(self._submitted_s.popleft(), self._last_result_s)
        self._last_result_s = now_s
        return self.scheduler.commit(result, now_s - began_s)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self.pipeline.in_flight > 0

    def load(self) -> GroupLoad:
        return self.scheduler.load()

    def fence(self) -> None:
        """End the ranks by force, from any thread; `close` is still to be called."""
        self.pipeline.fence()

    def close(self) -> None:
        self.pipeline.close()

    def _check(self, request: EngineRequest) -> None:
        check_request(request, self.scheduler.limits, self.scheduler.pool.total, self._vocab_size)
        if self.scheduler.holds(request.request_id):
            raise InvalidRequest(f"request_id {request.request_id!r} is already running", field="request_id")
