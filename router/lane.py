"""One choice's way through the groups: where its group is lost, another one goes on with the very next token.

    group 0   t0 t1 t2 t3 x           lost after four tokens
    group 1               t4 t5 t6    prompt and output come apart: counts, budgets and grammars go on as they were

Noise depends on seed and position, and a text's state is the router's, so a client sees a pause and nothing else.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import ExitStack, aclosing

from rayline.protos.blame import Presence
from rayline.protos.errors import InternalError, Overloaded, RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed, PromptScores, TokenEvent
from rayline.protos.types import EngineRequest
from rayline.router.choice import Choice, ChoiceEvent
from rayline.router.docket import Case
from rayline.router.group import Group
from rayline.router.ledger import Lease, Ledger
from rayline.router.policy import choose, view_of

log = logging.getLogger("rayline.router")

SEEK_PERIOD_S = 0.05


class Lane:
    """`moves`: groups it went on in. `exact`: false once one of another numerics class was all there was."""

    def __init__(
        self,
        choice: Choice,
        case: Case,
        groups: Mapping[str, Group],
        ledger: Ledger,
        turn: int,
        patience_s: float,
        is_promised: Callable[[], bool],
    ):
        """patience_s: how long another group is waited for. is_promised: whether the client was told that it runs."""
        self._choice = choice
        self._case = case
        self._groups = groups
        self._ledger = ledger
        self._turn = turn
        self._patience_s = patience_s
        self._is_promised = is_promised
        self.moves = 0
        self.exact = True

    async def events(self, group: Group, lease: Lease) -> AsyncGenerator[ChoiceEvent, None]:
        """What the choice brings. An engine's stream is closed, and so aborted, as soon as no more is wanted of it."""
        lost = list[Group]()
        numerics = group.info.numerics
        with ExitStack() as leases:
            while True:
                failure = None
                async with aclosing(self._through(group, lease)) as events:
                    async for event in events:
                        if isinstance(event, Failed):
                            failure = event
                            break
                        yield event
                if failure is None:
                    self._case.ended()
                    return
                if failure.presence is not None:
                    self._case.lost(failure.presence, len(self._choice.output_ids))
                elif not self._is_passed_over(failure):
                    yield failure
                    return
                lost.append(group)
                found = await self._seek(lost, numerics)
                if found is None:
                    yield failure if self._case.refusal is None else Failed(self._name, self._case.refusal)
                    return
                log.warning("%s goes on in group %s: %s", self._name, found.info.group_id, failure.error.message)
                group, self.moves = found, self.moves + 1
                self.exact = self.exact and found.info.exact and found.info.numerics == numerics
                lease.done(self._tokens_left)
                lease = leases.enter_context(self._ledger.lease(found.info.group_id, self._tokens_left))

    async def _through(self, group: Group, lease: Lease) -> AsyncGenerator[ChoiceEvent, None]:
        """What one group brings, as far as it comes."""
        shown: list[ChoiceEvent] = []
        async with aclosing(guarded(group, self._case.run(self._choice.rest))) as events:
            async for event in events:
                if isinstance(event, Failed):
                    yield event
                    return
                lease.done(1)
                shown = list(self._choice.take(event))
                if self._choice.is_over:
                    break  # a reader that is slow to take the end does not keep the engine busy
                for part in shown:
                    yield part
        for part in shown:
            yield part

    async def _seek(self, lost: list[Group], numerics: str) -> Group | None:
        """Another group, of the same numerics class if there is one; waits for one that is being rebuilt.

        None: there is none, or the request may not run any more.
        """
        for _ in range(1 + int(self._patience_s / SEEK_PERIOD_S)):
            if self._case.refusal is not None:
                return None
            fresh = [g for g in self._groups.values() if not any(g is other for other in lost)]
            for groups in ([g for g in fresh if g.info.numerics == numerics], fresh):
                try:
                    views = [view_of(g, self._ledger) for g in groups]
                    return self._groups[choose(self._tokens_left, views, self._turn).group_id]
                except (Overloaded, Unavailable):
                    continue
            await asyncio.sleep(SEEK_PERIOD_S)
        return None

    def _is_passed_over(self, failure: Failed) -> bool:
        """Whether the group's refusal is no reason to end: the client was promised that it runs."""
        return isinstance(failure.error, Overloaded | Unavailable) and self._is_promised()

    @property
    def _tokens_left(self) -> int:
        request = self._choice.request
        return len(request.prompt_ids) + (request.params.max_tokens or 0) - len(self._choice.output_ids)

    @property
    def _name(self) -> str:
        return self._choice.request.request_id


async def guarded(group: Group, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
    """The group's events, made safe: whatever it does, one terminal event comes last and nothing after it."""
    try:
        async with _closing(group.generate(request)) as events:
            async for event in events:
                yield event
                if not isinstance(event, TokenEvent | PromptScores):
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
