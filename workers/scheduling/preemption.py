"""Who loses its blocks when there are too few, and how often that may happen to a request.

Only a request that comes later in rank can be preempted, and a request is preempted whole, so the first of all goes on.
After `most_times` a request starts again only when all blocks it may ever need can be reserved for it; from then on it
runs to its end. With no other request around it starts with whatever there is.
"""

import logging

from rayline.protos.group import PreemptionReason
from rayline.workers.scheduling.draft import Draft
from rayline.workers.scheduling.reservations import most_blocks
from rayline.workers.scheduling.roster import Roster
from rayline.workers.scheduling.scheduler_stats import SchedulerStats
from rayline.workers.scheduling.sequence import Place, Sequence
from rayline.workers.scheduling.tables import BlockTables

log = logging.getLogger(__name__)


class Preemption:
    """Takes blocks from running requests, and keeps those that lost theirs too often from losing them again."""

    def __init__(
        self,
        roster: Roster,
        tables: BlockTables,
        draft: Draft,
        stats: SchedulerStats,
        block_tokens: int,
        most_times: int,
    ):
        self._roster = roster
        self._tables = tables
        self._draft = draft
        self._stats = stats
        self._block_tokens = block_tokens
        self._most_times = most_times

    def make_room(self, sequence: Sequence, blocks: int) -> bool:
        """Preempt until `sequence` can get `blocks`. False when nobody is left who may be preempted for it."""
        while blocks > self._tables.room(sequence):
            planned = {self._roster.sequences[n].request.request_id for n in self._draft.members}
            victims = [s for s in self._roster.running if s.blocks and s.number not in self._draft.members]
            victims = [s for s in victims if s.rank > sequence.rank and self._may_lose(s, sequence)]
            victims = [s for s in victims if _same(s, sequence) or s.request.request_id not in planned]
            if not victims:
                return False
            self.preempt(max(victims, key=lambda s: s.rank), sequence, PreemptionReason.GROWTH)
        return True

    def losers(self, sequence: Sequence) -> list[Sequence]:
        """Who may be preempted so that a stuck `sequence` moves, the last in rank at the end."""
        others = [s for s in self._roster.running if s is not sequence and self._may_lose(s, sequence)]
        return sorted(others, key=lambda s: s.rank)

    def preempt(self, victim: Sequence, by: Sequence, reason: PreemptionReason) -> None:
        """Take the blocks of a request, or of one beam if another beam of its own request wants them.

        What it computed is computed again when it runs again, as far as the prefix cache has lost it.
        """
        lost = [victim]
        if _same(victim, by):
            reason = PreemptionReason.OWN_BEAMS
        else:
            lost = [s for s in self._roster.running if _same(s, victim)]
            self._roster.firsts[victim.request.request_id].preemptions += 1
        log.info(
            "preempted request %s (%s): %d tokens lost, blocks wanted by %s",
            victim.request.request_id,
            reason,
            sum(s.planned for s in lost),
            by.request.request_id,
        )
        self._stats.preemptions_by[reason] += 1
        for sequence in lost:
            self._roster.stop(sequence)

    def step_back(self, sequences: list[Sequence]) -> None:
        """A suspect that holds up all others lacks blocks: it gives back its own and waits for more."""
        first = self._roster.firsts[sequences[0].request.request_id]
        first.preemptions += 1
        log.info("request %s waits for blocks that others hold", first.request.request_id)
        self._stats.preemptions_by[PreemptionReason.STUCK] += 1
        for sequence in sequences:
            if sequence.place is Place.RUNNING:
                self._roster.stop(sequence)

    def is_sheltered(self, sequence: Sequence) -> bool:
        """Whether its request lost its blocks so often that it may not lose them again."""
        return self._roster.firsts[sequence.request.request_id].preemptions >= self._most_times

    def to_start(self, sequence: Sequence, reused: list[int]) -> int:
        """Blocks that must be there before a waiting sequence starts, of which `reused` are computed."""
        present = self._tables.to_start(sequence, reused)
        if not self._must_reserve(sequence):
            return present
        request = sequence.request
        most = most_blocks(len(request.prompt_ids), sequence.limit, request.params.beam_width, self._block_tokens)
        copies = 1 if request.family else 0  # of the block in which its choices fork
        return max(present, most + copies - len(reused) + self._tables.pool.idle(reused))

    def reserve(self, sequence: Sequence, reused: list[int]) -> None:
        """`sequence` starts: if it is sheltered, the blocks of `to_start` are its own from now on."""
        if self._must_reserve(sequence):
            blocks = min(self.to_start(sequence, reused), self._tables.pool.available)
            self._tables.reservations.open(sequence.request.request_id, blocks)

    def first_of(self, stuck: list[Sequence]) -> Sequence:
        """Who moves first when nobody can: one whose blocks are reserved already, else the first in rank."""
        return min(stuck, key=lambda s: (not self._tables.reservations.holds(s.request.request_id), s.rank))

    def _must_reserve(self, sequence: Sequence) -> bool:
        return self.is_sheltered(sequence) and not self._tables.reservations.holds(sequence.request.request_id)

    def _may_lose(self, victim: Sequence, by: Sequence) -> bool:
        return _same(victim, by) or not self.is_sheltered(victim)


def _same(one: Sequence, other: Sequence) -> bool:
    return one.request.request_id == other.request.request_id
