"""One request's life: choose a group, follow its tokens, end in exactly one terminal event."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from rayline.protos.errors import Overloaded, RaylineError, Unavailable
from rayline.protos.events import (
    Failed,
    Finished,
    Overhead,
    StreamEvent,
)
from rayline.protos.journal import Trace
from rayline.router.admission import Admitted
from rayline.router.answer import Answer
from rayline.router.choice import Choice, ChoiceEvent
from rayline.router.docket import Docket
from rayline.router.fan_in import fan_in
from rayline.router.group import Group
from rayline.router.journal import Page
from rayline.router.lane import SEEK_PERIOD_S, Lane
from rayline.router.ledger import Ledger
from rayline.router.mover import Mover
from rayline.router.past import past_of
from rayline.router.policy import choose, view_of
from rayline.router.stream_record import StreamRecord
from rayline.router.tokenizer import Tokenizer

log = logging.getLogger("rayline.router")


@dataclass(frozen=True, slots=True)
class Timing:
    """When the request came and how long its text took, by the router's clock."""

    arrived_s: float
    tokenize_s: float


class Session:
    """Runs one request: all its choices in one group, each an engine stream of its own.

    A group that refuses (full) before its first token is passed over for another one: nothing has been promised yet.
    Each choice of a lost group goes on in another one, see `Lane`. Raises Quarantined when one like it killed groups.
    """

    def __init__(
        self,
        admitted: Admitted,
        groups: Mapping[str, Group],
        tokenizer: Tokenizer,
        ledger: Ledger,
        docket: Docket,
        clock: Callable[[], float],
        timing: Timing,
        patience_s: float,
        page: Page,
        mover: Mover,
    ):
        """page: where the stream is written down before its first event, for whoever goes on with it."""
        self._admitted = admitted
        self._request_id = admitted.spec.request_id
        self._groups = groups
        self._answer = Answer(admitted, tokenizer)
        self._tokenizer = tokenizer
        self._ledger = ledger
        self._cases = [docket.case(request) for request in admitted.requests]
        self._clock = clock
        self._timing = timing
        self._patience_s = patience_s
        self._page = page
        self._mover = mover
        self._first_token_s = 0.0
        self._is_promised = False

    async def events(self, turn: int, record: StreamRecord) -> AsyncGenerator[StreamEvent, None]:
        """Started, what the choices bring, one terminal event. Raises RaylineError while nothing has been promised.

        `turn` is the caller's count of requests, by which equal groups alternate.
        """
        refusals: dict[str, RaylineError] = {}
        while True:
            group = self._choose(turn, refusals)
            self._answer = Answer(self._admitted, self._tokenizer)
            lanes = [self._lane(choice, turn) for choice in self._answer.choices]
            promise = replace(record, numerics=group.info.numerics, exact=group.info.exact)
            with (
                self._ledger.lease(group.info.group_id, self._admitted.tokens) as lease,
                self._mover.enlisted(lanes),
            ):
                async with aclosing(fan_in([lane.events(group, lease) for lane in lanes])) as events:
                    first = await self._written(promise, anext(events))
                    if isinstance(first[1], Failed):
                        refusals[group.info.group_id] = _passed_over(first[1].error)
                        continue
                    lease.done(len(self._admitted.prompt_ids))
                    self._first_token_s = self._clock() - self._timing.arrived_s
                    self._is_promised = True
                    yield self._answer.started(promise.numerics, promise.exact, promise.created_s)
                    for event in (*self._answer.opening(), *self._answer.take(first[1])):
                        yield event
                    async with aclosing(self._follow(events)) as followed:
                        async for event in followed:
                            yield self._timed(event, promise.exact, lanes) if isinstance(event, Finished) else event
                    return

    async def again(
        self, turn: int, record: StreamRecord, traces: Sequence[Trace]
    ) -> AsyncGenerator[StreamEvent, None]:
        """A stream that another call began, from its first event on.

        What engines are known to have said is played again; they go on behind that.
        """
        await asyncio.gather(self._page.write(record), self._page.claim())
        self._is_promised = True
        answer = self._answer
        yield answer.started(record.numerics, record.exact, record.created_s)
        for event in (*answer.opening(), *self._play(traces, record.exact)):
            yield event
        open_choices = [choice for choice in answer.choices if not choice.is_over]
        if not open_choices:
            yield self._timed(answer.finished(), record.exact, ())
            return
        group = await self._wait_for_group(turn, record.numerics)
        exact = record.exact and group.info.exact and group.info.numerics == record.numerics
        lanes = [self._lane(choice, turn) for choice in open_choices]
        with self._ledger.lease(group.info.group_id, self._admitted.tokens) as lease, self._mover.enlisted(lanes):
            async with (
                aclosing(fan_in([lane.events(group, lease) for lane in lanes])) as events,
                aclosing(self._follow(events)) as followed,
            ):
                async for event in followed:
                    yield self._timed(event, exact, lanes) if isinstance(event, Finished) else event

    async def _written(
        self, record: StreamRecord, first: Awaitable[tuple[int, ChoiceEvent]]
    ) -> tuple[int, ChoiceEvent]:
        """The first event, which waits for the journal: writing takes less time than a prompt."""
        writing = asyncio.create_task(self._page.write(record))
        try:
            event = await first
            await writing
            return event
        finally:
            writing.cancel()

    def _play(self, traces: Sequence[Trace], exact: bool) -> Iterator[StreamEvent]:
        """What the client may have seen of it, choice by choice."""
        for choice in self._answer.choices:
            for said in past_of(traces, choice.number, exact=exact):
                if choice.is_over:
                    break
                for brought in choice.take(said):
                    yield from self._answer.take(brought)

    async def _wait_for_group(self, turn: int, numerics: str) -> Group:
        """One of the same numerics class if there is one; the client was promised that its stream goes on."""
        looks = 1 + int(self._patience_s / SEEK_PERIOD_S)
        for look in range(looks):
            if look:
                await asyncio.sleep(SEEK_PERIOD_S)
            views = [view_of(group, self._ledger) for group in self._groups.values()]
            same = [view for view in views if self._groups[view.group_id].info.numerics == numerics]
            for candidates in (same, views):
                try:
                    return self._groups[choose(self._admitted.tokens, candidates, turn).group_id]
                except (Overloaded, Unavailable) as error:
                    refusal = error
        raise refusal

    def _choose(self, turn: int, refusals: Mapping[str, RaylineError]) -> Group:
        """The next group to try. With none left, raises why the last one refused."""
        untried = {group_id: group for group_id, group in self._groups.items() if group_id not in refusals}
        views = [view_of(group, self._ledger) for group in untried.values()]
        try:
            choice = choose(self._admitted.tokens, views, turn)
        except (Overloaded, Unavailable):
            if refusals:
                raise list(refusals.values())[-1] from None
            raise
        log.debug("%s goes to %s: %s", self._request_id, choice.group_id, "; ".join(choice.reasons))
        return untried[choice.group_id]

    async def _follow(self, lanes: AsyncIterator[tuple[int, ChoiceEvent]]) -> AsyncGenerator[StreamEvent, None]:
        """What comes behind the first event."""
        async for _, brought in lanes:
            for event in self._answer.take(brought):
                yield event
            if isinstance(brought, Failed):
                return
        yield self._answer.finished()

    def _lane(self, choice: Choice, turn: int) -> Lane:
        others = self._answer.choices

        def is_promised() -> bool:
            return self._is_promised or any(other.output_ids for other in others)

        case = self._cases[choice.number]
        return Lane(choice, case, self._groups, self._ledger, self._clock, turn, self._patience_s, is_promised)

    def _timed(self, finished: Finished, exact: bool, lanes: Sequence[Lane]) -> Finished:
        """The end of the stream, with where the time went and whether its bits are those that were promised."""
        overhead = Overhead(
            tokenize_s=self._timing.tokenize_s,
            queue_s=finished.queue_s,
            first_token_s=self._first_token_s,
            total_s=self._clock() - self._timing.arrived_s,
            preempted=finished.preempted,
            moves=sum(lane.moves for lane in lanes),
        )
        return replace(finished, overhead=overhead, exact=exact and all(lane.exact for lane in lanes))


def _passed_over(error: RaylineError) -> RaylineError:
    """Only a full or lost group is passed over; any other error is the request's own and ends it."""
    if not isinstance(error, Overloaded | Unavailable):
        raise error
    return error
