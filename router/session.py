"""One request's life: choose a group, follow its tokens, end in exactly one terminal event."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from rayline.protos.errors import InternalError, Overloaded, RaylineError, Unavailable
from rayline.protos.events import (
    Begun,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Overhead,
    Started,
    StreamEvent,
    TokenEvent,
    Usage,
)
from rayline.protos.types import EngineRequest
from rayline.router.group import Group
from rayline.router.ledger import Lease, Ledger
from rayline.router.policy import GroupView, choose
from rayline.router.text_stream import TextStream
from rayline.router.tokenizer import Tokenizer

log = logging.getLogger("rayline.router")


@dataclass(frozen=True, slots=True)
class Timing:
    """When the request came and how long its text took, by the router's clock."""

    arrived_s: float
    tokenize_s: float


class Session:
    """Runs one request.

    A group that refuses (full) or is lost before its first token is passed over for another one: nothing
    has been promised yet. After `Started` a loss ends the stream in Failed(Unavailable).
    """

    def __init__(
        self,
        request: EngineRequest,
        groups: Mapping[str, Group],
        tokenizer: Tokenizer,
        ledger: Ledger,
        clock: Callable[[], float],
        timing: Timing,
    ):
        self._request = request
        self._groups = groups
        self._text = TextStream(tokenizer, request.params, request.prompt_ids)
        self._ledger = ledger
        self._clock = clock
        self._timing = timing
        self._first_token_s = 0.0
        self._begun = Begun(0, 0.0)

    async def events(self, turn: int) -> AsyncGenerator[StreamEvent, None]:
        """Started, deltas, one terminal event. Raises RaylineError while nothing has been promised.

        `turn` is the caller's count of requests, by which equal groups alternate.
        """
        refusals: dict[str, RaylineError] = {}
        while True:
            group = self._choose(turn, refusals)
            tokens = len(self._request.prompt_ids) + (self._request.params.max_tokens or 0)
            with self._ledger.lease(group.info.group_id, tokens) as lease:
                async with aclosing(_guarded(group, self._request)) as events:
                    first = await anext(events)
                    if isinstance(first, Failed):
                        refusals[group.info.group_id] = _passed_over(first.error)
                        continue
                    yield Started(
                        self._request.request_id, group.info.numerics, group.info.exact, len(self._request.prompt_ids)
                    )
                    async with aclosing(self._follow(first, events, lease)) as followed:
                        async for event in followed:
                            yield event
                    return

    def _choose(self, turn: int, refusals: Mapping[str, RaylineError]) -> Group:
        """The next group to try. With none left, raises why the last one refused."""
        untried = {group_id: group for group_id, group in self._groups.items() if group_id not in refusals}
        views = [view_of(group, self._ledger) for group in untried.values()]
        try:
            choice = choose(len(self._request.prompt_ids) + (self._request.params.max_tokens or 0), views, turn)
        except (Overloaded, Unavailable):
            if refusals:
                raise list(refusals.values())[-1] from None
            raise
        log.debug("%s goes to %s: %s", self._request.request_id, choice.group_id, "; ".join(choice.reasons))
        return untried[choice.group_id]

    async def _follow(
        self, first: EngineEvent, rest: AsyncIterator[EngineEvent], lease: Lease
    ) -> AsyncGenerator[StreamEvent, None]:
        """Deltas of an accepted stream and its terminal event. A stream that moves to another group moves here."""
        self._first_token_s = self._clock() - self._timing.arrived_s
        lease.done(len(self._request.prompt_ids))
        event: EngineEvent | None = first
        while isinstance(event, TokenEvent):
            self._begun = event.begun or self._begun
            lease.done(1)
            yield self._text.push(event)
            if self._text.stopped is not None:
                yield self._stopped_early()
                return
            event = await anext(rest, None)
        if isinstance(event, Finished):
            if (last := self._text.finish()) is not None:
                yield last
            yield self._finished(event)
        elif isinstance(event, Failed):
            yield event

    def _stopped_early(self) -> Finished:
        """A stop string is the router's matter: the group is told to stop by closing its stream."""
        usage = Usage(len(self._request.prompt_ids), self._text.output_tokens, self._begun.cached_tokens)
        finished = Finished(self._request.request_id, FinishReason.STOP, usage, queue_s=self._begun.queue_s)
        return self._finished(finished)

    def _finished(self, event: Finished) -> Finished:
        overhead = Overhead(
            tokenize_s=self._timing.tokenize_s,
            queue_s=event.queue_s,
            first_token_s=self._first_token_s,
            total_s=self._clock() - self._timing.arrived_s,
        )
        if self._text.stopped is not None:
            event = replace(event, reason=FinishReason.STOP, stop_reason=self._text.stopped)
        return replace(event, overhead=overhead)


def view_of(group: Group, ledger: Ledger) -> GroupView:
    """What the policy sees of a group."""
    return GroupView(
        group_id=group.info.group_id,
        model=group.info.model,
        alive=group.alive,
        draining=group.load.draining,
        load=group.load,
        outstanding_tokens=ledger.outstanding_tokens(group.info.group_id),
        waiting=group.load.waiting,
        max_waiting=group.info.max_waiting,
    )


async def _guarded(group: Group, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
    """The group's events, made safe: whatever it does, one terminal event comes last and nothing after it."""
    try:
        async with _closing(group.generate(request)) as events:
            async for event in events:
                yield event
                if not isinstance(event, TokenEvent):
                    return
        lost = Unavailable(f"group {group.info.group_id} ended the stream without a result")
        yield Failed(request.request_id, lost)
    except RaylineError as error:
        yield Failed(request.request_id, error)
    except Exception as error:
        log.exception("%s failed in group %s", request.request_id, group.info.group_id)
        yield Failed(request.request_id, InternalError(f"the group failed: {type(error).__name__}: {error}"))


def _closing(events: AsyncIterator[EngineEvent]) -> aclosing[AsyncGenerator[EngineEvent, None]]:
    assert isinstance(events, AsyncGenerator)
    return aclosing(events)


def _passed_over(error: RaylineError) -> RaylineError:
    """Only a full or lost group is passed over; any other error is the request's own and ends it."""
    if not isinstance(error, Overloaded | Unavailable):
        raise error
    return error
