"""The ranks of a stage as threads of one process, which really wait for each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from rayline.kernels.tree import join_pairwise

Result = TypeVar("Result")


class ThreadedRank:
    """A `Collective`."""

    is_by_host = False

    def __init__(self, rank: int, given: list[Tensor], barrier: Barrier) -> None:
        self.rank = rank
        self.tp_size = len(given)
        self._given = given
        self._barrier = barrier

    def sum_tree(self, partial: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        total = join_pairwise(torch.stack(self._gathered(partial)))
        return (total if bias is None else total + bias).to(dtype)

    def gather_columns(self, shard: Tensor) -> Tensor:
        return torch.cat(self._gathered(shard), dim=1)

    def _gathered(self, mine: Tensor) -> list[Tensor]:
        self._given[self.rank] = mine
        self._barrier.wait()
        everyone = [each.clone() for each in self._given]
        self._barrier.wait()
        return everyone


def on_all_ranks(ranks: int, run: Callable[[ThreadedRank], Result]) -> list[Result]:
    """What `run` returns on each; a rank that waits in vain raises."""
    barrier, given = Barrier(ranks, timeout=60.0), [torch.empty(0)] * ranks
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda rank: run(ThreadedRank(rank, given, barrier)), range(ranks)))
