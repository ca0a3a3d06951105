"""Probes of this machine's limits, as the benchmarks use them: sized for its caches, on threads of their own."""

import time
from collections.abc import Callable

from rayline.cluster.machine import available_bytes, last_level_cache_bytes
from rayline.kernels.library import LibraryMissing, load
from rayline.kernels.limits import MachineLimits, median_limits
from rayline.kernels.probe import Probe
from rayline.kernels.program import Operations, Team

CACHES_READ = 2  # a buffer of twice the cache: what a pass over it leaves behind is of no use to the next one
LARGEST_SHARE = 4  # of the memory that is free
SETTLE_S = 0.005  # torch's threads spin for a while after their last operation; they must not be measured


def open_probe(operations: Operations) -> Probe:
    """A probe on this team that reads memory and not the caches, if there is memory enough."""
    return Probe(operations, min(CACHES_READ * last_level_cache_bytes(), available_bytes() // LARGEST_SHARE))


class LimitSampler:
    """Measures the limits now and then, between the rounds of something else."""

    def __init__(self, probe: Probe | None, missing: str, sleep: Callable[[float], None] = time.sleep):
        """`missing` says why there is no probe."""
        self._probe = probe
        self._sleep = sleep
        self._samples: list[MachineLimits] = []
        self.missing = missing

    @staticmethod
    def open(threads: int) -> "LimitSampler":
        """Without the C++ kernels it measures nothing."""
        try:
            library = load()
        except LibraryMissing as missing:
            return LimitSampler(None, str(missing))
        return LimitSampler(open_probe(Operations(Team(library, threads))), "")

    @property
    def buffer_bytes(self) -> int:
        """Memory this holds."""
        return self._probe.buffer_bytes if self._probe else 0

    def sample(self) -> None:
        """About 0.2 s. Nothing else should compute meanwhile."""
        if self._probe is not None:
            self._sleep(SETTLE_S)
            self._samples.append(self._probe.limits(passes=3))

    def taken(self) -> MachineLimits | None:
        """Medians of the samples since the last call; None where nothing was measured."""
        samples, self._samples = self._samples, []
        return median_limits(samples) if samples else None
