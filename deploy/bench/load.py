"""Puts a load on a target: a closed loop of callers, or an open loop of arrivals."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rayline.deploy.bench.timeline import Arrival, Timeline
from rayline.deploy.bench.workload import Job
from rayline.protos.errors import RaylineError
from rayline.protos.events import Overhead


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer: how many tokens it brings; the last one may tell the server's own times."""

    tokens: int
    overhead: Overhead | None = None


@dataclass(frozen=True, slots=True)
class TargetModel:
    """The model that answers, as far as its API tells: lengths and sizes in tokens, 0 where it does not."""

    name: str
    max_model_len: int
    vocab_size: int


class Target(Protocol):
    """Something that answers jobs. Raises RaylineError for a request that fails."""

    def run(self, job: Job) -> AsyncIterator[Piece]: ...


async def ask(target: Target, job: Job, due_s: float, clock: Callable[[], float]) -> Timeline:
    """Send one job and note when its answer arrives."""
    arrivals: list[Arrival] = []
    overhead, error = None, None
    sent_s = clock()
    try:
        async for piece in target.run(job):
            if piece.tokens:
                arrivals.append(Arrival(clock(), piece.tokens))
            overhead = piece.overhead or overhead
    except RaylineError as failure:
        error = f"{failure.kind}: {failure.message}"
    return Timeline(due_s, sent_s, tuple(arrivals), clock(), len(job.prompt_ids), error, overhead)


async def closed_loop(
    target: Target, jobs: Sequence[Job], concurrency: int, clock: Callable[[], float] = time.perf_counter
) -> list[Timeline]:
    """`concurrency` callers, each of which sends its next job when the last one ended."""
    waiting = iter(jobs)
    timelines: list[Timeline] = []

    async def caller() -> None:
        for job in waiting:
            timelines.append(await ask(target, job, clock(), clock))

    async with asyncio.TaskGroup() as callers:
        for _ in range(min(concurrency, len(jobs))):
            callers.create_task(caller())
    return timelines


async def open_loop(
    target: Target, jobs: Sequence[Job], arrivals_s: Iterable[float], clock: Callable[[], float] = time.perf_counter
) -> list[Timeline]:
    """Each job goes out at its arrival time, however many are still running."""
    start_s = clock()

    async def caller(job: Job, due_s: float) -> Timeline:
        await asyncio.sleep(due_s - clock())
        return await ask(target, job, due_s, clock)

    async with asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(caller(job, start_s + at_s)) for job, at_s in zip(jobs, arrivals_s, strict=False)]
    return [task.result() for task in tasks]
