"""Memory that tensor-parallel ranks on GPUs read from each other, for sums that are one launch.

    one rank's part   signals int32 [programs, MOST_RANKS]   numbers fp32 [2, capacity]

Sums take turns on the two halves of the numbers. kernels/triton_reduce.py has the sum, workers/symmetric_group.py the
memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_RANKS = 8
PROGRAMS = 32  # of a sum: they wait for other ranks', so all must find room on the device at once
FOR_EVER = -1  # looks at a signal; a wait for a rank that is gone is ended by the group's deadline


@dataclass(frozen=True, slots=True)
class PeerMemory:
    """What one rank knows of all ranks' parts.

    addresses int64 [ranks]: of each part, all zeros before anybody's first sum. sums int32 [programs]: those that this
    rank has made, zero likewise. capacity: numbers that a sum may have. owner: what keeps the parts where they are.
    """

    rank: int
    addresses: Tensor
    sums: Tensor
    capacity: int
    owner: object

    @staticmethod
    def of(rank: int, parts: Sequence[Tensor], programs: int = PROGRAMS, owner: object = None) -> "PeerMemory":
        """parts: those of all ranks, fp32 [`words_of(capacity, programs)`], as this rank sees them."""
        device = parts[rank].device
        addresses = torch.tensor([part.data_ptr() for part in parts], dtype=torch.int64, device=device)
        sums = torch.zeros(programs, dtype=torch.int32, device=device)
        capacity = (parts[rank].numel() - programs * MOST_RANKS) // 2
        return PeerMemory(rank, addresses, sums, capacity, (tuple(parts), owner))

    @property
    def ranks(self) -> int:
        return len(self.addresses)

    def holds(self, partial: Tensor) -> bool:
        """Whether a sum of such tensors finds room."""
        return partial.numel() <= self.capacity


def words_of(capacity: int, programs: int = PROGRAMS) -> int:
    """4-byte words of one rank's part; capacity: a multiple of 4."""
    return programs * MOST_RANKS + 2 * capacity
