"""The engine of one group: requests in, token events out, one step at a time. Single-threaded."""

from collections.abc import Callable

from rayline.protos.errors import InvalidRequest, PromptTooLong
from rayline.protos.types import EngineEvent, EngineRequest, GroupLoad
from rayline.workers.pipeline import Pipeline
from rayline.workers.scheduler import Scheduler


class Engine:
    """Joins the scheduler, which knows token ranges, and the pipeline, which computes them."""

    def __init__(self, scheduler: Scheduler, pipeline: Pipeline, vocab_size: int, clock: Callable[[], float]):
        self.scheduler = scheduler
        self.pipeline = pipeline
        self._vocab_size = vocab_size
        self._clock = clock

    def add(self, request: EngineRequest) -> None:
        """Accept a request: exactly one Finished will follow. Raises InvalidRequest or Overloaded instead."""
        self._check(request)
        self.scheduler.add(request, self._clock())

    def abort(self, request_id: str) -> list[EngineEvent]:
        """End a request now; the returned events hold its Finished unless it had ended before."""
        return self.scheduler.abort(request_id)

    def step(self) -> list[EngineEvent]:
        """Keep the pipeline full, then take in the oldest result."""
        while self.pipeline.in_flight < self.pipeline.window and (plan := self.scheduler.plan(self._clock())):
            self.pipeline.submit(plan)
        if not self.pipeline.in_flight:
            return []
        result = self.pipeline.next_result()
        return self.scheduler.commit(result)

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or self.pipeline.in_flight > 0

    def load(self) -> GroupLoad:
        return self.scheduler.load()

    def close(self) -> None:
        self.pipeline.close()

    def _check(self, request: EngineRequest) -> None:
        """The engine trusts no router: what it cannot compute is refused here."""
        request.params.check()
        limits = self.scheduler.limits
        known = len(request.prompt_ids) + len(request.output_ids)
        if not request.prompt_ids:
            raise InvalidRequest("prompt_ids is empty: at least one token is needed", field="prompt_ids")
        if known >= limits.max_model_len:
            raise PromptTooLong(
                f"prompt of {known} tokens leaves no room: max_model_len is {limits.max_model_len}", field="prompt"
            )
        top = max(max(request.prompt_ids), max(request.output_ids, default=0))
        if top >= self._vocab_size or min(request.prompt_ids) < 0:
            raise InvalidRequest(
                f"prompt_ids holds {top}: allowed are ids of 0 to {self._vocab_size - 1}", field="prompt_ids"
            )
        if request.params.seed is None:
            raise InvalidRequest("seed is missing: the router draws one for each request", field="seed")
        if self.scheduler.holds(request.request_id):
            raise InvalidRequest(f"request_id {request.request_id!r} is already running", field="request_id")
