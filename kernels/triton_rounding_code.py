"""Norm and gate whose result is rounded to 8 bits at once; kernels/triton_rounding.py launches them.

Each goes over its row again for the largest number and again for the numbers, which it finds in the cache. The numbers
are those of the operation (triton_elementwise_code.py), then of `round_rows` (triton_rowwise_code.py).
"""

import triton
import triton.language as tl

from rayline.kernels.triton_elementwise_code import _gated_at, _inverse_rms, _normed_at
from rayline.kernels.triton_rowwise_code import _step_of, _store_rounded


@triton.jit
def norm_and_round_rows(
    x, residual, weight, numbers, steps, total, eps, dim, BLOCK: tl.constexpr, IS_FLOAT: tl.constexpr
):
    """s = x + residual, where there is one, to `total`; s / rms(s) * weight in 8 bits. Grid: rows."""
    token = tl.program_id(0).to(tl.int64)
    row = token * dim
    by_rms = _inverse_rms(x, residual, total, row, eps, dim, BLOCK)
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, dim, BLOCK):
        normed = _normed_at(x, residual, weight, row, first + tl.arange(0, BLOCK), by_rms, dim)
        most = tl.maximum(most, tl.abs(normed.to(tl.float32)))
    step, inverse = _step_of(tl.max(most, 0), IS_FLOAT)
    for first in range(0, dim, BLOCK):
        at = first + tl.arange(0, BLOCK)
        normed = _normed_at(x, residual, weight, row, at, by_rms, dim)
        _store_rounded(numbers, row + at, normed, inverse, at < dim, IS_FLOAT)
    tl.store(steps + token, step)


@triton.jit
def gate_and_round_rows(gate_up, numbers, steps, dim, BLOCK: tl.constexpr, IS_FLOAT: tl.constexpr):
    """silu(gate) * up in 8 bits. Grid: rows."""
    token = tl.program_id(0).to(tl.int64)
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, dim, BLOCK):
        gated = _gated_at(gate_up, token, first + tl.arange(0, BLOCK), dim)
        most = tl.maximum(most, tl.abs(gated.to(tl.float32)))
    step, inverse = _step_of(tl.max(most, 0), IS_FLOAT)
    for first in range(0, dim, BLOCK):
        at = first + tl.arange(0, BLOCK)
        _store_rounded(numbers, token * dim + at, _gated_at(gate_up, token, at, dim), inverse, at < dim, IS_FLOAT)
    tl.store(steps + token, step)
