"""What the tensor-parallel ranks of one stage say to each other: gathers only, summed in one fixed order.

Never all_reduce: gloo's and NCCL's sums change their order with the size and place of the data.
"""

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from rayline.kernels.tree import join_pairwise


class Collective(Protocol):
    """All ranks of a stage make the same calls in the same order."""

    @property
    def tp_size(self) -> int: ...

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Sum of the ranks' fp32 partials of one shape, joined pairwise by rank, and bias; equal bits on each."""
        ...

    def gather_columns(self, shard: Tensor) -> Tensor:
        """The ranks' [N, C] side by side: [N, tp_size * C]."""
        ...


class Alone:
    """The only rank of its stage."""

    tp_size = 1

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return (partial if bias is None else partial + bias).to(dtype)

    def gather_columns(self, shard: Tensor) -> Tensor:
        return shard


class TensorParallelGroup:
    """The ranks of one stage over torch.distributed: gloo between CPUs, NCCL between GPUs."""

    def __init__(self, process_group: dist.ProcessGroup, tp_size: int) -> None:
        self._group = process_group
        self.tp_size = tp_size

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        total = join_pairwise(self._gather(partial))
        return (total if bias is None else total + bias).to(dtype)

    def gather_columns(self, shard: Tensor) -> Tensor:
        return self._gather(shard).transpose(0, 1).flatten(1)

    def _gather(self, mine: Tensor) -> Tensor:
        """[...] of each rank -> [tp_size, ...] by rank."""
        gathered = torch.empty((self.tp_size, *mine.shape), dtype=mine.dtype, device=mine.device)
        dist.all_gather(list(gathered.unbind(0)), mine.contiguous(), group=self._group)
        return gathered
