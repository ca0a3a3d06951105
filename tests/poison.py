"""Requests that kill whoever computes them, and groups that come back: the real engine over simulated ranks."""

import asyncio
import itertools
import selectors
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from fakes import info
from simulated_group import BLOCK_TOKENS, BLOCKS, VOCAB, engine_over
from simulated_ranks import SimulatedRanks

from rayline.protos.blame import Presence, presence
from rayline.protos.errors import Unavailable
from rayline.protos.events import EngineEvent, Failed, Searched
from rayline.protos.group import GroupLoad
from rayline.protos.journal import JournalAnswer, JournalCall
from rayline.protos.plan import Plan, Slice, StepResult
from rayline.protos.types import EngineRequest
from rayline.router.breaker import Trust
from rayline.workers.journal import Journal

STEP_S = 0.01
REBUILD_S = 2.0

# The first token of a poisonous prompt says when it kills:
AT_ONCE = 41  # whoever computes any of it
LATE = 42  # whoever computes its fifth output token
IN_DECODE = 43  # whoever computes it in a step of one token, once it has ten output tokens: prompts' steps do no harm
POISONS = (AT_ONCE, LATE, IN_DECODE)

T = TypeVar("T")


class DeadlyRanks(SimulatedRanks):
    """Die of a poisonous slice, when its result is due. `killers` are the prompts that were in that plan."""

    def __init__(self, delay: int = 1):
        super().__init__(BLOCKS, BLOCK_TOKENS, VOCAB, delay)
        self.killers: set[tuple[int, ...]] = set()
        self._deadly: list[set[tuple[int, ...]]] = []

    def submit(self, plan: Plan) -> None:
        super().submit(plan)
        self._deadly.append({killer for item in plan.slices for killer in self._kills(item)})

    def next_result(self) -> StepResult:
        self.killers = self._deadly.pop(0)
        if self.killers:
            raise Unavailable("rank 0 closed its connection")
        return super().next_result()

    def _kills(self, item: Slice) -> list[tuple[int, ...]]:
        known = self.known[item.sequence]
        outputs = item.start + item.count - known.prompt
        is_late = outputs >= 5
        is_decode = outputs > 10 and item.count == 1
        kills = {AT_ONCE: True, LATE: is_late, IN_DECODE: is_decode}.get(known.tokens[0], False)
        return [tuple(known.tokens[: known.prompt])] if kills else []


class EngineGroup:
    """A group in this process, stepped by a task. It tells of its loss what a leader tells."""

    def __init__(self, group_id: str, depth: int = 1):
        self.info = info(group_id, vocab_size=VOCAB)
        self.alive, self.trust = True, Trust.FULL
        self.ranks = DeadlyRanks(depth)
        self.engine = engine_over(self.ranks, depth=depth)
        self._streams: dict[str, asyncio.Queue[EngineEvent]] = {}
        self.apart = ""
        self.searched = 0
        self._held = Journal(2**20, 0.0)

    @property
    def load(self) -> GroupLoad:
        return self.engine.load()

    async def journal(self, call: JournalCall) -> JournalAnswer:
        return self._held.take(call, 0, asyncio.get_running_loop().time())

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        if not self.alive:
            yield Failed(request.request_id, Unavailable("gone"), Presence.ABSENT)
            return
        events = self._streams[request.request_id] = asyncio.Queue()
        self.engine.add(request)
        try:
            while True:
                yield await events.get()
        finally:
            self._streams.pop(request.request_id, None)
            self.engine.abort(request.request_id)

    def abort(self, request_id: str) -> None:
        self._streams[request_id].put_nowait(Failed(request_id, Unavailable("it leaves")))

    def step(self) -> None:
        """As in the engine's thread."""
        scheduler = self.engine.scheduler
        if scheduler.apart != self.apart and not (scheduler.apart and self.ranks.in_flight):
            self.apart = scheduler.apart
        try:
            for event in self.engine.step():
                if isinstance(event, Searched):
                    self.searched = event.tokens
                if event.request_id in self._streams:
                    self._streams[event.request_id].put_nowait(event)
        except Unavailable as error:
            self.lose(error)

    def lose(self, error: Unavailable) -> None:
        self.alive = False
        for request_id, events in self._streams.items():
            is_running = self.apart or self.engine.scheduler.is_running(request_id)
            where = presence(request_id, self.apart) if is_running else Presence.ABSENT
            events.put_nowait(Failed(request_id, error, where))


class World:
    """As many groups as there should be: one that is lost comes back under another name."""

    def __init__(self, groups: int, depth: int = 1):
        self.groups: dict[str, EngineGroup] = {}
        self.kills: Counter[tuple[int, ...]] = Counter()
        self.deaths = 0
        self._numbers = itertools.count()
        self._depth = depth
        for _ in range(groups):
            self._start()

    async def run(self) -> None:
        while True:
            for group in list(self.groups.values()):
                group.step()
                if not group.alive:
                    self.kills.update(group.ranks.killers)
                    self._bury(group)
            await asyncio.sleep(STEP_S)

    async def until_searched(self, tokens: int) -> "EngineGroup":
        """The group whose beam search has come to so many tokens."""
        while True:
            for group in self.groups.values():
                if group.searched >= tokens:
                    return group
            await asyncio.sleep(STEP_S)

    def end(self, group: "EngineGroup") -> None:
        """A fault from outside, whatever is computed there."""
        group.lose(Unavailable("struck"))
        self._bury(group)

    def strike(self, place: int) -> None:
        """A fault from outside. It spares a group that computes a suspect: that would be the suspect's fault."""
        alive = [group for group in self.groups.values() if not group.engine.scheduler.apart]
        if alive:
            self.end(alive[place % len(alive)])

    def _bury(self, group: EngineGroup) -> None:
        self.deaths += 1
        del self.groups[group.info.group_id]
        asyncio.get_running_loop().call_later(REBUILD_S, self._start)

    def _start(self) -> None:
        name = f"g{next(self._numbers)}"
        self.groups[name] = EngineGroup(name, self._depth)


class _Jumping(selectors.DefaultSelector):
    """Nothing comes from outside: instead of waiting, time goes on."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += timeout or 0.0
        return super().select(0)


def in_no_time(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` where sleeping takes no time."""
    selector = _Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(work)
    finally:
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
