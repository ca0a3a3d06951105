"""A whole group without a model: the real engine, its thread and its leader over simulated ranks.

    python simulated_group.py STEP_S

serves one until it is killed, and prints its address: a leader in a process of its own.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from simulated_ranks import SimulatedRanks, next_token
from waiting import until_async

from rayline.protos.errors import Unavailable
from rayline.protos.group import GroupInfo
from rayline.protos.plan import StepResult
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.engine import Engine
from rayline.workers.journal import Journal
from rayline.workers.leader import Leader
from rayline.workers.scheduling.blocks import BlockPool
from rayline.workers.scheduling.scheduler import Scheduler, SchedulerLimits

VOCAB = 50
BLOCKS = 64
BLOCK_TOKENS = 4
SECRET = "correct horse"
PAUSE_LIMIT_S = 120.0


class TimedRanks(SimulatedRanks):
    """Takes `step_s` for each step, and is lost after `lives` results or once `lost` is set.

    pauses_at: brings so many results, and more only once a test has set it to None. However slow the machine, streams
    have then come so far and no further.
    """

    def __init__(self, step_s: float = 0.0, lives: int = sys.maxsize, delay: int = 1, pauses_at: int | None = None):
        super().__init__(BLOCKS, BLOCK_TOKENS, VOCAB, delay)
        self.step_s = step_s
        self.lives = lives
        self.pauses_at = pauses_at
        self.brought = 0
        self.lost = False
        self.closed = 0

    def pause_after(self, results: int | None) -> None:
        """After so many more results; None: it goes on."""
        self.pauses_at = None if results is None else self.brought + results

    @property
    def limit_s(self) -> float:
        return super().limit_s if self.pauses_at is None else PAUSE_LIMIT_S

    def next_result(self) -> StepResult:
        time.sleep(self.step_s)
        while self.brought == self.pauses_at and not self.lost:
            time.sleep(0.001)
        self.check()
        self.lives -= 1
        self.brought += 1
        return super().next_result()

    def check(self) -> None:
        if self.lost or self.lives <= 0:
            raise Unavailable("rank 0 closed its connection")

    def close(self) -> None:
        self.closed += 1


def engine_over(ranks: SimulatedRanks, **changes: Any) -> Engine:
    base = dict(
        block_tokens=BLOCK_TOKENS, max_model_len=64, max_step_tokens=16, max_running=8, max_waiting=100, depth=1
    )
    limits = SchedulerLimits(**(base | changes))
    return Engine(Scheduler(limits, BlockPool(BLOCKS), frozenset()), ranks, VOCAB, time.monotonic)


def request(request_id: str, prompt: tuple[int, ...] = (1, 2, 3), tokens: int = 8, **params: Any) -> EngineRequest:
    return EngineRequest(request_id, prompt, SamplingParams(**({"max_tokens": tokens, "seed": 0} | params)))


def answer(asked: EngineRequest) -> list[int]:
    """The tokens a group must say to a request, whatever runs beside it."""
    tokens = [*asked.prompt_ids, *asked.output_ids]
    end = len(asked.prompt_ids) + (asked.params.max_tokens or 0)
    while len(tokens) < end:
        tokens.append(next_token(tuple(tokens), VOCAB))
    return tokens[len(asked.prompt_ids) + len(asked.output_ids) :]


@asynccontextmanager
async def leading(engine: Engine, group_id: str = "g0", journal: Journal | None = None) -> AsyncIterator[Leader]:
    """A leader that listens on a loopback port. At the end its streams are cut as they are; paused ranks go on."""
    info = GroupInfo(group_id, "tiny", "simulated", True, 64, VOCAB, BLOCK_TOKENS, BLOCKS, 100, 7)
    leader = Leader(engine, info, SECRET, Journal(2**20, 60.0) if journal is None else journal)
    await leader.start("127.0.0.1")
    try:
        yield leader
    finally:
        stopping = asyncio.create_task(leader.stop(0))
        await until_async(lambda: not leader._connections)
        if isinstance(engine.pipeline, TimedRanks):
            engine.pipeline.pauses_at = None
        await stopping


async def _serve(step_s: float) -> None:
    async with leading(engine_over(TimedRanks(step_s))) as leader:
        print(leader.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
