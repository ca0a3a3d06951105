"""A choice's time in one group, and how a group comes near to a stream that another one still computes."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from rayline.protos.blame import Presence
from rayline.protos.errors import InternalError, RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed, Interim, PromptScores, Searched, TokenEvent
from rayline.protos.types import EngineRequest
from rayline.router.group import Group
from rayline.router.ledger import Lease
from rayline.router.moves import is_near

log = logging.getLogger("rayline.router")


class Stay:
    """One engine stream. `since_s`: when it began. `searched`: tokens that its beam search has come to, 0 for others.

    Its lease ends with it unless others share that.
    """

    def __init__(self, group: Group, request: EngineRequest, since_s: float, lease: Lease, *, keeps_lease: bool = True):
        self.group = group
        self.since_s = since_s
        self.lease = lease
        self.searched = 0
        self._keeps_lease = keeps_lease
        self._request_id = request.request_id
        self._events = guarded(group, request)
        self._ahead: deque[EngineEvent] = deque()

    @property
    def name(self) -> str:
        return self.group.info.group_id

    async def first(self) -> EngineEvent:
        """The first token or the end. `events` brings it again, and what came before it."""
        async for event in self._events:
            self._ahead.append(event)
            if not isinstance(event, PromptScores | Searched):
                return event
        raise AssertionError("a guarded stream ends with a terminal event")

    async def events(self) -> AsyncGenerator[EngineEvent, None]:
        """All of them, a terminal one last. Closing the generator ends the stay."""
        try:
            while self._ahead:
                yield self._note(self._ahead.popleft())
            async for event in self._events:
                yield self._note(event)
        finally:
            await self.close()

    def _note(self, event: EngineEvent) -> EngineEvent:
        if isinstance(event, Searched):
            self.searched = event.tokens
        return event

    def leave(self) -> None:
        """From outside: whoever reads `events` gets what has come, then a Failed(Unavailable)."""
        self.group.abort(self._request_id)

    async def close(self) -> None:
        await self._events.aclose()
        if self._keeps_lease:
            self.lease.end()


async def approach(begin: Callable[[], Stay], known_tokens: Callable[[], int]) -> Stay | Failed:
    """A stay that has come near to a stream while that went on elsewhere, or why the group does not take it.

    As machines are moved while they run (Clark et al., "Live Migration of Virtual Machines", 2005): computing what
    is known so far takes long, and the stream gets ahead meanwhile. What was computed stays in the group's prefix
    cache, so the next round has only the tokens since then to compute, and the last one hardly any.
    """
    before: int | None = None
    while True:
        stay = begin()
        try:
            first = await stay.first()
        except BaseException:
            await stay.close()
            raise
        if isinstance(first, Failed):
            await stay.close()
            return first
        behind = known_tokens() - first.index if isinstance(first, TokenEvent) else 0
        if is_near(behind, before):
            return stay
        await stay.close()
        before = behind


async def guarded(group: Group, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
    """The group's events, made safe: whatever it does, one terminal event comes last and nothing after it."""
    try:
        async with _closing(group.generate(request)) as events:
            async for event in events:
                yield event
                if not isinstance(event, Interim):
                    return
        lost = Unavailable(f"group {group.info.group_id} ended the stream without a result")
        yield Failed(request.request_id, lost, Presence.AMONG)
    except Unavailable as error:
        yield Failed(request.request_id, error, Presence.AMONG)
    except RaylineError as error:
        yield Failed(request.request_id, error)
    except Exception as error:
        log.exception("%s failed in group %s", request.request_id, group.info.group_id)
        yield Failed(request.request_id, InternalError(f"the group failed: {type(error).__name__}: {error}"))


def _closing(events: AsyncIterator[EngineEvent]) -> aclosing[AsyncGenerator[EngineEvent, None]]:
    assert isinstance(events, AsyncGenerator)
    return aclosing(events)
