"""gRPC clients that stop reading are given up: one look now and then at all streams, next to nothing for an event.

HTTP/2 goes on acknowledging pings and other calls of such a client, so the system's timeouts do not see it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rayline.protos.errors import SlowReader

LOOKS = 8  # within the time that a client has


class Reader:
    """How one client takes its stream: `sending` is true while an event waits to be taken.

    `is_given_up`: the task of the stream was cancelled for that, and for nothing else.
    """

    __slots__ = ("_seen", "_still", "_task", "is_given_up", "sending", "sent")

    def __init__(self, task: "asyncio.Task[Any] | None"):
        self._task = task
        self._seen = -1
        self._still = 0
        self.sending = False
        self.sent = 0
        self.is_given_up = False

    def look(self, most_looks: int) -> None:
        """Give the client up when the same event has waited for so many looks."""
        self._still = self._still + 1 if self.sending and self.sent == self._seen else 0
        self._seen = self.sent
        if self._still == most_looks and self._task is not None:
            self.is_given_up = True
            self._task.cancel()

    def swallows_cancellation(self) -> bool:
        """Called with the CancelledError in hand: whether it meant this, and is dealt with now."""
        return self.is_given_up and self._task is not None and self._task.uncancel() == 0


class SlowReaders:
    """The streams of one door. A client has `patience_s` for each event; how many it is behind is not counted here."""

    def __init__(self, patience_s: float):
        self._patience_s = patience_s
        self._readers: set[Reader] = set()
        self._watcher: asyncio.Task[None] | None = None

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Of the current task, which sends one stream."""
        reader = Reader(asyncio.current_task())
        self._readers.add(reader)
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    @property
    def error(self) -> SlowReader:
        text = (
            f"slow_reader_s = {self._patience_s:g}: the client has taken nothing for so long, so its stream was ended"
        )
        return SlowReader(text, field="slow_reader_s")

    async def _watch(self) -> None:
        """Ends with the last stream."""
        while self._readers:
            await asyncio.sleep(self._patience_s / LOOKS)
            for reader in list(self._readers):
                reader.look(LOOKS)
        self._watcher = None
