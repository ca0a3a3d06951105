"""What a group has said of one stream and its client has not taken yet: bounded, or the client is given up."""

import asyncio
from collections import deque

from rayline.protos.errors import SlowReader
from rayline.protos.events import EngineEvent, Failed, PromptScores, Searched, TokenEvent


class Inbox:
    """A queue with one reader. It weighs what it holds in tokens, alternatives of logprobs counted like them.

    Whoever puts never waits: a slow client holds up no other stream. When it is behind by more than `most_tokens`, what
    it has not read is dropped and the stream ends with SlowReader; `is_given_up` says so.
    """

    def __init__(self, request_id: str, most_tokens: int):
        self._request_id = request_id
        self._most_tokens = most_tokens
        self._events: deque[EngineEvent] = deque()
        self._tokens = 0
        self._reader: asyncio.Future[None] | None = None
        self.is_given_up = False

    @property
    def tokens(self) -> int:
        """How far the client is behind."""
        return self._tokens

    def put(self, event: EngineEvent) -> None:
        if self.is_given_up:
            return
        self._tokens += _tokens(event)
        if self._tokens > self._most_tokens:
            self._give_up()
        else:
            self._events.append(event)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> EngineEvent:
        """The next event, in order."""
        while not self._events:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        event = self._events.popleft()
        self._tokens -= _tokens(event)
        return event

    def _give_up(self) -> None:
        self.is_given_up = True
        self._events.clear()
        self._tokens = 0
        text = f"max_unread_tokens = {self._most_tokens}: the client is behind by more, so its stream was ended"
        self._events.append(Failed(self._request_id, SlowReader(text, field="max_unread_tokens")))


def _tokens(event: EngineEvent) -> int:
    """Ends weigh nothing: there is always room for one."""
    match event:
        case TokenEvent():
            return 1 + len(event.top_logprobs)
        case Searched():
            return 1
        case PromptScores():
            return sum(1 + len(top) for _, top in event.tokens)
    return 0
