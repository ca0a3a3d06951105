"""Who is computed alone: a request that is suspected of killing groups, so that nobody else is taken for the reason.

plans   a b c   a b c |         |  S   S  |  a b c S
                      | results |         |
               S's turn comes   S alone   S has gained its tokens: it is one of many

A beam search that was lost far from its beginning goes on beside the others until it comes near to that place.
"""

from rayline.protos.blame import PROOF_TOKENS
from rayline.workers.scheduling.roster import Roster
from rayline.workers.scheduling.sequence import Sequence


class Solo:
    """One suspect at a time. The others keep their blocks and wait; it waits for all plans that are in flight."""

    def __init__(self, roster: Roster):
        self._roster = roster
        self._first: Sequence | None = None
        self._has_begun = False
        self._later: list[Sequence] = []

    @property
    def request_id(self) -> str:
        """Of the suspect whose turn it is, "" once it has ended or is cleared."""
        first = self._first
        return "" if first is None or not self._is_due(first) else first.request.request_id

    @property
    def sequences(self) -> list[Sequence]:
        """Its own, in order of rank."""
        own = [s for s in self._roster.sequences.values() if s.request.request_id == self.request_id]
        return sorted(own, key=lambda s: s.rank)

    def takes(self, sequence: Sequence) -> bool:
        """A sequence has its blocks: whether it is a suspect whose turn begins now. Others' turns come later."""
        if sequence.request.apart_at is None:
            return False
        first = self._roster.firsts[sequence.request.request_id]
        if self._is_due(first):
            self._begin(first)
            return True
        if first not in self._later:
            self._later.append(first)
        return False

    def takes_its_turn(self) -> bool:
        """Whether a suspect that was to come later has come near to where it was lost."""
        if not self._later:
            return False
        self._later = [s for s in self._later if self._lives(s) and self._to_come(s) > -PROOF_TOKENS]
        if (due := next((s for s in self._later if self._is_due(s)), None)) is not None:
            self._begin(due)
        return due is not None

    def may_plan(self, in_flight: int) -> bool:
        """in_flight: plans that no result has come for. The first of its own waits until there are none."""
        self._has_begun = self._has_begun or not in_flight
        return self._has_begun

    def give_up(self) -> None:
        """It cannot go on now: the others do."""
        self._first = None

    def _begin(self, first: Sequence) -> None:
        """Whoever has to step back from its turn waits for blocks, and is taken again with them."""
        self._first, self._has_begun = first, False
        self._later = [s for s in self._later if s is not first]

    def _lives(self, first: Sequence) -> bool:
        return self._roster.firsts.get(first.request.request_id) is first

    def _is_due(self, first: Sequence) -> bool:
        """Whether a suspect is to be computed alone now."""
        return self._lives(first) and abs(self._to_come(first)) < PROOF_TOKENS

    def _to_come(self, first: Sequence) -> int:
        """Output tokens until the place where a suspect was lost; below 0 behind it."""
        search = self._roster.searches.get(first.request.request_id)
        tokens = len(first.output_ids) if search is None else search.tokens
        return (first.request.apart_at or 0) - tokens
