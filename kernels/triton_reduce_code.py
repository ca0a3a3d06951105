"""The sum of what tensor-parallel ranks hold, as the GPU runs it; kernels/triton_reduce.py launches it.

    rank 0   copies its part, signals  | waits for 1 | reads 0 and 1, adds |
    rank 1       copies its part, signals  | waits for 0 | reads 0 and 1, adds |

Sums take turns on two halves of the memory. Who writes a half has waited, in the sum between, for signals that the
others gave after their last look at that half, so one wait a sum is enough. Sums are counted on the device: a launch
that a graph replays is another sum.
"""

import triton
import triton.language as tl

from rayline.kernels.peer_memory import MOST_RANKS

LANES = tl.constexpr(MOST_RANKS)


@triton.jit
def _part(addresses, rank: tl.constexpr, half, at, is_number):
    """What a rank holds."""
    part = tl.multiple_of(tl.load(addresses + rank).to(tl.pointer_type(tl.float32)), 16)
    return tl.load(part + half + at, mask=is_number, other=0.0)


@triton.jit
def _joined(addresses, half, at, is_number, RANKS: tl.constexpr):
    """The parts of 2, 4 or 8 ranks in the order of kernels/tree.py: ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))."""
    total = _part(addresses, 0, half, at, is_number) + _part(addresses, 1, half, at, is_number)
    if RANKS > 2:
        total += _part(addresses, 2, half, at, is_number) + _part(addresses, 3, half, at, is_number)
    if RANKS > 4:
        right = _part(addresses, 4, half, at, is_number) + _part(addresses, 5, half, at, is_number)
        total += right + (_part(addresses, 6, half, at, is_number) + _part(addresses, 7, half, at, is_number))
    return total


@triton.jit
def _meet(addresses, number, rank, polls, RANKS: tl.constexpr):
    """Say that this program's numbers are there, and wait until the programs in its place on all ranks say so.

    polls: looks at their signals, below 0 for ever. A signal is the number of the sum; those to one program lie side by
    side, by the rank that gave them.
    """
    peer = tl.arange(0, LANES)
    is_peer = peer < RANKS
    mine = tl.program_id(0) * LANES
    there = tl.load(addresses + peer, mask=is_peer, other=0).to(tl.pointer_type(tl.int32)) + mine + rank
    here = tl.load(addresses + rank).to(tl.pointer_type(tl.int32)) + mine + peer
    tl.debug_barrier()  # all threads' numbers are written: the release shows them to whoever acquires
    tl.atomic_xchg(there, number, mask=is_peer, sem="release", scope="sys")
    absent = 1
    while (absent > 0) & (polls != 0):
        # A difference, as numbers wrap around; a rank may be one sum ahead.
        ahead = tl.atomic_add(here, 0, mask=is_peer, sem="acquire", scope="sys") - number
        absent = tl.sum(tl.where(is_peer & (ahead < 0), 1, 0), 0)
        polls -= 1
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=["rank", "rows", "capacity", "polls"], do_not_specialize_on_alignment=["addresses", "sums"]
)
def sum_over_ranks(
    partial, bias, out, addresses, sums, rank, rows, capacity, polls, dim, RANKS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The ranks' fp32 [rows, dim] joined, with bias [dim], to `out`. Grid: as many programs as there are sums.

    addresses int64 [RANKS]: where each rank's part begins (kernels/peer_memory.py). sums int32 [programs]: how many
    there were before.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    number, count = tl.load(sums + program) + 1, rows * dim
    half = programs * LANES + (number & 1) * (capacity // 4) * 4
    mine = tl.multiple_of(tl.load(addresses + rank).to(tl.pointer_type(tl.float32)), 16)
    for first in range(program * BLOCK, count, programs * BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(mine + half + at, tl.load(partial + at, mask=at < count), mask=at < count)
    _meet(addresses, number, rank, polls, RANKS)
    for first in range(program * BLOCK, count, programs * BLOCK):
        at = first + tl.arange(0, BLOCK)
        total = _joined(addresses, half, at, at < count, RANKS)
        if bias is not None:
            total += tl.load(bias + at % dim, mask=at < count, other=0.0).to(tl.float32)
        tl.store(out + at, total.to(out.dtype.element_ty), mask=at < count)
    tl.store(sums + program, number)
