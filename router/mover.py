"""Sees to it that streams move in good time: looks at groups and lanes again and again and sends lanes on their way."""

import asyncio
import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rayline.router.fleet import Fleet
from rayline.router.group import Group
from rayline.router.lane import Lane
from rayline.router.ledger import Ledger
from rayline.router.moves import Move, Place, leave, rebalance
from rayline.router.policy import tokens_ahead, view_of

log = logging.getLogger("rayline.router")

LOOK_PERIOD_S = 0.1
REBALANCE_PERIOD_S = 2.0


class Mover:
    """Moves the lanes of one model. Everything it decides is in `moves.py`; `look` is one round of it."""

    def __init__(self, fleet: Fleet):
        self._fleet = fleet
        self._lanes: dict[int, Lane] = {}
        self._numbers = itertools.count()
        self._balanced_s = fleet.clock()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def enlisted(self, lanes: Sequence[Lane]) -> Iterator[None]:
        """While these lanes run, they may be moved."""
        numbers = [next(self._numbers) for _ in lanes]
        self._lanes.update(zip(numbers, lanes, strict=True))
        try:
            yield
        finally:
            for number in numbers:
                del self._lanes[number]

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def look(self) -> Sequence[Move]:
        """Decide and send off. Returns the moves that begin now."""
        now_s = self._fleet.clock()
        is_due = now_s - self._balanced_s >= REBALANCE_PERIOD_S
        if not self._lanes or not (is_due or any(group.load.draining for group in self._fleet.groups.values())):
            return ()
        places = [place_of(group, self._fleet.ledger) for group in self._fleet.groups.values()]
        standings = [s for n, lane in self._lanes.items() if (s := lane.standing(n, now_s)) is not None]
        moves = leave(places, standings)
        if not moves and is_due:
            self._balanced_s = now_s
            even = rebalance(places, standings)
            moves = [even] if even else []
        for move in moves:
            self._lanes[move.lane].move(self._fleet.groups[move.target])
        return moves

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            try:
                self.look()
            except Exception:
                log.exception("moving streams failed; trying again")


def place_of(group: Group, ledger: Ledger) -> Place:
    """What the decisions see of a group."""
    view = view_of(group, ledger)
    return Place(
        group_id=view.group_id,
        bits=group.info.bits if group.info.exact else None,
        is_open=view.alive and not view.draining and view.waiting < view.max_waiting,
        is_leaving=view.draining,
        tokens_ahead=tokens_ahead(view),
        own_tokens=view.outstanding_tokens,
        waiting=view.waiting,
        room_tokens=view.load.free_blocks * group.info.block_tokens,
    )
