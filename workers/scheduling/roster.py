"""All requests of a group: which sequences each has, and where those are kept."""

from rayline.protos.plan import Fork
from rayline.protos.types import EngineRequest
from rayline.workers.scheduling.draft import Draft
from rayline.workers.scheduling.families import Families
from rayline.workers.scheduling.queue import WaitingQueue
from rayline.workers.scheduling.searches import BeamSearch
from rayline.workers.scheduling.sequence import Place, Sequence
from rayline.workers.scheduling.tables import BlockTables


class Roster:
    """Keeps the books: a sequence is in the queue, runs, or stands aside, until its request ends.

    The first sequence of a request stands for it to its end, even when it is a beam that is long gone.
    """

    def __init__(self, tables: BlockTables, draft: Draft, queue: WaitingQueue):
        self.sequences: dict[int, Sequence] = {}
        self.firsts: dict[str, Sequence] = {}
        self.searches: dict[str, BeamSearch] = {}
        self.families = Families()
        self.queue = queue
        self.running: list[Sequence] = []
        self._tables = tables
        self._draft = draft
        self._numbers = 0

    def add(self, request: EngineRequest, limit: int, now_s: float) -> Sequence:
        """The first sequence of a request. It waits in the queue, or for the trunk of its family."""
        sequence = self._new(request, limit, now_s, self._numbers)
        sequence.output_ids = list(request.output_ids)
        self.firsts[request.request_id] = sequence
        if not self.families.join(sequence):
            self.wait(sequence)
        return sequence

    def fork(self, parent: Sequence) -> Sequence:
        """One beam more: it stands where `parent` does."""
        child = self._new(parent.request, parent.limit, parent.arrived_s, parent.order)
        self.inherit(parent, child)
        if parent.place is Place.RUNNING:
            self.run(child)
        return child

    def inherit(self, parent: Sequence, child: Sequence) -> None:
        """`child` begins with all tokens and blocks of `parent`."""
        self._tables.fork(parent, child)
        self._draft.forked.append(Fork(child.number, parent.number, child.request.params))

    def wait(self, sequence: Sequence) -> None:
        sequence.place = Place.QUEUED
        self.queue.push(sequence)

    def run(self, sequence: Sequence) -> None:
        sequence.place = Place.RUNNING
        self.running.append(sequence)

    def stop(self, sequence: Sequence) -> None:
        """A running sequence loses its blocks. It waits for others, unless it has nothing to compute."""
        self._tables.release(sequence)
        self.running.remove(sequence)
        sequence.place = Place.ASIDE
        if not sequence.is_idle:
            self.wait(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence at once: its blocks are free before the next plan."""
        self._tables.release(sequence)
        del self.sequences[sequence.number]
        if sequence.introduced:
            self._draft.released.append(sequence.number)
        if sequence.place is Place.RUNNING:
            self.running.remove(sequence)
        elif sequence.place is Place.QUEUED:
            self.queue.remove(sequence)

    def end(self, request_id: str) -> Sequence:
        """Forget a request with all its sequences; its first one, which holds the counts of the request."""
        first = self.firsts.pop(request_id)
        search = self.searches.pop(request_id, None)
        for sequence in [first] if search is None else search.beams:
            self.drop(sequence)
        self._tables.reservations.close(request_id)
        self.families.leave(first, self.wait)
        return first

    @property
    def waiting(self) -> int:
        return len(self.queue) + self.families.waiting

    def places(self) -> dict[str, int]:
        """Places taken by each running request. A search keeps those of all its beams as long as one of them runs."""
        return {s.request.request_id: _places(s) for s in self.running}

    def has_place(self, sequence: Sequence, most: int) -> bool:
        """Whether `sequence` can run when `most` may run at once."""
        taken = self.places()
        return sequence.request.request_id in taken or sum(taken.values()) + _places(sequence) <= most

    def _new(self, request: EngineRequest, limit: int, arrived_s: float, order: int) -> Sequence:
        sequence = Sequence(self._numbers, request, limit, arrived_s, order)
        self._numbers += 1
        self.sequences[sequence.number] = sequence
        return sequence


def _places(sequence: Sequence) -> int:
    return max(1, sequence.request.params.beam_width)
