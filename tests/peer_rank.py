"""Program of one rank that sums with others by memory they share, in Triton's interpreter, and writes down what came.

    python peer_rank.py DIRECTORY RANK RANKS sums|decoder

DIRECTORY/part<RANK>, zeros, are the ranks' parts; DIRECTORY/rank<RANK>.pt gets what `sums` or `steps` returns.
"""

import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from interpreted import hurry
from recorded_launches import RecordedLaunches
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from rayline.cluster.parallel import Parallel
from rayline.kernels.context import ForwardContext
from rayline.kernels.graphs import DecodeLimits
from rayline.kernels.peer_memory import PeerMemory, words_of
from rayline.kernels.tree import join_pairwise
from rayline.kernels.triton_kernels import TritonKernels
from rayline.kernels.triton_reduce import sum_ranks
from rayline.workers.agreement import sums_are_captured
from rayline.workers.cache import KvCache
from rayline.workers.collectives import Collective, TensorParallelGroup
from rayline.workers.devices import Staging
from rayline.workers.models.config import ModelConfig, kv_heads_of_rank
from rayline.workers.models.decoder import Decoder
from rayline.workers.symmetric_group import SymmetricGroup
from rayline.workers.weights import Weights

CPU = torch.device("cpu")
CAPACITY, PROGRAMS = 2048, 2
SHAPES = [(1, 32), (2, 512), (4, 512), (2, 16), (2, 448), (3, 512)]
"""Where the last program reads part of a sum, the first one writes there in the next: programs come in turn here."""
ROUNDS = 8
BLOCKS, BLOCK_TOKENS = 8, 16
LIMITS = DecodeLimits(rows=3, width=2, block_tokens=BLOCK_TOKENS)
STEPS = [
    [(0, 0, 9), (1, 0, 3)],
    [(0, 9, 1), (1, 3, 1)],
    [(1, 4, 1), (0, 10, 1)],
    [(0, 11, 1)],
    [(1, 5, 1), (0, 12, 2)],  # a piece of a prompt: launched, between replayed steps
    [(1, 6, 1)],
]


def numbers(rank: int, round_: int, rows: int, columns: int) -> Tensor:
    """What a rank brings along: fp32 of very different sizes, so that another order of a sum shows."""
    draw = torch.Generator().manual_seed(1000 * round_ + rank)
    return torch.randn(rows, columns, generator=draw) * torch.randn(rows, columns, generator=draw).exp2()


def sums(memory: PeerMemory) -> dict[str, int]:
    """Sums without a pause but where it hurts: before a signal is given, and before what it stands for is read."""
    late = random.Random(memory.rank)
    InterpreterBuilder.create_barrier = lambda self: time.sleep(0.03 * late.random() ** 4)
    wrong = 0
    for round_ in range(ROUNDS):
        for shape in SHAPES:
            parts = torch.stack([numbers(rank, round_, *shape) for rank in range(memory.ranks)])
            total = sum_ranks(parts[memory.rank], None, torch.float32, memory)
            wrong += not total.equal(join_pairwise(parts))
    return {"wrong": wrong, "sums": ROUNDS * len(SHAPES)}


def steps(directory: Path, memory: PeerMemory) -> dict[str, Any]:
    """Logits of STEPS with sums by shared memory and gathered ones, replayed and launched."""
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=memory.rank, world_size=memory.ranks)
    assert dist.group.WORLD is not None
    gathered, found = TensorParallelGroup(dist.group.WORLD, memory.ranks, Staging(CPU)), {}
    with pytest.MonkeyPatch.context() as patch:
        recorder = RecordedLaunches(patch)
        for name, limits in (("symmetric", LIMITS), ("gathered", LIMITS), ("launched", None)):
            kernels = TritonKernels("triton", True, None, 8, recorder)
            group = gathered if name == "gathered" else SymmetricGroup(gathered, kernels, memory)
            found[name] = logits(directory / "model", kernels, group, memory.rank, limits)
            found[f"graphs, {name}"] = len(recorder.graphs)
        found["can capture"] = sums_are_captured(group, recorder, torch.float16, CPU)
    return found


@torch.inference_mode()
def logits(path: Path, kernels: TritonKernels, group: Collective, rank: int, limits: DecodeLimits | None) -> Tensor:
    config, place = ModelConfig.load(path), Parallel(rank, group.tp_size)
    with Weights.open(path) as weights:
        decoder = Decoder(config, range(config.layers), weights, place, group, kernels, torch.float16, CPU)
    kv_heads = kv_heads_of_rank(config, group.tp_size)
    cache = KvCache(config.layers, BLOCKS, BLOCK_TOKENS, kv_heads, config.head_dim, torch.float16, CPU)
    decoder.bind(cache, limits)
    rows = []
    for slices in STEPS:
        inputs = torch.cat([(torch.arange(start, start + count) * 37 + who) % 100 for who, start, count in slices])
        rows.append(group.gather_columns(decoder.forward(inputs, cache, context(slices))).clone())
    return torch.cat(rows)


def context(slices: list[tuple[int, int, int]]) -> ForwardContext:
    """Each sequence has a block of its own; the logits of its last token are wanted."""
    positions = torch.cat([torch.arange(start, start + count) for _, start, count in slices])
    slots = torch.cat([torch.arange(start, start + count) + BLOCK_TOKENS * (2 + who) for who, start, count in slices])
    ends = torch.tensor([count for _, _, count in slices]).cumsum(0)
    tables = torch.tensor([[2 + who] for who, _, _ in slices], dtype=torch.int32)
    lens = tuple(start + count for _, start, count in slices)
    return ForwardContext(positions, slots, (0, *ends.tolist()), lens, tables, ends - 1)


def main(directory: Path, rank: int, ranks: int, what: str) -> None:
    torch.set_num_threads(1)
    words = words_of(CAPACITY, PROGRAMS)
    parts = [torch.from_file(str(directory / f"part{each}"), True, words, dtype=torch.float32) for each in range(ranks)]
    memory = PeerMemory.of(rank, parts, PROGRAMS)
    torch.save(sums(memory) if what == "sums" else steps(directory, memory), directory / f"rank{rank}.pt")


if __name__ == "__main__":
    hurry()
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
