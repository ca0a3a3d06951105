"""Sums over ranks as far as one device can show them: all ranks' memory lies on it.

What the way between devices costs, and whether they order what they do in each other's memory, takes two of them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from rayline.kernels.gpu import NoGpu
from rayline.kernels.graphs import CudaRecorder
from rayline.kernels.peer_memory import MOST_RANKS, PROGRAMS, PeerMemory, words_of
from rayline.kernels.tree import join_pairwise
from rayline.workers.bench.gpu.bench import Bench
from rayline.workers.bench.gpu.machine import Machine
from rayline.workers.bench.gpu.model_run import Work
from rayline.workers.bench.gpu.report import Check, Failure, Row
from rayline.workers.symmetric_group import CAPACITY, PROBE_POLLS, SummingKernels

ALWAYS = 2**30  # a signal for all sums that will be made here
ROUNDS = 20
RANKS = (2, 4, 8)


class OneDevice:
    """The memory of all ranks."""

    def __init__(self, machine: Machine, ranks: int) -> None:
        programs = PROGRAMS if machine.is_cuda else 2
        self._parts = [torch.zeros(words_of(CAPACITY, programs), device=machine.device) for _ in range(ranks)]
        self._signals = programs * MOST_RANKS
        self.memory = [PeerMemory.of(rank, self._parts, programs) for rank in range(ranks)]

    def others_are_there(self, partials: Tensor) -> None:
        """All ranks but the first have made their part of every sum to come. partials fp32 [ranks, ...]."""
        for part, partial in zip(self._parts[1:], partials[1:], strict=True):
            part[self._signals :].view(2, CAPACITY)[:, : partial.numel()] = partial.flatten()
        self._parts[0][: self._signals].view(torch.int32).fill_(ALWAYS)


def sums(bench: Bench) -> Iterator[Row]:
    """One rank's share of a sum, the others being there: the tree's bits, and how long it takes beside joining parts
    that were gathered."""
    try:
        kernels = bench.machine.kernels("ordinary")
    except NoGpu as missing:
        yield Failure("sums over ranks", str(missing))
        return
    assert isinstance(kernels, SummingKernels)
    hidden = next(iter(bench.sizes.models.values())).hidden_size
    for ranks in RANKS:
        for rows in bench.sizes.batches[:2]:
            yield from _one_rank(bench, kernels, ranks, rows, hidden)
    if bench.machine.is_cuda:
        yield _replayed(bench.machine, kernels, hidden)
        yield _waiting(bench.machine, kernels, hidden)


def _one_rank(bench: Bench, kernels: SummingKernels, ranks: int, rows: int, hidden: int) -> Iterator[Row]:
    machine, device = bench.machine, OneDevice(bench.machine, ranks)
    partials, dtype = machine.randn(ranks, rows, hidden).float(), machine.dtype
    device.others_are_there(partials)
    title, memory = f"sum of {ranks} ranks, {rows} x {hidden}", device.memory[0]
    ours = [kernels.sum_ranks(partials[0], None, dtype, memory) for _ in range(2)]  # of both halves
    theirs = join_pairwise(partials).to(dtype)
    yield Check(f"{title}: the bits of the tree", all(bool(each.equal(theirs)) for each in ours))
    work = Work(partials.nbytes + 2 * partials[0].nbytes + theirs.nbytes, 0.0)
    one_s = machine.seconds(lambda: kernels.sum_ranks(partials[0], None, dtype, memory))
    yield bench.figure(f"{title}, one launch", one_s, work, 1e6, "us")
    joined_s = machine.seconds(lambda: join_pairwise(partials).to(dtype))
    yield bench.figure(f"{title}, gathered parts joined", joined_s, work, 1e6, "us")


def _replayed(machine: Machine, kernels: SummingKernels, hidden: int) -> Check:
    """A launch that a graph replays is another sum, in the other half."""
    device, partials = OneDevice(machine, 2), machine.randn(2, 1, hidden).float()
    out, wrong = torch.empty(1, hidden, dtype=machine.dtype, device=machine.device), 0
    device.others_are_there(partials)

    def step() -> None:
        out.copy_(kernels.sum_ranks(partials[0], None, out.dtype, device.memory[0]))

    replay = CudaRecorder().record(step)
    for _ in range(ROUNDS):
        partials[0] += 1
        replay()
        wrong += not out.equal(join_pairwise(partials).to(out.dtype))
    return Check("sums over ranks: replayed ones are right", not wrong, f"{wrong} of {ROUNDS} were not")


def _waiting(machine: Machine, kernels: SummingKernels, hidden: int) -> Check:
    """Two ranks on streams of their own, who wait for each other in every sum."""
    device, partials = OneDevice(machine, 2), machine.randn(ROUNDS, 2, 3, hidden).float()
    streams = [torch.cuda.Stream() for _ in device.memory]
    totals: list[list[Tensor]] = [[] for _ in device.memory]
    machine.synchronize()
    for each in partials:
        for memory, stream in zip(device.memory, streams, strict=True):
            with torch.cuda.stream(stream):
                total = kernels.sum_ranks(each[memory.rank], None, machine.dtype, memory, PROBE_POLLS)
            totals[memory.rank].append(total)
    machine.synchronize()
    wanted = torch.stack([join_pairwise(each).to(machine.dtype) for each in partials])
    wrong = sum(not torch.stack(found).equal(wanted) for found in totals)
    return Check("sums over ranks: two that wait for each other get the bits of the tree", not wrong)
