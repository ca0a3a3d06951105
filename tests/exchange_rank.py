"""Program of one rank that exchanges data with others through shared memory and writes down what came out.

    python exchange_rank.py DIRECTORY RANK RANKS

DIRECTORY/rank<RANK>.pt gets what `run` returns. At the end the last rank kills itself in the middle of a row of
sums; the others then note what they were told.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rayline.kernels.exchange import RankLost
from rayline.kernels.library import ISAS, LibraryMissing, load
from rayline.kernels.program import Operations, Team
from rayline.workers.collectives import SharedMemoryGroup

BF16 = torch.bfloat16
SHAPES = [(1, 1), (1, 17), (3, 5), (1, 2048), (7, 333), (32, 576), (65, 2049), (200, 2048)]
"""From one number to more than the mapped file holds; with borders of rows and lanes in odd places."""
ROUNDS = 2000


def numbers(rank: int, rows: int, columns: int, seed: int = 0) -> Tensor:
    """What `rank` brings along: fp32 of very different sizes, so that another order of a sum shows."""
    draw = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randn(rows, columns, generator=draw) * torch.randn(rows, columns, generator=draw).exp2()


def bias_of(columns: int) -> Tensor:
    return numbers(99, 1, columns)[0].to(BF16)


def usable_isas() -> list[str]:
    usable = []
    for isa in ISAS:
        try:
            load(isa)
            usable.append(isa)
        except LibraryMissing:
            continue
    return usable


def results(group: SharedMemoryGroup, rank: int) -> list[dict[str, Tensor]]:
    """All operations, for each of SHAPES."""
    return [
        {
            "sum": group.sum_tree(numbers(rank, *shape), None, BF16),
            "sum with bias": group.sum_tree(numbers(rank, *shape), bias_of(shape[1]), BF16),
            "gathered": group.gather_columns(numbers(rank, *shape)),
        }
        for shape in SHAPES
    ]


def recorded(operations: Operations, group: SharedMemoryGroup, rank: int) -> Tensor:
    """A program of two sums, run for fewer rows than it was recorded for."""

    def twice(partial: Tensor) -> Tensor:
        group.sum_tree(partial, None, BF16)
        return group.sum_tree(partial, bias_of(40), BF16)

    program = operations.record(twice, torch.empty(8, 40, device="meta"))
    program.inputs[0].copy_(numbers(rank, 8, 40))
    return program.run(5).clone()


def many_sums(group: SharedMemoryGroup, rank: int, ranks: int) -> int:
    """Sums without a break, with a rank coming late now and then: how many were wrong."""
    parts = [torch.full((2, 24), float(2**other)) for other in range(ranks)]
    late = random.Random(rank)
    wrong = 0
    for i in range(ROUNDS):
        if late.random() < 0.01:
            time.sleep(late.random() * 1e-3)
        total = group.sum_tree(parts[rank] * (1 + i % 7), None, BF16)
        wrong += not bool((total == (2**ranks - 1) * (1 + i % 7)).all())
    return wrong


def lose_the_last(group: SharedMemoryGroup, rank: int, ranks: int) -> tuple[str, float, str]:
    """What the others are told when a rank dies: the message, after how many seconds, and the message of the next."""
    for i in range(50):
        if rank == ranks - 1 and i == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        first = _message(lambda: group.sum_tree(numbers(rank, 9, 99), None, BF16))
        if first:
            took_s = time.monotonic() - began
            return first, took_s, _message(lambda: group.sum_tree(numbers(rank, 9, 99), None, BF16))
    raise AssertionError("nobody died")


def _message(function: Callable[[], object]) -> str:
    try:
        function()
    except RankLost as lost:
        return str(lost)
    return ""


def run(rank: int, world: int, store: Any) -> dict[str, Any]:
    outcome: dict[str, Any] = {"results": {}}
    for ranks in range(2, world + 1):
        if rank >= ranks:
            continue
        for isa in usable_isas():
            operations = Operations(Team(load(isa), threads=2))
            group = SharedMemoryGroup.join(operations, dist.PrefixStore(f"{ranks} {isa}", store), ranks, rank)
            outcome["results"][ranks, isa] = results(group, rank)
    outcome["mapped"] = [line for line in Path("/proc/self/maps").read_text().splitlines() if "/rayline-" in line]
    outcome["recorded"] = recorded(operations, group, rank)
    outcome["wrong"] = many_sums(group, rank, world)
    outcome["lost"] = lose_the_last(group, rank, world)
    return outcome


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    outcome = run(rank, world, dist.FileStore(str(directory / "store"), world))
    torch.save(outcome, directory / f"rank{rank}.pt")
