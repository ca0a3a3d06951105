"""Parts of `rayline bench gpu` that go wrong in every way there is, in a module that a new process can import."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rayline.workers.bench.gpu.bench import Bench, Part
from rayline.workers.bench.gpu.report import Check, DeviceLimits, Figure, Row


def measures(bench: Bench) -> Iterator[Row]:
    yield DeviceLimits(2.0, 4.0)


def works(bench: Bench) -> Iterator[Row]:
    """Says which process it runs in, and the limit it was told."""
    assert bench.limits is not None
    yield Figure("process", os.getpid(), "pid", bench.limits.flops_per_s, "")


def raises(bench: Bench) -> Iterator[Row]:
    yield Check("before", True)
    raise ValueError("no such kernel\nand more")


def dies(bench: Bench) -> Iterator[Row]:
    yield Check("last words", False, "as expected")
    os._exit(7)


def hangs(bench: Bench) -> Iterator[Row]:
    yield Check("still here", True)
    time.sleep(600)


@dataclass(frozen=True)
class BrokenMachine:
    """Whose context is lost: nothing works until a new process opens it."""

    def synchronize(self) -> None: ...

    def is_sane(self) -> bool:
        return False


def breaks_the_device(bench: Bench) -> Iterator[Row]:
    object.__setattr__(bench, "machine", BrokenMachine())
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
    yield


def part(name: str, limit_s: float = 300.0) -> Part:
    return Part(name, globals()[name], limit_s)
