"""Puts a load on a bare engine in this process: no router, no transport, no text."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Protocol

from rayline.deploy.bench.report import BatchRun
from rayline.deploy.bench.timeline import Arrival, Timeline
from rayline.deploy.bench.workload import Job
from rayline.protos.errors import RaylineError
from rayline.protos.events import EngineEvent, Failed, Finished, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams, TokenRules


class SteppedEngine(Protocol):
    """What a benchmark needs of an engine."""

    def add(self, request: EngineRequest) -> None: ...

    def step(self) -> list[EngineEvent]: ...

    @property
    def has_work(self) -> bool: ...


def request_of(job: Job, params: SamplingParams, grammar: str = "") -> EngineRequest:
    """The engine's form of a job: as many tokens as asked for, whatever they are, or what `grammar` makes of them."""
    own = replace(params, seed=job.number, max_tokens=job.output_tokens, ignore_eos=True)
    return EngineRequest(f"bench-{job.number}", job.prompt_ids, own, rules=TokenRules(grammar=grammar))


def measure_batch(
    engine: SteppedEngine,
    jobs: Sequence[Job],
    params: SamplingParams,
    clock: Callable[[], float] = time.perf_counter,
    grammar: str = "",
) -> BatchRun:
    """Run all jobs at once and time prefill and decode apart. Raises the error of a job that fails."""
    without_token = {f"bench-{job.number}" for job in jobs}
    start_s = clock()
    for job in jobs:
        engine.add(request_of(job, params, grammar))
    while without_token:
        without_token -= _tokens_of(engine.step()).keys()
    prefilled_s = clock()
    tokens = steps = 0
    while engine.has_work:
        tokens += sum(_tokens_of(engine.step()).values())
        steps += 1
    prompt = sum(len(job.prompt_ids) for job in jobs)
    return BatchRun(prompt, prefilled_s - start_s, tokens, steps if tokens else 0, clock() - prefilled_s)


def _tokens_of(events: Iterable[EngineEvent]) -> dict[str, int]:
    """Output tokens by request."""
    counts: dict[str, int] = {}
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, TokenEvent):
            counts[event.request_id] = counts.get(event.request_id, 0) + 1
    return counts


class EngineLoad:
    """The loops of `load.py`, on an engine that is stepped by hand."""

    def __init__(
        self,
        engine: SteppedEngine,
        temperature: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._engine = engine
        self._params = SamplingParams(temperature=temperature)
        self._clock = clock
        self._sleep = sleep
        self._running: dict[str, tuple[Job, float, float, list[Arrival]]] = {}
        self._timelines: list[Timeline] = []

    def closed_loop(self, jobs: Sequence[Job], concurrency: int) -> list[Timeline]:
        """`concurrency` jobs at a time."""
        return self._run(zip(jobs, repeat(0.0), strict=False), concurrency)

    def open_loop(self, jobs: Sequence[Job], arrivals_s: Iterable[float]) -> list[Timeline]:
        """Each job at its arrival time."""
        return self._run(zip(jobs, arrivals_s, strict=False), len(jobs))

    def _run(self, timed: Iterable[tuple[Job, float]], concurrency: int) -> list[Timeline]:
        start_s = self._clock()
        waiting = list(reversed(list(timed)))
        self._timelines = []
        while waiting or self._running:
            while waiting and len(self._running) < concurrency and start_s + waiting[-1][1] <= self._clock():
                job, at_s = waiting.pop()
                self._send(job, start_s + at_s if at_s else self._clock())
            if self._running:
                self._take(self._engine.step())
            elif waiting:
                self._sleep(max(0.0, start_s + waiting[-1][1] - self._clock()))
        return self._timelines

    def _send(self, job: Job, due_s: float) -> None:
        request = request_of(job, self._params)
        self._running[request.request_id] = (job, due_s, self._clock(), [])
        try:
            self._engine.add(request)
        except RaylineError as error:
            self._end(request.request_id, error)

    def _take(self, events: Iterable[EngineEvent]) -> None:
        now_s = self._clock()
        for event in events:
            if isinstance(event, TokenEvent):
                self._running[event.request_id][3].append(Arrival(now_s, 1))
            elif isinstance(event, Finished | Failed):
                self._end(event.request_id, event.error if isinstance(event, Failed) else None)

    def _end(self, request_id: str, error: RaylineError | None) -> None:
        job, due_s, sent_s, arrivals = self._running.pop(request_id)
        text = f"{error.kind}: {error.message}" if error else None
        self._timelines.append(Timeline(due_s, sent_s, tuple(arrivals), self._clock(), len(job.prompt_ids), text))
