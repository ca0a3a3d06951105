"""One request's life: choose a group, follow its tokens, end in exactly one terminal event."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rayline.protos.errors import DeadlineExceeded, Overloaded, RaylineError, Unavailable
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
from rayline.router.fan_in import fan_in
from rayline.router.fleet import Fleet
from rayline.router.group import Group
from rayline.router.journal import Page
from rayline.router.lane import SEEK_PERIOD_S, Lane
from rayline.router.ledger import Lease
from rayline.router.mover import Mover
from rayline.router.past import past_of
from rayline.router.policy import choose, until_room
from rayline.router.stream_record import StreamRecord
from rayline.router.tokenizer import Tokenizer
from rayline.router.writer import Writer

T = TypeVar("T")
log = logging.getLogger("rayline.router")


@dataclass(frozen=True, slots=True)
class Timing:
    """When the request came, how long its text took, until when its end is waited for, by the router's clock."""

    arrived_s: float
    tokenize_s: float
    deadline_s: float = math.inf


class Session:
    """Runs one request: all its choices in one group, each an engine stream of its own.

    A group that refuses (full) before its first token is passed over for another one: nothing has been promised yet.
    Each choice of a lost group goes on in another one, see `Lane`. Raises Quarantined when one like it killed groups.
    """

    def __init__(
        self,
        admitted: Admitted,
        tokenizer: Tokenizer,
        fleet: Fleet,
        mover: Mover,
        timing: Timing,
        page: Page,
    ):
        """page: where the stream is written down before its first event, for whoever goes on with it."""
        self._admitted = admitted
        self._request_id = admitted.spec.request_id
        self._answer = Answer(admitted, tokenizer)
        self._tokenizer = tokenizer
        self._fleet = fleet
        self._cases = [fleet.docket.case(request) for request in admitted.requests]
        self._timing = timing
        self._mover = mover
        self._page = page
        self._first_token_s = 0.0
        self._is_promised = False

    async def events(self, turn: int, record: StreamRecord) -> AsyncGenerator[StreamEvent, None]:
        """Started, what the choices bring, one terminal event. Raises RaylineError while nothing has been promised.

        `turn` is the caller's count of requests, by which equal groups alternate.
        """
        refusals: dict[str, RaylineError] = {}
        while True:
            group = self._choose(turn, refusals)
            lanes = {choice: self._lane(choice, turn) for choice in self._answer.choices}
            promise = record.promised(group.info)
            writer = Writer(self._page, promise, self._answer.choices)
            with (
                self._fleet.ledger.lease(group.info.group_id, self._admitted.tokens) as lease,
                self._mover.enlisted(list(lanes.values())),
            ):
                async with aclosing(self._run(lanes, writer, group, lease, promise.exact)) as events:
                    first = await _beside(writer.write(), anext(events))
                    if isinstance(first[1], Failed):
                        refusals[group.info.group_id] = _passed_over(first[1].error)
                        self._answer = Answer(self._admitted, self._tokenizer)
                        continue
                    lease.done(len(self._admitted.prompt_ids))
                    self._first_token_s = self._fleet.clock() - self._timing.arrived_s
                    self._is_promised = True
                    yield self._answer.started(promise.numerics, promise.exact, int(promise.created_s))
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
        answer = self._answer
        writer = Writer(self._page, record, answer.choices)
        await asyncio.gather(writer.write(), self._page.claim())
        self._is_promised = True
        yield answer.started(record.numerics, record.exact, int(record.created_s))
        for event in (*answer.opening(), *self._play(traces, record)):
            yield event
        if record.is_ahead:
            await writer.begin_ahead()
        lanes = {choice: self._lane(choice, turn) for choice in answer.choices if not choice.is_over}
        if not lanes:
            yield self._timed(answer.finished(), not record.is_ahead, lanes)
            return
        group = await self._wait_for_group(turn, record.bits)
        exact = not record.is_ahead and group.info.exact and group.info.bits == record.bits
        with (
            self._fleet.ledger.lease(group.info.group_id, self._admitted.tokens) as lease,
            self._mover.enlisted(list(lanes.values())),
        ):
            async with (
                aclosing(self._run(lanes, writer, group, lease, exact)) as events,
                aclosing(self._follow(events)) as followed,
            ):
                async for event in followed:
                    yield self._timed(event, exact, lanes) if isinstance(event, Finished) else event

    def _run(
        self, lanes: Mapping[Choice, Lane], writer: Writer, group: Group, lease: Lease, exact: bool
    ) -> AsyncGenerator[tuple[int, ChoiceEvent], None]:
        """What all lanes bring from `group` on. exact: whether it computes what was promised."""

        def is_exact() -> bool:
            return exact and all(lane.exact for lane in lanes.values())

        return fan_in([writer.through(choice, lane.events(group, lease), is_exact) for choice, lane in lanes.items()])

    def _play(self, traces: Sequence[Trace], record: StreamRecord) -> Iterator[StreamEvent]:
        """What the client may have seen of it, choice by choice."""
        for choice in self._answer.choices:
            for said in past_of(traces, choice.number, is_ahead=record.is_ahead):
                if choice.is_over:
                    break
                for brought in choice.take(said):
                    yield from self._answer.take(brought)

    async def _wait_for_group(self, turn: int, bits: tuple[str, str]) -> Group:
        """One that computes the same bits if there is one; the client was promised that its stream goes on."""
        looks = 1 + int(self._fleet.patience_s / SEEK_PERIOD_S)
        for look in range(looks):
            if look:
                await asyncio.sleep(SEEK_PERIOD_S)
            if self._fleet.clock() >= self._timing.deadline_s:
                raise DeadlineExceeded("the time for it passed before it could go on", field="timeout_s")
            groups = self._fleet.groups.values()
            for candidates in ([group for group in groups if group.info.bits == bits], groups):
                try:
                    return self._fleet.choose(self._admitted.tokens, turn, candidates)
                except (Overloaded, Unavailable) as error:
                    refusal = error
        raise refusal

    def _choose(self, turn: int, refusals: Mapping[str, RaylineError]) -> Group:
        """The next group to try. With none left, raises why the last one refused."""
        untried = {group_id: group for group_id, group in self._fleet.groups.items() if group_id not in refusals}
        views = self._fleet.views(untried.values())
        try:
            choice = choose(self._admitted.tokens, views, turn)
        except (Overloaded, Unavailable) as error:
            if refusals:
                raise list(refusals.values())[-1] from None
            if isinstance(error, Overloaded):
                tokens, hints = len(self._admitted.prompt_ids), self._fleet.ledger.hints(views[0].model)
                error.retry_after_s = hints.refuse(tokens, *until_room(views), self._fleet.clock())
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
        return Lane(choice, case, self._fleet, turn, self._timing.deadline_s, is_promised)

    def _timed(self, finished: Finished, exact: bool, lanes: Mapping[Choice, Lane]) -> Finished:
        """The end of the stream, with where the time went and whether its bits are those that were promised."""
        overhead = Overhead(
            tokenize_s=self._timing.tokenize_s,
            queue_s=finished.queue_s,
            first_token_s=self._first_token_s,
            total_s=self._fleet.clock() - self._timing.arrived_s,
            preempted=finished.preempted,
            moves=sum(lane.moves for lane in lanes.values()),
            losses=sum(lane.losses for lane in lanes.values()),
        )
        return replace(finished, overhead=overhead, exact=exact and all(lane.exact for lane in lanes.values()))


async def _beside(work: Coroutine[Any, Any, None], first: Awaitable[T]) -> T:
    """`first`, but not before `work` is done too: writing takes less time than computing a prompt."""
    writing = asyncio.create_task(work)
    try:
        event = await first
        await writing
        return event
    finally:
        writing.cancel()


def _passed_over(error: RaylineError) -> RaylineError:
    """Only a full or lost group is passed over; any other error is the request's own and ends it."""
    if not isinstance(error, Overloaded | Unavailable):
        raise error
    return error
