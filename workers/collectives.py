"""What the tensor-parallel ranks of one stage say to each other: gathers only, summed in one fixed order.

Never all_reduce: gloo's and NCCL's sums change their order with the size and place of the data.
"""

from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not in its __all__

from rayline.kernels.exchange import Exchange, new_file
from rayline.kernels.program import Operations
from rayline.kernels.tree import join_pairwise
from rayline.workers.devices import Staging


class Collective(Protocol):
    """All ranks of a stage make the same calls in the same order."""

    @property
    def tp_size(self) -> int: ...

    @property
    def is_by_host(self) -> bool:
        """Whether messages go by way of the host's memory, where no GPU can repeat them by itself."""
        ...

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Sum of the ranks' fp32 partials [N, C] joined pairwise by rank, + bias [C], rounded once: equal on each."""
        ...

    def gather_columns(self, shard: Tensor) -> Tensor:
        """The ranks' fp32 [N, C] side by side: [N, tp_size * C]."""
        ...


class Alone:
    """The only rank of its stage."""

    tp_size = 1
    is_by_host = False

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        return (partial if bias is None else partial + bias).to(dtype)

    def gather_columns(self, shard: Tensor) -> Tensor:
        return shard


class TensorParallelGroup:
    """The ranks of one stage over torch.distributed: gloo between CPUs, NCCL between GPUs."""

    def __init__(self, process_group: dist.ProcessGroup, tp_size: int, staging: Staging) -> None:
        self._group = process_group
        self._staging = staging
        self.tp_size = tp_size
        self.is_by_host = staging.is_on

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        total = join_pairwise(self._gather(partial))
        return (total if bias is None else total + bias).to(dtype)

    def gather_columns(self, shard: Tensor) -> Tensor:
        return self._gather(shard).transpose(0, 1).flatten(1)

    def _gather(self, mine: Tensor) -> Tensor:
        """[...] of each rank -> [tp_size, ...] by rank."""
        gathered = torch.empty((self.tp_size, *mine.shape), dtype=mine.dtype, device=self._staging.place)
        dist.all_gather(list(gathered.unbind(0)), self._staging.out(mine), group=self._group)
        return self._staging.back(gathered)


class SharedMemoryGroup:
    """The ranks of one stage through memory they share, as operations that a program can record. bf16 on CPUs."""

    is_by_host = True

    def __init__(self, operations: Operations, exchange: Exchange) -> None:
        self._operations = operations
        self._exchange = exchange
        self.tp_size = exchange.ranks

    @classmethod
    def join(cls, operations: Operations, store: Store, tp_size: int, tp_rank: int) -> "SharedMemoryGroup":
        """Meet the other ranks of the stage, which alone use `store`. Raises OSError."""
        everyone = [f"mapped by {rank}" for rank in range(tp_size)]
        if tp_rank > 0:
            exchange = Exchange(operations.library, Path(store.get("path").decode()), tp_size, tp_rank)
            store.set(everyone[tp_rank], "")
            store.wait(everyone)
            return cls(operations, exchange)
        path = new_file(operations.library, tp_size)
        try:
            exchange = Exchange(operations.library, path, tp_size, tp_rank)
            store.set("path", str(path))
            store.set(everyone[0], "")
            store.wait(everyone)
        finally:
            path.unlink()
        return cls(operations, exchange)

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        if dtype != torch.bfloat16:
            raise TypeError(f"sums through shared memory are rounded to bfloat16, not to {dtype}")
        out = torch.empty_like(partial, dtype=dtype)
        self._call("SumPartials", partial=partial, bias=bias, out=out, dim=partial.shape[-1])
        return out

    def gather_columns(self, shard: Tensor) -> Tensor:
        out = shard.new_empty(len(shard), self.tp_size * shard.shape[-1])
        self._call("GatherColumns", shard=shard, out=out, columns=shard.shape[-1])
        return out

    def _call(self, name: str, **values: Tensor | int | None) -> None:
        rows = len(next(value for value in values.values() if isinstance(value, Tensor)))
        self._operations.call(name, rows, exchange=self._exchange.address, **values)
