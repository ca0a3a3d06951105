"""A client's call that reads a stream, and can be ended from outside of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from rayline.protos.errors import RaylineError
from rayline.protos.events import StreamEvent
from rayline.router.stream_record import StreamRecord


class Call:
    """record, turn: what it reads, for a later call that takes the stream over. can_resume: its client does so."""

    def __init__(self, key: str, record: StreamRecord, turn: int, *, can_resume: bool):
        self.key = key
        self.record = record
        self.turn = turn
        self.can_resume = can_resume
        self._error: RaylineError | None = None
        self._waiting: asyncio.Task[Any] | None = None

    def end(self, error: RaylineError) -> None:
        """Let the reader get `error` instead of the next event: at once if it waits for one."""
        self._error = self._error or error
        if self._waiting is not None:
            self._waiting.cancel()

    async def through(self, events: AsyncGenerator[StreamEvent, None]) -> AsyncGenerator[StreamEvent, None]:
        """`events`, until somebody ends the call: then they are closed, and the error is raised."""
        async with aclosing(events):
            while (event := await self._next(events)) is not None:
                yield event

    async def _next(self, events: AsyncGenerator[StreamEvent, None]) -> StreamEvent | None:
        """The wait is cancelled in the way of asyncio.timeout: a cancellation of the reader's own passes through."""
        if self._error is not None:
            raise self._error
        self._waiting = task = asyncio.current_task()
        try:
            return await anext(events, None)
        except asyncio.CancelledError:
            if self._error is None or task is None or task.uncancel() > 0:
                raise
            raise self._error from None
        finally:
            self._waiting = None
