"""What the device can do at most, measured: the figures that all others are held against."""

from collections.abc import Iterator

import torch

from rayline.workers.bench.gpu.bench import Bench
from rayline.workers.bench.gpu.report import DeviceLimits, Row


def limits(bench: Bench) -> Iterator[Row]:
    """A copy inside the device's memory, and a square product of random numbers: zeros would be quicker."""
    machine, sizes = bench.machine, bench.sizes
    source = machine.randn(sizes.copy_bytes // machine.dtype.itemsize)
    target = torch.empty_like(source)
    copied_s = machine.seconds(lambda: target.copy_(source))
    a, b = machine.randn(sizes.matrix, sizes.matrix, seed=1), machine.randn(sizes.matrix, sizes.matrix, seed=2)
    multiplied_s = machine.seconds(lambda: a @ b)
    yield DeviceLimits(2 * source.nbytes / copied_s, 2 * sizes.matrix**3 / multiplied_s)
