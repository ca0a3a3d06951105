"""When requests end that nobody waits for any more."""

import heapq
from collections.abc import Mapping

from rayline.workers.scheduling.sequence import Sequence

SPARE = 64  # entries of ended requests that are kept before the heap is cleaned


class Deadlines:
    """A heap by time. Requests that end before their deadline stay in it until they are in the majority."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, first: Sequence, deadline_s: float, live: Mapping[str, Sequence]) -> None:
        """`first`: of the request. `live`: the first sequences of all requests that have not ended, by request id."""
        if len(self._heap) > SPARE + 2 * len(live):
            self._heap = [entry for entry in self._heap if _is_live(entry, live)]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (deadline_s, first.number, first.request.request_id))

    def due(self, now_s: float, live: Mapping[str, Sequence]) -> list[str]:
        """The requests whose time is up, each told once."""
        late: list[str] = []
        while self._heap and self._heap[0][0] <= now_s:
            entry = heapq.heappop(self._heap)
            if _is_live(entry, live):
                late.append(entry[2])
        return late


def _is_live(entry: tuple[float, int, str], live: Mapping[str, Sequence]) -> bool:
    """An id may be used again for another request, a number never."""
    _, number, request_id = entry
    return request_id in live and live[request_id].number == number
