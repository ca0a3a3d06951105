"""What a leader has for one router: bounded, so that one that does not read loses its own streams and nothing else."""

import asyncio
from collections import deque

from rayline.protos import internal_pb2 as pb

MOST_JOINED = 32  # steps in one message
MOST_BYTES = 64 * 2**20  # minutes of tokens, or seconds of logprobs, of a full batch


class Outbox:
    """A queue with one reader; whoever puts never waits, so that a router holds up neither the engine nor the others.

    `is_overfull`: the router is too far behind and nothing is taken any more. Its connection has to be ended, since
    what it gets next would have a gap.
    """

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes = most_bytes
        self._queue: asyncio.Queue[tuple[int, pb.LeaderMessage | None]] = asyncio.Queue()
        self._steps: deque[bool] = deque()
        self._bytes = 0
        self.is_overfull = False

    @property
    def bytes(self) -> int:
        """About what is in it. A message that finds it empty is not counted: no router is behind by one."""
        return self._bytes

    def empty(self) -> bool:
        return self._queue.empty()

    def put_nowait(self, message: pb.LeaderMessage | None) -> None:
        """None ends the stream."""
        if self.is_overfull:
            return
        size = message.ByteSize() if message is not None and not self._queue.empty() else 0
        if self._bytes + size > self._most_bytes:
            self.is_overfull = True
            return
        self._bytes += size
        self._steps.append(message is not None and message.HasField("step"))
        self._queue.put_nowait((size, message))

    async def get(self) -> pb.LeaderMessage | None:
        """The next message. A router that is behind gets several steps in one: it catches up with fewer messages."""
        message = await self._take()
        joined = 1
        while message is not None and message.HasField("step") and joined < MOST_JOINED and self._next_is_step():
            later = (await self._take() or message).step
            message.step.MergeFrom(later)
            message.step.load.CopyFrom(later.load)  # the last word, zeros too, which MergeFrom leaves out
            joined += 1
        return message

    async def _take(self) -> pb.LeaderMessage | None:
        size, message = await self._queue.get()
        self._bytes -= size
        self._steps.popleft()
        return message

    def _next_is_step(self) -> bool:
        return bool(self._steps) and self._steps[0]
