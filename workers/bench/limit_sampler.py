"""The machine's limits, measured now and then between the rounds of something else, because they drift."""

import time
from collections.abc import Callable
from typing import Protocol

from rayline.kernels.limits import MachineLimits, median_limits

SETTLE_S = 0.005  # torch's threads spin for a while after their last operation; they must not be measured
PASSES = 3


class LimitProbe(Protocol):
    """What measures them; `buffer_bytes` is the memory it holds for that."""

    @property
    def buffer_bytes(self) -> int: ...

    def limits(self, passes: int) -> MachineLimits: ...


class LimitSampler:
    """Collects samples. Without a probe it collects none, and `missing` says why."""

    def __init__(self, probe: LimitProbe | None, missing: str = "", sleep: Callable[[float], None] = time.sleep):
        self._probe = probe
        self._sleep = sleep
        self._samples: list[MachineLimits] = []
        self.missing = missing

    def sample(self) -> None:
        """About 0.2 s, in which nothing else should compute."""
        if self._probe is not None:
            self._sleep(SETTLE_S)
            self._samples.append(self._probe.limits(PASSES))

    def close(self) -> int:
        """Gives its memory back and says how many bytes that was; nothing can be sampled any more."""
        held_bytes = self._probe.buffer_bytes if self._probe else 0
        self._probe = None
        return held_bytes

    def taken(self) -> MachineLimits | None:
        """Medians of the samples since the last call; None where nothing was measured."""
        samples, self._samples = self._samples, []
        return median_limits(samples) if samples else None
