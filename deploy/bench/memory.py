"""Peak memory of processes and their descendants, sampled beside a run."""

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. rss counts a shared page in every process that maps it, pss divides it among them."""

    rss_bytes: int
    pss_bytes: int

    def less(self, size_bytes: int) -> "Memory":
        """Without some memory that one process alone holds."""
        return Memory(self.rss_bytes - size_bytes, self.pss_bytes - size_bytes)

    def larger(self, other: "Memory") -> "Memory":
        """Each figure by itself."""
        return Memory(max(self.rss_bytes, other.rss_bytes), max(self.pss_bytes, other.pss_bytes))


def memory_of(pid: int) -> Memory:
    """Of a process and all its descendants now; processes that end meanwhile count as 0."""
    rss = pss = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return Memory(0, 0)
    for process in family:
        try:
            info = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        rss += info.rss
        pss += info.pss
    return Memory(rss, pss)


class PeakMemory:
    """Samples `pid`'s family while it is entered. `peak` holds the largest sums seen at one moment."""

    def __init__(self, pid: int, period_s: float = 0.5):
        self._pid = pid
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.peak = Memory(0, 0)

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._sample()
            self._stop.wait(self._period_s)

    def _sample(self) -> None:
        self.peak = self.peak.larger(memory_of(self._pid))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()
