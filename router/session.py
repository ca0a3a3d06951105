"""One request's life: choose a group, follow its tokens, end in exactly one terminal event."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace

from rayline.protos.errors import InternalError, Overloaded, RaylineError, Unavailable
from rayline.protos.events import (
    EngineEvent,
    Failed,
    Finished,
    Overhead,
    PromptScores,
    StreamEvent,
    TokenEvent,
)
from rayline.protos.types import EngineRequest
from rayline.router.admission import Admitted
from rayline.router.answer import Answer
from rayline.router.choice import Choice, ChoiceEvent
from rayline.router.fan_in import fan_in
from rayline.router.group import Group
from rayline.router.ledger import Lease, Ledger
from rayline.router.policy import GroupView, choose
from rayline.router.tokenizer import Tokenizer

log = logging.getLogger("rayline.router")


@dataclass(frozen=True, slots=True)
class Timing:
    """When the request came and how long its text took, by the router's clock."""

    arrived_s: float
    tokenize_s: float


class Session:
    """Runs one request: all its choices in one group, each an engine stream of its own.

    A group that refuses (full) or is lost before its first token is passed over for another one: nothing
    has been promised yet. After `Started` a loss ends the stream in Failed(Unavailable).
    """

    def __init__(
        self,
        admitted: Admitted,
        groups: Mapping[str, Group],
        tokenizer: Tokenizer,
        ledger: Ledger,
        clock: Callable[[], float],
        timing: Timing,
    ):
        self._admitted = admitted
        self._request_id = admitted.spec.request_id
        self._groups = groups
        self._tokenizer = tokenizer
        self._ledger = ledger
        self._clock = clock
        self._timing = timing
        self._first_token_s = 0.0

    async def events(self, turn: int) -> AsyncGenerator[StreamEvent, None]:
        """Started, what the choices bring, one terminal event. Raises RaylineError while nothing has been promised.

        `turn` is the caller's count of requests, by which equal groups alternate.
        """
        refusals: dict[str, RaylineError] = {}
        while True:
            group = self._choose(turn, refusals)
            answer = Answer(self._admitted, self._tokenizer)
            with self._ledger.lease(group.info.group_id, self._admitted.tokens) as lease:
                async with aclosing(fan_in([_lane(group, choice, lease) for choice in answer.choices])) as lanes:
                    first = await anext(lanes)
                    if isinstance(first[1], Failed):
                        refusals[group.info.group_id] = _passed_over(first[1].error)
                        continue
                    lease.done(len(self._admitted.prompt_ids))
                    self._first_token_s = self._clock() - self._timing.arrived_s
                    yield answer.started(group.info)
                    async with aclosing(self._follow(answer, first, lanes)) as followed:
                        async for event in followed:
                            yield event
                    return

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

    async def _follow(
        self, answer: Answer, first: tuple[int, ChoiceEvent], lanes: AsyncIterator[tuple[int, ChoiceEvent]]
    ) -> AsyncGenerator[StreamEvent, None]:
        """All that comes behind Started."""
        for event in (*answer.opening(), *answer.take(first[1])):
            yield event
        async for _, brought in lanes:
            for event in answer.take(brought):
                yield event
            if isinstance(brought, Failed):
                return
        yield self._timed(answer.finished())

    def _timed(self, finished: Finished) -> Finished:
        overhead = Overhead(
            tokenize_s=self._timing.tokenize_s,
            queue_s=finished.queue_s,
            first_token_s=self._first_token_s,
            total_s=self._clock() - self._timing.arrived_s,
            preempted=finished.preempted,
        )
        return replace(finished, overhead=overhead)


async def _lane(group: Group, choice: Choice, lease: Lease) -> AsyncGenerator[ChoiceEvent, None]:
    """What one choice brings. The engine's stream is closed, and so aborted, as soon as no more is wanted of it.

    A choice whose group is lost would go on in another group here, by itself.
    """
    async with aclosing(_guarded(group, choice.request)) as events:
        async for event in events:
            lease.done(1)
            shown = choice.take(event)
            if choice.is_over:
                break  # a reader that is slow to take the end does not keep the engine busy
            for part in shown:
                yield part
    for part in shown:
        yield part


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
                if not isinstance(event, TokenEvent | PromptScores):
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
