"""Who is computed alone: a request that is suspected of killing groups, so that nobody else is taken for the reason.

plans   a b c   a b c |         |  S   S  |  a b c S
                      | results |         |
               S's turn comes   S alone   S has gained its tokens: it is one of many
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

    @property
    def request_id(self) -> str:
        """Of the suspect whose turn it is, "" once it has ended or is cleared."""
        first = self._first
        if first is None or self._roster.firsts.get(first.request.request_id) is not first or not is_suspect(first):
            return ""
        return first.request.request_id

    @property
    def sequences(self) -> list[Sequence]:
        """Its own, in order of rank."""
        own = [s for s in self._roster.sequences.values() if s.request.request_id == self.request_id]
        return sorted(own, key=lambda s: s.rank)

    def begin(self, sequence: Sequence) -> None:
        self._first, self._has_begun = self._roster.firsts[sequence.request.request_id], False

    def may_plan(self, in_flight: int) -> bool:
        """in_flight: plans that no result has come for. The first of its own waits until there are none."""
        self._has_begun = self._has_begun or not in_flight
        return self._has_begun

    def give_up(self) -> None:
        """It cannot go on now: the others do."""
        self._first = None


def is_suspect(sequence: Sequence) -> bool:
    """Whether its request is still to be computed alone. A search is to its end: nobody sees it gain a token."""
    request = sequence.request
    gained = 0 if sequence.is_beam else len(sequence.output_ids) - len(request.output_ids)
    return request.apart and gained < PROOF_TOKENS
