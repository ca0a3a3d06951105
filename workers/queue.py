"""The sequences that wait for blocks and a place in the batch, in the order in which they are to start."""

import heapq

from rayline.workers.sequence import Sequence


class WaitingQueue:
    """First the smallest rank: priority, then arrival."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, int, int], Sequence]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.rank, sequence))

    def first(self) -> Sequence | None:
        """The sequence that starts next; it stays in the queue."""
        return self._heap[0][1] if self._heap else None

    def remove(self, sequence: Sequence) -> None:
        self._heap = [entry for entry in self._heap if entry[1] is not sequence]
        heapq.heapify(self._heap)
