"""Writes a stream down while it is read: its record, and its tokens too where nobody could compute them again."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from rayline.protos.journal import Trace
from rayline.router.choice import Choice, ChoiceEvent
from rayline.router.journal import Page
from rayline.router.stream_record import StreamRecord


class Writer:
    """One attempt to run a stream, in one group after the other."""

    def __init__(self, page: Page, record: StreamRecord, choices: Sequence[Choice]):
        self._page = page
        self._record = record
        self._choices = choices
        self._is_tried = asyncio.Event()
        self._is_ahead = False
        self._marks = {choice.number: (0, 0, False) for choice in choices}
        self._beginning = asyncio.Lock()

    async def write(self) -> None:
        """The record. Raises TakenOver when a later call has claimed the stream."""
        try:
            await self._page.write(self._record)
        finally:
            self._is_tried.set()  # in vain, too: who waits for it must not wait for ever

    async def through(
        self, choice: Choice, events: AsyncGenerator[ChoiceEvent, None], is_exact: Callable[[], bool]
    ) -> AsyncGenerator[ChoiceEvent, None]:
        """`events`; those of a stream that is not exact any more come when the journal holds what they were made of."""
        async with aclosing(events):
            async for event in events:
                if not is_exact():
                    await self._hold(choice)
                yield event

    async def begin_ahead(self) -> None:
        """From now on all that is shown is written first. What was shown so far is written now."""
        async with self._beginning:
            if self._is_ahead:
                return
            await self._is_tried.wait()
            if not self._record.is_ahead:
                self._record = replace(self._record, is_ahead=True)
                await self._page.write(self._record)
            await self._page.begin_ahead(self._whole)
            self._is_ahead = True

    def _whole(self) -> list[Trace]:
        """All that was shown, or is about to be."""
        self._marks = {choice.number: choice.mark for choice in self._choices}
        return [self._trace(choice, (0, 0, False)) for choice in self._choices]

    async def _hold(self, choice: Choice) -> None:
        if not self._is_ahead:
            await self.begin_ahead()
        if (before := self._marks[choice.number]) != choice.mark:
            self._marks[choice.number] = choice.mark
            await self._page.ahead(self._trace(choice, before))

    def _trace(self, choice: Choice, mark: tuple[int, int, bool]) -> Trace:
        return replace(choice.trace(mark), is_ahead=True, run=self._record.seed)
