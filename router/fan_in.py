"""Several streams read as one, in the order in which their events come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Lane(Generic[T]):
    """One stream's way into the common queue: a slot for one event, so that no stream crowds out another."""

    number: int
    stream: AsyncGenerator[T, None]
    slot: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))


@dataclass(frozen=True, slots=True)
class _End:
    error: Exception | None


async def fan_in(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """(number of the stream, event) until all have ended. The first error of any ends all, and is raised.

    Bounded and fair: a stream runs at most one event ahead of the reader. Closing the generator closes all.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for event in only:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[_Lane[T], T | _End]] = asyncio.Queue()
    lanes = [_Lane(number, stream) for number, stream in enumerate(streams)]
    tasks = [asyncio.create_task(_pump(lane, queue)) for lane in lanes]
    try:
        left = len(lanes)
        while left:
            lane, item = await queue.get()
            if not isinstance(item, _End):
                yield lane.number, item
                lane.slot.release()
            elif item.error is not None:
                raise item.error
            else:
                left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(lane: _Lane[T], queue: "asyncio.Queue[tuple[_Lane[T], T | _End]]") -> None:
    error: Exception | None = None
    try:
        async with aclosing(lane.stream) as events:
            async for event in events:
                await lane.slot.acquire()
                queue.put_nowait((lane, event))
    except Exception as raised:
        error = raised
    queue.put_nowait((lane, _End(error)))
