"""What the parts of `rayline bench gpu` are given, and how a part is declared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from rayline.workers.bench.gpu.machine import Machine
from rayline.workers.bench.gpu.model_run import Work
from rayline.workers.bench.gpu.report import DeviceLimits, Figure, Row
from rayline.workers.bench.gpu.sizes import SIZES, Sizes
from rayline.workers.bench.roofline import bound


@dataclass(frozen=True, slots=True)
class Setup:
    """What a process needs to know to measure. device: cuda or cpu. size: full or tiny."""

    device: str
    size: str
    least_s: float
    limits: DeviceLimits | None = None

    def open(self) -> "Bench":
        device = torch.device(self.device)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float16  # Triton's interpreter has no bfloat16
        return Bench(Machine(device, dtype, self.least_s), SIZES[self.size], self.limits)


@dataclass(frozen=True, slots=True)
class Bench:
    machine: Machine
    sizes: Sizes
    limits: DeviceLimits | None

    def figure(self, name: str, seconds: float, work: Work, scale: float = 1e3, unit: str = "ms") -> Figure:
        """Held against what the device's limits allow for this work."""
        if self.limits is None:
            return Figure(name, seconds * scale, unit)
        least = bound(work.bytes, work.flops, self.limits.copy_bytes_per_s, self.limits.flops_per_s)
        limit = "the bandwidth's roofline" if least.binds == "bandwidth" else "the product rate's roofline"
        return Figure(name, seconds * scale, unit, least.seconds / seconds, limit)


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of the whole. function gives rows as they come. limit_s: after more it is ended."""

    name: str
    function: Callable[[Bench], Iterator[Row]]
    limit_s: float
