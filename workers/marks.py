"""Places in the queue of what a device was given to do: whether it has come there, and how long it took between two.

A CPU is at a place as soon as the place is made: what was launched before has been computed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch


class Mark(Protocol):
    """One place in the queue."""

    def is_reached(self) -> bool: ...

    def wait(self) -> None:
        """Until everything launched before it is done. Raises what went wrong in it."""
        ...

    def seconds_since(self, earlier: Self) -> float:
        """Between two marks that the device has reached."""
        ...


@dataclass(frozen=True, slots=True)
class HostMark:
    at_s: float = field(default_factory=time.perf_counter)

    def is_reached(self) -> bool:
        return True

    def wait(self) -> None:
        """There is nothing to wait for."""

    def seconds_since(self, earlier: "HostMark") -> float:
        return self.at_s - earlier.at_s


class CudaMark:
    """An event in the current stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def is_reached(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()

    def seconds_since(self, earlier: "CudaMark") -> float:
        return float(earlier._event.elapsed_time(self._event)) / 1e3


def marks_of(device: torch.device) -> Callable[[], Mark]:
    """What makes marks in the queue of `device`."""
    return CudaMark if device.type == "cuda" else HostMark
