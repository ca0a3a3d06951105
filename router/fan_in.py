"""Several streams read as one, in the order in which their events come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def fan_in(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """(number of the stream, event) until all have ended. The first error of any ends all, and is raised.

    Bounded: a stream runs at most one event ahead of the reader. Closing the generator closes all streams.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for event in only:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, T | _End]] = asyncio.Queue(maxsize=1)
    tasks = [asyncio.create_task(_pump(number, stream, queue)) for number, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            number, item = await queue.get()
            if not isinstance(item, _End):
                yield number, item
            elif item.error is not None:
                raise item.error
            else:
                left -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(number: int, stream: AsyncGenerator[T, None], queue: "asyncio.Queue[tuple[int, T | _End]]") -> None:
    error: BaseException | None = None
    async with aclosing(stream) as events:
        try:
            async for event in events:
                await queue.put((number, event))
        except Exception as raised:
            error = raised
    await queue.put((number, _End(error)))
