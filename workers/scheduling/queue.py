"""The sequences that wait for blocks and a place in the batch, and which of them starts next."""

import math
from bisect import bisect_left, insort
from collections.abc import Container

from rayline.workers.scheduling.sequence import Sequence
from rayline.workers.scheduling.tenants import TenantCounters


def effective_priority(priority: int, arrived_s: float, now_s: float, aging_s: float) -> int:
    """`priority` after a wait: one class better for each `aging_s` seconds. 0: it stays what it was."""
    if aging_s <= 0.0:
        return priority
    return priority - math.floor(max(0.0, now_s - arrived_s) / aging_s)


class WaitingQueue:
    """Next is, in this order of importance:

    1. a beam whose search already runs: it waits for it with all its blocks
    2. the best priority, aged, but none better than the best that was given to anyone who waits: in the first class
       old requests compete with new ones as equals, so that a tenant's long queue cannot push others aside
    3. the tenant with the smallest counter
    4. the earliest arrival

    tokens: that those who wait bring along.
    """

    def __init__(self, tenants: TenantCounters, aging_s: float = 0.0) -> None:
        self._tenants = tenants
        self._aging_s = aging_s
        self._lines: dict[tuple[int, str], list[Sequence]] = {}  # by priority and tenant, each in order of arrival
        self._beams: dict[int, Sequence] = {}
        self._length = 0
        self.tokens = 0

    def __len__(self) -> int:
        return self._length

    def push(self, sequence: Sequence) -> None:
        request = sequence.request
        insort(self._lines.setdefault((request.priority, request.tenant), []), sequence, key=_rank)
        self._tenants.enter(request.tenant)
        self._length += 1
        self.tokens += sequence.given
        if sequence.is_beam:
            self._beams[sequence.number] = sequence

    def first(self, now_s: float, running: Container[str] = ()) -> Sequence | None:
        """The sequence that starts next; it stays in the queue. `running`: ids of requests that run in part."""
        begun = [beam for beam in self._beams.values() if beam.request.request_id in running]
        if begun:
            return min(begun, key=_rank)
        best_given = min((priority for priority, _ in self._lines), default=0)

        def place(head: Sequence) -> tuple[int, float, tuple[float, ...]]:
            request = head.request
            aged = effective_priority(request.priority, head.arrived_s, now_s, self._aging_s)
            return max(best_given, aged), self._tenants.counter(request.tenant), (head.arrived_s, *_rank(head))

        return min((line[0] for line in self._lines.values()), key=place, default=None)

    def tokens_before(self, tenant: str, priority: int) -> int:
        """Tokens of those that start before a request that comes now, whatever other tenants get."""
        lines = (line for (of, name), line in self._lines.items() if name == tenant and of <= priority)
        return sum(sequence.given for line in lines for sequence in line)

    def remove(self, sequence: Sequence) -> None:
        request = sequence.request
        line = self._lines[request.priority, request.tenant]
        del line[bisect_left(line, sequence.rank, key=_rank)]
        if not line:
            del self._lines[request.priority, request.tenant]
        self._beams.pop(sequence.number, None)
        self._tenants.leave(request.tenant)
        self._length -= 1
        self.tokens -= sequence.given


def _rank(sequence: Sequence) -> tuple[int, float, int, int]:
    return sequence.rank
