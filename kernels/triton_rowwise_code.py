"""Products of 8-bit numbers with one scale a row each, as the GPU runs them; kernels/triton_rowwise.py launches them.

round_rows   x [T, K]                  ->  numbers of 8 bits [T, K], steps fp32 [T]
row_tiles    numbers, weight [N, K]    ->  [T, N], or sums over parts of the depth
join_rows    sums over parts           ->  [T, N]
"""

import triton
import triton.language as tl

from rayline.kernels.triton_product_code import _place
from rayline.kernels.triton_truncation_code import _rounded

SMALLEST = tl.constexpr(1e-30)
FP8_LARGEST = tl.constexpr(448.0)
BYTE_LARGEST = tl.constexpr(127.0)
LEAST_NORMAL = tl.constexpr(0.015625)  # 2^-6: e4m3 numbers below are multiples of 2^-9
SUBNORMAL_SHIFT = tl.constexpr(16384.0)  # fp32 numbers from here on are multiples of 2^-9
IMPRECISE = tl.constexpr(128)  # products that tensor cores may add at once before they go on in fp32


@triton.jit
def _to_e4m3(x):
    """The nearest e4m3 number of each in [-448, 448], in fp32, so that the cast is exact.

    Triton's interpreter, left to round, doubles what it rounds up to a power of two.
    """
    bits = x.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000).to(tl.float32, bitcast=True)
    shift = tl.where(x < 0.0, -SUBNORMAL_SHIFT, SUBNORMAL_SHIFT)
    return tl.where(tl.abs(x) < LEAST_NORMAL, (x + shift) - shift, normal)


@triton.jit
def _step_of(most, IS_FLOAT: tl.constexpr):
    """The step of a row whose largest number is `most`, and what its numbers are multiplied with."""
    largest: tl.constexpr = FP8_LARGEST if IS_FLOAT else BYTE_LARGEST
    step = tl.div_rn(most, tl.full([], largest, tl.float32))
    inverse = tl.div_rn(tl.full([], 1.0, tl.float32), tl.maximum(step, SMALLEST))
    return step, tl.where(step < SMALLEST, 0.0, inverse)


@triton.jit
def _store_rounded(numbers, at, x, inverse, is_there, IS_FLOAT: tl.constexpr):
    """Numbers of the model's dtype, rounded to 8 bits."""
    scaled = x.to(tl.float32) * inverse
    if IS_FLOAT:
        number = _to_e4m3(tl.minimum(tl.maximum(scaled, -FP8_LARGEST), FP8_LARGEST)).to(numbers.dtype.element_ty)
    else:
        number = _rounded(scaled).to(tl.int8)
    tl.store(numbers + at, number, mask=is_there)


@triton.jit
def round_rows(x, numbers, steps, depth, BLOCK: tl.constexpr, IS_FLOAT: tl.constexpr):
    """The numbers of kernels/rowwise.py. Grid: rows; the second pass finds the row in the cache."""
    row = tl.program_id(0).to(tl.int64)
    most = tl.zeros([BLOCK], tl.float32)
    for first in range(0, depth, BLOCK):
        k = first + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.abs(tl.load(x + row * depth + k, mask=k < depth, other=0.0).to(tl.float32)))
    step, inverse = _step_of(tl.max(most, 0), IS_FLOAT)
    for first in range(0, depth, BLOCK):
        k = first + tl.arange(0, BLOCK)
        number = tl.load(x + row * depth + k, mask=k < depth, other=0.0)
        _store_rounded(numbers, row * depth + k, number, inverse, k < depth, IS_FLOAT)
    tl.store(steps + row, step)


@triton.jit
def _finish(total, steps, scales, bias, out, wide, at, m, n, is_row, is_column, has_bias, is_wide):
    """Sums [.., ..] in fp32, scaled, to wide, or with their bias to out."""
    step = tl.load(steps + m, mask=is_row, other=0.0)
    scale = tl.load(scales + n, mask=is_column, other=0.0)
    value = total * step * scale
    if is_wide != 0:
        tl.store(wide + at, value, mask=is_row & is_column)
    else:
        added = tl.load(bias + n, mask=is_column & (n < tl.where(has_bias != 0, 1 << 30, 0)), other=0.0)
        tl.store(out + at, (value + added.to(tl.float32)).to(out.dtype.element_ty), mask=is_row & is_column)


@triton.jit(do_not_specialize=["rows", "leaf_depth", "has_bias", "is_wide", "is_split"])
def row_tiles(
    x, steps, weight, scales, bias, out, wide, parts, rows, leaf_depth, has_bias, is_wide, is_split, columns, depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, IS_FLOAT: tl.constexpr,
):  # fmt: skip
    """x W^T (+ bias). Grid: tiles, and parts of the depth when split, else 1; leaf_depth is a multiple of BLOCK_K.

    Split, the sums of each part go to parts [P, rows, columns], by their bits where they are whole.
    """
    tile_m, tile_n = _place(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N)
    m, n = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None], (tile_n * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    mine, k = tl.program_id(1), tl.arange(0, BLOCK_K)
    first = tl.multiple_of(mine * leaf_depth, BLOCK_K)  # Triton copies 16 bytes at once where it knows that it may
    is_row, is_column = m < rows, n < columns
    zero: tl.constexpr = 0.0 if IS_FLOAT else 0
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32 if IS_FLOAT else tl.int32)
    for start in range(first, tl.minimum(first + leaf_depth, depth), BLOCK_K):
        done = tl.multiple_of(start, BLOCK_K)
        is_input = (done + k < depth)[None, :]
        a = tl.load(x + m.to(tl.int64) * depth + done + k[None, :], mask=is_row & is_input, other=zero)
        b = tl.load(
            weight + tl.trans(n).to(tl.int64) * depth + done + k[None, :],
            mask=tl.trans(is_column) & is_input,
            other=zero,
        )
        if IS_FLOAT:
            total = tl.dot(a, tl.trans(b), total, max_num_imprecise_acc=IMPRECISE)
        else:
            total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
    at = m.to(tl.int64) * columns + n
    if is_split != 0:
        bits = total if IS_FLOAT else total.to(tl.float32, bitcast=True)
        tl.store(parts + mine * rows.to(tl.int64) * columns + at, bits, mask=is_row & is_column)
    else:
        _finish(total.to(tl.float32), steps, scales, bias, out, wide, at, m, n, is_row, is_column, has_bias, is_wide)


@triton.jit(do_not_specialize=["numbers", "count", "has_bias", "is_wide"])
def join_rows(
    parts, steps, scales, bias, out, wide, numbers, count, has_bias, is_wide, columns,
    BLOCK: tl.constexpr, IS_FLOAT: tl.constexpr,
):  # fmt: skip
    """The sums of `count` parts [count, numbers], one after the other, scaled. Grid: blocks of numbers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_there = at < numbers
    total = tl.zeros([BLOCK], tl.float32 if IS_FLOAT else tl.int32)
    for part in range(0, count):
        bits = tl.load(parts + part * numbers.to(tl.int64) + at, mask=is_there, other=0.0)
        total += bits if IS_FLOAT else bits.to(tl.int32, bitcast=True)
    m, n = at // columns, at % columns
    _finish(total.to(tl.float32), steps, scales, bias, out, wide, at, m, n, is_there, is_there, has_bias, is_wide)
