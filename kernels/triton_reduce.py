"""Sums over tensor-parallel ranks that read each other's memory, in one launch (one-shot all-reduce).

For messages as small as those of decode steps, where a launch and a way there are what a sum costs. The order is that
of kernels/tree.py, on every rank: all get the bits that gathering the parts and joining them gives.
"""

import torch
from torch import Tensor

from rayline.kernels.peer_memory import FOR_EVER, PeerMemory
from rayline.kernels.triton_launch import Kernel, Variant
from rayline.kernels.triton_reduce_code import sum_over_ranks

RANKS = (2, 4, 8)
_FEW, _MANY = 512, 2048  # numbers that a program takes at once


def _form(ranks: int, block: int, has_bias: bool) -> Variant:
    constants = (("RANKS", ranks), ("BLOCK", block))
    return Variant(constants, warps=block // 128, absent=() if has_bias else ("bias",))


SUM_OVER_RANKS = Kernel(
    sum_over_ranks,
    {"partial": "*fp32", "bias": "*T", "out": "*T", "addresses": "*i64", "sums": "*i32"}
    | dict.fromkeys(("rank", "rows", "capacity", "polls"), "i32")
    | {"dim": "i32:16"},
    [_form(ranks, block, has_bias) for ranks in RANKS for block in (_FEW, _MANY) for has_bias in (False, True)],
)
KERNELS = (SUM_OVER_RANKS,)


def sum_ranks(
    partial: Tensor, bias: Tensor | None, dtype: torch.dtype, memory: PeerMemory, polls: int = FOR_EVER
) -> Tensor:
    """Sum of the ranks' fp32 partials [N, C] joined pairwise by rank, + bias [C], rounded once: equal on each.

    `memory` must hold partial. All ranks launch the same sums in the same order, each in one queue. polls: looks at the
    others' signals before this rank goes on without them, with numbers that mean nothing.
    """
    rows, dim = partial.shape
    out = torch.empty_like(partial, dtype=dtype)
    block = _FEW if partial.numel() <= _FEW * len(memory.sums) else _MANY
    SUM_OVER_RANKS.launch(
        (len(memory.sums),),
        _form(memory.ranks, block, bias is not None),
        partial=partial, **({} if bias is None else {"bias": bias}), out=out, addresses=memory.addresses,
        sums=memory.sums, rank=memory.rank, rows=rows, capacity=memory.capacity, polls=polls, dim=dim,
    )  # fmt: skip
    return out
