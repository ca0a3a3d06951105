"""Times single operations beside the machine's limits, which drift: every figure has its own probes around it.

    round:  [probe  untimed  timed] of the 1st contender,  [probe  untimed  timed] of the 2nd,  ...
               |       |       |
               |       |       on the second copy of the weights or cache: cold
               |       on the first copy: threads are awake, code is loaded
               measures the limits; its pass over memory leaves nothing of the copies in the caches

The order of the contenders turns from round to round.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from rayline.cluster.machine import available_bytes
from rayline.kernels.context import ForwardContext
from rayline.kernels.library import LibraryMissing, load
from rayline.kernels.limits import MachineLimits, median_limits
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.probe import Probe
from rayline.kernels.program import Operations, Team
from rayline.protos.errors import ConfigError
from rayline.workers.bench.limit_sampler import SETTLE_S
from rayline.workers.bench.machine_probe import first_cores, open_probe
from rayline.workers.bench.roofline import CaseReport, ContenderReport, bound

Contender = Callable[[int], object]
"""Computes the operation with copy 0 or 1 of its weights or cache."""

LAYOUTS = 3  # of one weight, at most: ours, torch's and oneDNN's
LONGEST_CASE_S = 10.0
LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one shape.

    bytes: read and written by one call, each once. flops: multiplications and additions of its products;
    0 where it has none. build: its contenders by name, each with `copies` copies of what should be cold.
    products: of which numbers, which decides the rate they could have.
    """

    operation: str
    shape: str
    bytes: int
    flops: int
    build: Callable[[NativeKernels, int], Mapping[str, Contender]]
    products: Literal["float", "int8"] = "float"


def case_report(case: Case, samples: Sequence[MachineLimits], times_s: Mapping[str, Sequence[float]]) -> CaseReport:
    """Medians of the limits against medians of the times; one list of at least one time for each contender."""
    limits = median_limits(samples)
    flops_per_s = limits.flops_per_s if case.products == "float" else limits.int8_or_flops_per_s
    least = bound(case.bytes, case.flops, limits.read_bytes_per_s, flops_per_s)
    contenders = tuple(
        ContenderReport(name, took_s, case.bytes / took_s, case.flops / took_s, least.seconds / took_s)
        for name, took_s in ((name, median(taken)) for name, taken in times_s.items())
    )
    return CaseReport(
        operation=case.operation,
        shape=case.shape,
        bytes=case.bytes,
        flops=case.flops,
        rounds=min(len(taken) for taken in times_s.values()),
        limits=limits,
        flops_limit_per_s=flops_per_s,
        roofline_s=least.seconds,
        binds=least.binds,
        contenders=contenders,
    )


class KernelBench:
    """The C++ kernels and a probe on one team of threads; torch computes with as many."""

    def __init__(self, kernels: NativeKernels, probe: Probe, clock: Callable[[], float] = time.perf_counter):
        self._kernels = kernels
        self._probe = probe
        self._clock = clock

    @staticmethod
    def open(threads: int) -> "KernelBench":
        """Raises ConfigError where the C++ kernels are missing."""
        try:
            library = load()
        except LibraryMissing as missing:
            raise ConfigError(f"there is nothing to measure: {missing}") from None
        torch.set_num_threads(threads)
        operations = Operations(Team(library, threads, first_cores(threads)))
        return KernelBench(NativeKernels(operations), open_probe(operations))

    @torch.inference_mode()
    def run(self, case: Case, rounds: int) -> CaseReport | None:
        """At most `rounds` rounds, fewer of a slow case. None when its copies would not leave half of the free
        memory free."""
        copies = 1 if case.bytes >= self._probe.buffer_bytes else 2
        if LAYOUTS * copies * case.bytes > available_bytes() // 2:
            return None
        contenders = case.build(self._kernels, copies)
        names = tuple(contenders)
        for contender in contenders.values():
            contender(0)  # torch's first call of a shape makes its kernel
        samples: list[MachineLimits] = []
        times_s: dict[str, list[float]] = {name: [] for name in names}
        began_s = self._clock()
        for round_ in range(rounds):
            if round_ >= LEAST_ROUNDS and self._clock() - began_s > LONGEST_CASE_S:
                break
            for at in range(len(names)):
                name = names[(round_ + at) % len(names)]
                samples.append(self._limits())
                times_s[name].append(self._time(contenders[name], copies - 1))
        return case_report(case, samples, times_s)

    def _limits(self) -> MachineLimits:
        time.sleep(SETTLE_S)
        return self._probe.limits(passes=1)

    def _time(self, contender: Contender, copy: int) -> float:
        contender(0)
        began_s = self._clock()
        contender(copy)
        return self._clock() - began_s


def random_bf16(*shape: int) -> Tensor:
    """Numbers near 0; a long tensor repeats itself, for what they are changes no time."""
    block = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.empty(shape, dtype=torch.bfloat16)
    flat = out.view(-1)
    for first in range(0, len(flat), len(block)):
        flat[first : first + len(block)] = block[: len(flat) - first]
    return out


def recorded(
    kernels: NativeKernels, function: Callable[[Tensor], Tensor], x: Tensor, context: ForwardContext | None = None
) -> Callable[[], Tensor]:
    """`function`, made of operations of `kernels`, on `x` as the engine runs it: as a program."""
    program = kernels.operations.record(function, x.to("meta"))
    program.inputs[0].copy_(x)
    return partial(program.run, len(x), context)
