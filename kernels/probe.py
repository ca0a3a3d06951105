"""Measures what the machine can do at most, on the threads that compute: read bandwidth and arithmetic rates."""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from rayline.kernels.limits import MachineLimits
from rayline.kernels.program import Operations

CHUNK_BYTES = 2**20
CHUNKS_PER_THREAD = 8  # so that a thread that lost its core for a moment holds nobody up
FIRST_ROUNDS = 256
RATE_PASS_S = 0.001
RATE_PASSES = 7


class Probe:
    """Runs the probes on one team. `buffer_bytes` should be twice the last-level cache: a pass over the
    buffer then reads memory, and leaves nothing else in the caches."""

    def __init__(
        self, operations: Operations, buffer_bytes: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._operations = operations
        self._clock = clock
        size = max(CHUNK_BYTES, buffer_bytes) // CHUNK_BYTES * CHUNK_BYTES // torch.float32.itemsize
        self._data = torch.empty(size)
        operations.library.advise_huge_pages(self._data.data_ptr(), self._data.nbytes)  # as packed weights have them
        self._data.fill_(1.0)  # pages that were never written are all one page of zeros
        self._sums = torch.empty(-(-self._data.nbytes // CHUNK_BYTES))
        self._chunks = CHUNKS_PER_THREAD * operations.team.threads
        self._rounds: dict[str, int] = {}

    @property
    def buffer_bytes(self) -> int:
        return self._data.nbytes

    def read_bytes_per_s(self) -> float:
        """One pass over the buffer by all threads."""
        chunk = CHUNK_BYTES // self._data.itemsize
        took_s = self._timed("ReadProbe", data=self._data, sums=self._sums, size=len(self._data), chunk=chunk)
        return self._data.nbytes / took_s

    def limits(self, passes: int) -> MachineLimits:
        """The median bandwidth of `passes` passes, and rates.

        Of each rate the best of several short passes counts: bandwidth drifts, but a core that another process took
        for a while says nothing of what it could compute.
        """
        return MachineLimits(
            read_bytes_per_s=median(self.read_bytes_per_s() for _ in range(passes)),
            fma_flops_per_s=self._best_rate("FmaProbe", results=torch.empty(self._chunks)),
            bf16_flops_per_s=self._best_rate("Bf16Probe") or None,
            int8_ops_per_s=self._best_rate("Int8Probe") or None,
        )

    def _best_rate(self, name: str, **values: Tensor) -> float:
        return max(self._rate(name, **values) for _ in range(RATE_PASSES))

    def _rate(self, name: str, **values: Tensor) -> float:
        """Operations a second of a pass that takes about RATE_PASS_S; the first one of a kind finds out how long."""
        done = torch.zeros(self._chunks, dtype=torch.int64)

        def run(rounds: int) -> float:
            return self._timed(name, chunks=self._chunks, rounds=rounds, operations=done, **values)

        if name not in self._rounds:
            run(FIRST_ROUNDS)  # wakes the threads
            self._rounds[name] = max(FIRST_ROUNDS, int(FIRST_ROUNDS * RATE_PASS_S / run(FIRST_ROUNDS)))
        took_s = run(self._rounds[name])
        return float(done.sum()) / took_s

    def _timed(self, name: str, **values: Tensor | int) -> float:
        began_s = self._clock()
        self._operations.call(name, 1, **values)
        return self._clock() - began_s
