"""What a long prompt does to streams that run: the gaps between their tokens before, during and after it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise

from rayline.deploy.bench.load import Target, ask
from rayline.deploy.bench.report import Percentiles, percentiles
from rayline.deploy.bench.timeline import Timeline
from rayline.deploy.bench.workload import Job, Shape
from rayline.protos.errors import RaylineError

LONG_OUTPUT_TOKENS = 2
LONG_NUMBER = 2**31  # no stream has it


@dataclass(frozen=True, slots=True)
class LongPromptPlan:
    """`streams` callers that never stop asking for `shape`; after `lead_s` of them all, one prompt of `prompt_tokens`;
    `lead_s` more after its first token."""

    shape: Shape
    streams: int
    prompt_tokens: int
    lead_s: float


@dataclass(frozen=True, slots=True)
class LongPromptReport:
    """Gaps of the streams, and the long prompt's own time to its first token. ratio: during to before."""

    prompt_tokens: int
    streams: int
    ttft_s: float
    before: Percentiles
    during: Percentiles
    after: Percentiles
    ratio_p50: float
    ratio_p99: float


async def run_long_prompt(
    target: Target, plan: LongPromptPlan, clock: Callable[[], float] = time.perf_counter
) -> LongPromptReport:
    """Run it. Raises RaylineError when the long prompt or a stream fails, or when a phase has no gap to measure."""
    arrivals: list[list[float]] = []
    numbers, everyone = count(), asyncio.Event()
    started: set[int] = set()

    async def stream(caller: int) -> None:
        while True:
            (job,) = plan.shape.jobs(1, repeat=(number := next(numbers)) + 1)
            times: list[float] = []
            arrivals.append(times)
            async for piece in target.run(Job(number, job.prompt_ids, job.output_tokens)):
                if piece.tokens:
                    times.append(clock())
                    started.add(caller)
                if len(started) == plan.streams:
                    everyone.set()

    async with asyncio.TaskGroup() as callers:
        tasks = [callers.create_task(stream(caller)) for caller in range(plan.streams)]
        await everyone.wait()
        began_s = clock()
        await asyncio.sleep(plan.lead_s)
        long = await ask(target, _long_job(plan), clock(), clock)
        await asyncio.sleep(plan.lead_s)
        for task in tasks:
            task.cancel()
    if not long.ok:
        raise RaylineError(f"the long prompt failed: {long.error or 'no output'}")
    return _report(plan, long, arrivals, began_s)


def _long_job(plan: LongPromptPlan) -> Job:
    shape = Shape(plan.prompt_tokens, LONG_OUTPUT_TOKENS, plan.shape.vocab_size, plan.shape.seed + 1)
    (job,) = shape.jobs(1)
    return Job(LONG_NUMBER, job.prompt_ids, job.output_tokens)


def _report(plan: LongPromptPlan, long: Timeline, arrivals: list[list[float]], began_s: float) -> LongPromptReport:
    """A gap belongs to the phase in which it ends. A caller's next request is no gap."""
    sent_s, first_s = long.sent_s, long.arrivals[0].at_s
    phases: tuple[list[float], list[float], list[float]] = ([], [], [])
    for times in arrivals:
        for one, two in pairwise(times):
            if two > began_s:
                phases[(two > sent_s) + (two > first_s)].append(two - one)
    before, during, after = map(percentiles, phases)
    if before is None or during is None or after is None:
        counts = [len(gaps) for gaps in phases]
        raise RaylineError(f"gaps before, during and after the long prompt: {counts}: each needs one at least")
    return LongPromptReport(
        plan.prompt_tokens,
        plan.streams,
        first_s - sent_s,
        before,
        during,
        after,
        during.p50_ms / before.p50_ms,
        during.p99_ms / before.p99_ms,
    )
