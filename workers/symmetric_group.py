"""Tensor-parallel ranks on GPUs that read each other's memory, so that a small sum is one launch.

The memory is torch's symmetric memory, the sum kernels/triton_reduce.py. That GPUs which see each other's memory also
order what they do there is not taken on trust: before the first step the ranks make some sums this way, and it is used
only if all of them have the bits of the gathered ones on every rank.
"""

import importlib
import logging
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from rayline.kernels.peer_memory import FOR_EVER, PeerMemory, words_of
from rayline.protos.errors import ConfigError
from rayline.workers.agreement import all_succeed
from rayline.workers.collectives import Collective

log = logging.getLogger(__name__)

CAPACITY = 2**18  # numbers of a sum, 1 MiB; larger ones are gathered
PROBE_POLLS = 2**24  # looks at a signal: some seconds
PROBE_ROUNDS = 4  # in a row, so that both halves of the memory are written over
PROBE_COLUMNS = 64


@runtime_checkable
class SummingKernels(Protocol):
    """Kernels that sum over ranks by reading their memory."""

    def can_sum(self, ranks: int) -> bool: ...

    def sum_ranks(
        self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype, memory: PeerMemory, polls: int = FOR_EVER
    ) -> Tensor:
        """As `Collective.sum_tree`, in one launch. `memory` must hold partial. polls: looks at the others' signals
        before this rank goes on without them."""
        ...


class SymmetricGroup:
    """Small sums by memory that all ranks read, all else gathered: the same bits."""

    is_by_host = False

    def __init__(self, gathered: Collective, kernels: SummingKernels, memory: PeerMemory) -> None:
        self._gathered = gathered
        self._kernels = kernels
        self._memory = memory
        self.tp_size = gathered.tp_size

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        if not self._memory.holds(partial):
            return self._gathered.sum_tree(partial, bias, dtype)
        return self._kernels.sum_ranks(partial, bias, dtype, self._memory)

    def gather_columns(self, shard: Tensor) -> Tensor:
        return self._gathered.gather_columns(shard)


class Meeting(Protocol):
    """How a rank comes to memory that the others see."""

    def allocate(self) -> Tensor:
        """This rank's part, all zeros: fp32 [words_of(CAPACITY)]."""
        ...

    def meet(self, mine: Tensor) -> PeerMemory:
        """All ranks' parts; each of them calls it."""
        ...


class TorchMeeting:
    """torch.distributed._symmetric_memory over one process group, of which this rank is the `rank`-th."""

    def __init__(self, group: dist.ProcessGroup, rank: int) -> None:
        self._group = group
        self._rank = rank

    def allocate(self) -> Tensor:
        device = torch.device("cuda", torch.cuda.current_device())  # torch wants the index
        mine: Tensor = _symmetric_memory().empty(words_of(CAPACITY), dtype=torch.float32, device=device)
        return mine.zero_()

    def meet(self, mine: Tensor) -> PeerMemory:
        handle = _symmetric_memory().rendezvous(mine, self._group)
        parts = [handle.get_buffer(rank, tuple(mine.shape), mine.dtype) for rank in range(handle.world_size)]
        if handle.rank != self._rank or parts[self._rank].data_ptr() != mine.data_ptr():
            raise RuntimeError("torch gave the ranks other memory than what was allocated")
        return PeerMemory.of(self._rank, parts, owner=(mine, handle))


def _symmetric_memory() -> Any:
    return importlib.import_module("torch.distributed._symmetric_memory")


def fastest_group(
    gathered: Collective, kernels: object, wish: str, meeting: Meeting, dtype: torch.dtype, device: torch.device
) -> Collective:
    """How the ranks of a stage sum from now on, the same on all. wish: auto, symmetric or gather.

    Raises ConfigError where symmetric memory is wished for and cannot be had.
    """
    if wish == "gather" or not isinstance(kernels, SummingKernels):
        return gathered
    trial = _Trial(gathered, kernels, meeting, dtype, device)
    if all(all_succeed(gathered, device, step) for step in (trial.allocate, trial.meet, trial.sum)):
        log.info("sums over ranks: of up to %d numbers by symmetric memory, larger ones gathered", CAPACITY)
        return SymmetricGroup(gathered, kernels, trial.memory)
    if wish == "symmetric":
        why = "these ranks cannot sum by each other's memory, as their logs say: allowed are auto and gather"
        raise ConfigError(f"all_reduce = symmetric cannot run here: {why}", field="all_reduce")
    log.info("sums over ranks: gathered")
    return gathered


class _Trial:
    """The steps on the way to such sums. Each says what is against them, "" for nothing."""

    def __init__(
        self, gathered: Collective, kernels: SummingKernels, meeting: Meeting, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._gathered = gathered
        self._kernels = kernels
        self._meeting = meeting
        self._dtype = dtype
        self._device = device

    def allocate(self) -> str:
        """Memory, and every form of the sum compiled, so that ranks will not wait for each other's compilers."""
        ranks = self._gathered.tp_size
        if self._gathered.is_by_host:
            return "no symmetric memory between ranks that talk by way of the host"
        if not self._kernels.can_sum(ranks):
            return f"no sum by symmetric memory over {ranks} ranks"
        self._mine = self._meeting.allocate()
        alone = PeerMemory.of(0, [torch.zeros_like(self._mine)] * ranks)
        for partial, bias in self._cases(0):
            self._kernels.sum_ranks(partial, bias, self._dtype, alone, polls=1)
        return ""

    def meet(self) -> str:
        self.memory = self._meeting.meet(self._mine)
        return ""

    def sum(self) -> str:
        """Some sums in a row, of which nobody waits for one."""
        cases = [
            case for round_ in range(PROBE_ROUNDS) for case in self._cases(round_ + PROBE_ROUNDS * self.memory.rank)
        ]
        ours = [self._kernels.sum_ranks(x, bias, self._dtype, self.memory, PROBE_POLLS) for x, bias in cases]
        theirs = [self._gathered.sum_tree(x, bias, self._dtype) for x, bias in cases]
        wrong = sum(not mine.equal(other) for mine, other in zip(ours, theirs, strict=True))
        return f"{wrong} of {len(cases)} sums by symmetric memory were not the gathered ones" if wrong else ""

    def _cases(self, seed: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """One row, some and as many as there is room for, without bias and with one that all ranks have."""
        random = torch.Generator(self._device).manual_seed(seed)
        bias = torch.arange(PROBE_COLUMNS, dtype=self._dtype, device=self._device) / 7
        for rows in (1, 300, CAPACITY // PROBE_COLUMNS):
            partial = torch.empty(rows, PROBE_COLUMNS, device=self._device).normal_(generator=random)
            yield partial, None
            yield partial, bias
