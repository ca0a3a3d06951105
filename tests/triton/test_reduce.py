"""Sums over ranks that read each other's memory, in Triton's interpreter: the tree's bits, and nobody too early."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer_rank
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_rank import numbers
from torch import Tensor

from rayline.kernels.peer_memory import MOST_RANKS, PeerMemory, words_of
from rayline.kernels.tree import join_pairwise
from rayline.kernels.triton_kernels import TritonKernels
from rayline.kernels.triton_reduce import RANKS, sum_ranks
from rayline.workers.collectives import Alone

CAPACITY, PROGRAMS = 8192, 3
TESTS = Path(__file__).parents[1]


class Peers:
    """All ranks' memory in one process, where the others of one rank can be there before it comes."""

    def __init__(self, ranks: int, capacity: int = CAPACITY, programs: int = PROGRAMS) -> None:
        self.parts = [torch.zeros(words_of(capacity, programs)) for _ in range(ranks)]
        self.signals = [part.view(torch.int32)[: programs * MOST_RANKS].view(programs, -1) for part in self.parts]
        self.halves = [part[programs * MOST_RANKS :].view(2, capacity) for part in self.parts]
        self.memory = [PeerMemory.of(rank, self.parts, programs) for rank in range(ranks)]

    def come(self, rank: int, number: int, partials: Tensor) -> None:
        """All but `rank` have made their part of a sum."""
        for other, partial in enumerate(partials):
            if other != rank:
                self.halves[other][number % 2, : partial.numel()] = partial.flatten()
                self.signals[rank][:, other] = number


@given(
    st.sampled_from(RANKS),
    st.integers(1, 5),
    st.sampled_from([1, 16, 80, 1600]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16]),
    st.data(),
)
@settings(max_examples=12)
def test_the_sum_has_the_bits_of_the_tree(
    ranks: int, rows: int, columns: int, has_bias: bool, dtype: torch.dtype, data: st.DataObject
) -> None:
    peers, rank = Peers(ranks), data.draw(st.integers(0, ranks - 1))
    bias = numbers(99, 0, 1, columns)[0].to(dtype) if has_bias else None
    for number in (1, 2, 3):
        partials = torch.stack([numbers(other, number, rows, columns) for other in range(ranks)])
        peers.come(rank, number, partials)
        ours = sum_ranks(partials[rank], bias, dtype, peers.memory[rank])
        total = join_pairwise(partials)
        assert ours.equal((total if bias is None else total + bias).to(dtype))
        assert peers.halves[rank][number % 2, : rows * columns].equal(partials[rank].flatten())
        assert all((signals[:, rank] == number).all() for signals in peers.signals), "every rank is told, itself too"


def test_another_order_of_the_sum_has_other_bits() -> None:
    """So that the property above can fail."""
    partials = torch.stack([numbers(rank, 1, 2, 800) for rank in range(8)])
    assert not partials.sum(0).equal(join_pairwise(partials))


@pytest.mark.parametrize(("program", "late"), [(0, 1), (PROGRAMS - 1, 3), (1, 2)])
def test_each_program_waits_for_every_rank(program: int, late: int) -> None:
    """Numbers of one program are not there yet, nor is its signal: who may look three times goes on without them."""
    peers, each = Peers(4), 512
    partials = torch.stack([numbers(rank, 1, 2, PROGRAMS * each // 2) for rank in range(4)])
    peers.come(0, 1, partials)
    peers.halves[late][1, program * each : (program + 1) * each] = 0
    peers.signals[0][program, late] = 0
    assert not sum_ranks(partials[0], None, torch.float32, peers.memory[0], polls=3).equal(join_pairwise(partials))
    peers.memory[0].sums.zero_()
    timer = threading.Timer(0.5, peers.come, (0, 1, partials))
    timer.start()
    assert sum_ranks(partials[0], None, torch.float32, peers.memory[0]).equal(join_pairwise(partials))
    timer.join()


def test_the_count_of_sums_may_wrap_around() -> None:
    """Signals of the sum before are smaller, though the number is larger."""
    for behind in (0, 1):
        peers = Peers(2)
        peers.memory[0].sums.fill_(2**31 - 1)
        partials = torch.stack([numbers(rank, 1, 1, 64) for rank in range(2)])
        peers.come(0, -(2**31), partials)
        if behind:
            peers.halves[1].zero_()
            peers.signals[0][:, 1] = 2**31 - 1
            threading.Timer(0.5, peers.come, (0, -(2**31), partials)).start()
        assert sum_ranks(partials[0], None, torch.float32, peers.memory[0]).equal(partials[0] + partials[1])


# ---- ranks in processes of their own


def run_ranks(directory: Path, ranks: int, what: str) -> list[dict[str, Any]]:
    """What each rank wrote down."""
    for rank in range(ranks):
        words = words_of(peer_rank.CAPACITY, peer_rank.PROGRAMS)
        (directory / f"part{rank}").write_bytes(bytes(4 * words))
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), *sys.path])),
    }
    processes = [
        subprocess.Popen([sys.executable, peer_rank.__file__, directory, str(rank), str(ranks), what], env=environment)
        for rank in range(ranks)
    ]
    try:
        assert [process.wait(600) for process in processes] == [0] * ranks
    finally:
        for process in processes:
            process.kill()
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(ranks)]


def test_no_rank_writes_over_what_another_has_yet_to_read(tmp_path: Path) -> None:
    """Ranks that dawdle where it hurts, over sums of all sizes that follow each other at once."""
    for found in run_ranks(tmp_path, 2, "sums"):
        assert found == {"wrong": 0, "sums": peer_rank.ROUNDS * len(peer_rank.SHAPES)}


def test_replayed_steps_of_two_ranks_have_the_bits_of_one(
    tmp_path: Path, random_checkpoint: Callable[..., Path]
) -> None:
    """By memory that both read, and gathered; replayed and launched, in the exact class."""
    path = random_checkpoint(
        "qwen3", hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=100, head_dim=16,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, dtype="float16",
    )  # fmt: skip
    (tmp_path / "model").symlink_to(path)
    alone = peer_rank.logits(path, TritonKernels("triton", True, None, 8), Alone(), 0, None)
    for found in run_ranks(tmp_path, 2, "decoder"):
        for sums in ("symmetric", "gathered", "launched"):
            assert found[sums][:, :100].equal(alone[:, :100]), sums
        graphs = [found[f"graphs, {sums}"] for sums in ("symmetric", "gathered", "launched")]
        assert graphs == [4, 8, 8], "a body and a head for each of two buckets, where steps may be captured"
        assert found["can capture"]
