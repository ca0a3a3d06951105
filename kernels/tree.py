"""Sums in one fixed order, so that the bits do not depend on who computed which part."""

import torch
from torch import Tensor


def join_pairwise(parts: Tensor) -> Tensor:
    """Sum over the first axis as a binary tree of neighbours. parts [P, ...] -> [...], same dtype.

    ((p0 + p1) + (p2 + p3)) + p4: the last part of an odd row goes up to the next level as it is. A rank
    that holds 2^n parts in a row, joined this way, holds a whole subtree when P is a power of two.
    """
    while len(parts) > 1:
        pairs = parts[0 : len(parts) // 2 * 2 : 2] + parts[1::2]
        parts = torch.cat((pairs, parts[-1:])) if len(parts) % 2 else pairs
    return parts[0]
