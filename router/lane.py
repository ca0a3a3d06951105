"""One choice's way through the groups. Where its group is lost, another one goes on with the very next token:

    group 0   t0 t1 t2 t3 x           lost after four tokens
    group 1               t4 t5 t6    prompt and output come apart: counts, budgets and grammars go on as they were

Where it is moved on purpose, the new group begins beside the old one, which ends when the new one has come near:

    group 0   t0 t1 t2 t3 t4 t5 t6 t7 |               read up to here
    group 1            (t0..t2) t3    |               far behind: its stream ends, what it computed stays in its cache
    group 1                 (t0..t6)  t7 t8 t9        near: t7 is shown once, whoever brings it first

Noise depends on seed and position, and a text's state is the router's, so a client sees a pause at most.
"""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

from rayline.protos.errors import DeadlineExceeded, Overloaded, RaylineError, Unavailable
from rayline.protos.events import Failed, TokenEvent
from rayline.router.choice import Choice, ChoiceEvent
from rayline.router.docket import Case
from rayline.router.fleet import Fleet
from rayline.router.group import Group
from rayline.router.ledger import Lease
from rayline.router.moves import Standing
from rayline.router.stay import Stay, approach

log = logging.getLogger("rayline.router")

SEEK_PERIOD_S = 0.05
AGAIN_S = 1.0  # after a group did not take a stream that was to be moved


class Lane:
    """`moves`: groups it went on in. `losses`: of these, after one that was lost. `exact`: false once one where its
    bits are others was all there was."""

    def __init__(
        self,
        choice: Choice,
        case: Case,
        fleet: Fleet,
        turn: int,
        deadline_s: float,
        is_promised: Callable[[], bool],
    ):
        """deadline_s: by the fleet's clock, inf for none. is_promised: whether the client was told that it runs."""
        self._choice = choice
        self._case = case
        self._fleet = fleet
        self._turn = turn
        self._deadline_s = deadline_s
        self._is_promised = is_promised
        self._attempts = 0
        self._stay: Stay | None = None
        self._goal: Group | None = None
        self._approach: asyncio.Task[Stay | None] | None = None
        self._rests_until_s = 0.0
        self.moves = self.losses = 0
        self.exact = True

    async def events(self, group: Group, lease: Lease) -> AsyncGenerator[ChoiceEvent, None]:
        """What the choice brings. An engine's stream is closed, and so aborted, as soon as no more is wanted of it.

        `lease` is the request's, for what all of its choices have to do in `group`.
        """
        if (refusal := await self._verdict()) is not None:
            yield Failed(self._name, refusal)
            return
        lost, bits = list[Group](), group.info.bits
        stay = self._begin(group, lease)
        try:
            while True:
                self._stay, failure = stay, None
                async with aclosing(self._through(stay)) as events:
                    async for event in events:
                        if isinstance(event, Failed):
                            failure = event
                            break
                        yield event
                self._stay = None
                if failure is None:
                    self._case.ended()
                    return
                if failure.presence is not None:
                    self._case.lost(failure.presence, self._reached(stay))
                elif not self._is_passed_over(failure):
                    yield failure
                    return
                if (found := await self._arrival()) is None:
                    lost.append(stay.group)
                    found = await self._seek(lost, bits)
                if found is None:
                    yield failure if self._refusal is None else Failed(self._name, self._refusal)
                    return
                self._go_on(stay, found, bits, failure)
                stay = found
        finally:
            await self._call_off()

    def standing(self, number: int, now_s: float) -> Standing | None:
        """Where it stands, for those who decide about moves; None while it cannot be moved."""
        request, stay = self._choice.request, self._stay
        left = (request.params.max_tokens or 0) - len(self._choice.output_ids)
        if stay is None or self._choice.is_over or left <= 0 or now_s < self._rests_until_s or self._case.is_suspect:
            return None
        return Standing(
            lane=number,
            group_id=stay.group.info.group_id,
            held_tokens=len(request.prompt_ids) + len(self._choice.output_ids),
            left_tokens=left,
            settled_s=now_s - stay.since_s,
            is_moving=self._approach is not None or self._goal is not None,
            is_search=bool(request.params.beam_width),
        )

    def move(self, group: Group) -> None:
        """Go on in `group` on purpose: as soon as it has come near, or, where bits differ, after a break."""
        here = self._stay
        if here is None or self._approach is not None or self._goal is not None:
            return
        if here.group.info.exact and group.info.exact and group.info.bits == here.group.info.bits:
            self._approach = asyncio.create_task(self._come_near(here, group))
        else:
            self._goal = group
            here.leave()

    # ---- in a group

    async def _verdict(self) -> RaylineError | None:
        """Wait while one like it is computed alone; then why it may not run, if so."""
        while self._refusal is None and self._case.must_wait:
            await asyncio.sleep(SEEK_PERIOD_S)
        return self._refusal

    def _begin(self, group: Group, lease: Lease | None = None, *, is_beside: bool = False) -> Stay:
        """Ask `group` for the rest. Each attempt has an id of its own: an earlier one may not have ended there yet.

        is_beside: the group before still brings tokens.
        """
        rest, attempt = self._case.run(self._choice.rest, group.info.group_id), self._attempts
        rest = replace(rest, is_stalled=bool(attempt or rest.output_ids) and not is_beside)
        self._attempts += 1
        if self._deadline_s < math.inf:
            rest = replace(rest, timeout_s=self._deadline_s - self._fleet.clock())
        if attempt:
            rest = replace(rest, request_id=f"{rest.request_id}+{attempt}")
        if lease is not None:
            return Stay(group, rest, self._fleet.clock(), lease, keeps_lease=False)
        return Stay(group, rest, self._fleet.clock(), self._fleet.ledger.lease(group.info.group_id, self._tokens_left))

    async def _through(self, stay: Stay) -> AsyncGenerator[ChoiceEvent, None]:
        """What one group brings, as far as it comes. Tokens that another one has brought already are passed over."""
        shown: list[ChoiceEvent] = []
        async with aclosing(stay.events()) as events:
            async for event in events:
                if isinstance(event, TokenEvent) and event.index != len(self._choice.output_ids):
                    if event.index < len(self._choice.output_ids):
                        continue
                    event = Failed(event.request_id, Unavailable(f"token {event.index} came before the one before it"))
                if isinstance(event, Failed):
                    yield event
                    return
                stay.lease.done(1)
                shown = list(self._choice.take(event))
                self._case.gained(self._reached(stay))
                if self._choice.is_over:
                    break  # a reader that is slow to take the end does not keep the engine busy
                for part in shown:
                    yield part
        for part in shown:
            yield part

    def _reached(self, stay: Stay) -> int:
        """Output tokens by now; of a search, which begins anew in each group, in this one."""
        return stay.searched or len(self._choice.output_ids)

    # ---- from group to group

    def _is_passed_over(self, failure: Failed) -> bool:
        """Whether it is no reason to end: the stream is moving, or the client was promised that it runs."""
        is_moving = self._approach is not None or self._goal is not None
        return isinstance(failure.error, Overloaded | Unavailable) and (is_moving or self._is_promised())

    async def _come_near(self, here: Stay, group: Group) -> Stay | None:
        """Begin in `group` beside `here`, and leave `here` once that is near."""
        found = await approach(lambda: self._begin(group, is_beside=True), lambda: len(self._choice.output_ids))
        if isinstance(found, Stay):
            here.leave()
            return found
        if found.presence is not None:
            self._case.lost(found.presence, len(self._choice.output_ids))
        log.warning("%s stays in group %s: %s", self._name, here.name, found.error.message)
        self._approach, self._rests_until_s = None, self._fleet.clock() + AGAIN_S
        return None

    async def _arrival(self) -> Stay | None:
        """Where the move that is under way leads, now that the group before has ended."""
        goal, self._goal = self._goal, None
        if self._case.refusal is not None:
            return None
        if goal is not None:
            return self._begin(goal) if goal.alive else None
        if (task := self._approach) is None:
            return None
        await asyncio.wait([task])
        self._approach = None
        return task.result()

    async def _seek(self, lost: list[Group], bits: tuple[str, str]) -> Stay | None:
        """In another group, of the same bits if there is one; waits for one that is being rebuilt.

        None: there is none, or the request may not run any more.
        """
        for _ in range(1 + int(self._fleet.patience_s / SEEK_PERIOD_S)):
            if self._refusal is not None:
                return None
            if self._case.must_wait:
                await asyncio.sleep(SEEK_PERIOD_S)
                continue
            fresh = [g for g in self._fleet.groups.values() if not any(g is other for other in lost)]
            for groups in ([g for g in fresh if g.info.bits == bits], fresh):
                with suppress(Overloaded, Unavailable):
                    return self._begin(self._fleet.choose(self._tokens_left, self._turn, self._case.gathered(groups)))
            await asyncio.sleep(SEEK_PERIOD_S)
        return None

    @property
    def _refusal(self) -> RaylineError | None:
        """Why no group may run it any more."""
        if self._case.refusal is not None:
            return self._case.refusal
        if self._fleet.clock() >= self._deadline_s:
            return DeadlineExceeded("the time for it passed while it waited for a group", field="timeout_s")
        return None

    def _go_on(self, before: Stay, stay: Stay, bits: tuple[str, str], why: Failed) -> None:
        log.warning("%s goes on in group %s: %s", self._name, stay.name, why.error.message)
        self.moves += 1
        self.losses += why.presence is not None
        self.exact = self.exact and stay.group.info.exact and stay.group.info.bits == bits
        before.lease.done(self._tokens_left)

    async def _call_off(self) -> None:
        """The choice has ended: so does what was begun beside it."""
        self._stay = None
        self._case.close()
        if self._approach is not None:
            self._approach.cancel()
            await asyncio.wait([self._approach])
            if not self._approach.cancelled() and (near := self._approach.result()) is not None:
                await near.close()

    @property
    def _tokens_left(self) -> int:
        request = self._choice.request
        return len(request.prompt_ids) + (request.params.max_tokens or 0) - len(self._choice.output_ids)

    @property
    def _name(self) -> str:
        return self._choice.request.request_id
