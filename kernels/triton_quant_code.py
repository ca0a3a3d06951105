"""Products with weights of 4 or 8 bits as the GPU runs them; kernels/triton_quant.py launches them.

    numbers   [groups, columns, bytes of a group]      a tile of one group is one piece of memory
    4 bits    byte i of a group: input i in the low half, input i + GROUP / 2 in the high half
    scales    fp32 [groups, columns], zeros uint8 [groups, columns] with 4 bits, 128 with 8

The whole numbers q - zero fit into 16-bit floats, so a group is an ordinary product, scaled once.
"""

import triton
import triton.language as tl

from rayline.kernels.triton_product_code import _join, _place, _store


@triton.jit
def _group(x, x_at, numbers, at, zero, is_row, is_column, inputs, BITS: tl.constexpr, GROUP: tl.constexpr):
    """x (q - zero)^T over one group of which `inputs` are there. fp32 [BLOCK_M, BLOCK_N]."""
    dtype = x.dtype.element_ty
    if BITS == 8:
        k = tl.arange(0, GROUP)
        a = tl.load(x + x_at + k[None, :], mask=is_row & (k < inputs)[None, :], other=0.0)
        q = tl.load(numbers + at * GROUP + k[None, :], mask=is_column, other=128)
        return tl.dot(a, tl.trans((q.to(tl.int16) - 128).to(dtype)), input_precision="ieee")
    else:
        k = tl.arange(0, GROUP // 2)
        low_x = tl.load(x + x_at + k[None, :], mask=is_row & (k < inputs)[None, :], other=0.0)
        high_x = tl.load(
            x + x_at + GROUP // 2 + k[None, :], mask=is_row & (k < inputs - GROUP // 2)[None, :], other=0.0
        )
        q = tl.load(numbers + at * (GROUP // 2) + k[None, :], mask=is_column, other=0)
        low, high = (q & 15).to(tl.int16) - zero, (q >> 4).to(tl.int16) - zero
        total = tl.dot(low_x, tl.trans(low.to(dtype)), input_precision="ieee")
        return tl.dot(high_x, tl.trans(high.to(dtype)), total, input_precision="ieee")


@triton.jit
def _chain(x, numbers, scales, zeros, m, n, first, last, rows, columns, depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """x W^T over the groups [first, last), one after another."""
    is_row, is_column = (m < rows)[:, None], (n < columns)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in range(first, last):
        at = n + group * columns
        zero = tl.zeros([BLOCK_N, 1], tl.int16)
        if BITS == 4:
            zero = tl.load(zeros + at, mask=n < columns, other=0).to(tl.int16)[:, None]
        x_at = m[:, None].to(tl.int64) * depth + group * GROUP
        part = _group(
            x, x_at, numbers, at[:, None].to(tl.int64), zero, is_row, is_column, depth - group * GROUP, BITS, GROUP
        )
        total += part * tl.load(scales + at, mask=n < columns, other=0.0)[None, :]
    return total


@triton.jit(do_not_specialize=["rows", "leaves", "leaf_groups", "has_bias", "is_wide", "is_split"])
def quantised_tiles(
    x, numbers, scales, zeros, bias, out, wide,
    rows, leaves, leaf_groups, has_bias, is_wide, is_split, columns, depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, JOIN: tl.constexpr,
):  # fmt: skip
    """x W^T (+ bias). Grid: tiles, and leaves when split, else 1; without JOIN an unsplit product is one leaf."""
    tile_m, tile_n = _place(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mine, groups = tl.program_id(1), tl.cdiv(depth, GROUP)
    if JOIN:
        held_1 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        held_2, held_4, value = held_1, held_1, held_1
        for leaf in range(0, tl.where(is_split != 0, 1, leaves)):
            first = (mine + leaf) * leaf_groups
            more = _chain(
                x, numbers, scales, zeros, m, n, first, tl.minimum(first + leaf_groups, groups), rows, columns, depth,
                BLOCK_M, BLOCK_N, BITS, GROUP,
            )  # fmt: skip
            held_1, held_2, held_4, value = _join(leaf, held_1, held_2, held_4, more)
    else:
        first = mine * leaf_groups
        value = _chain(
            x, numbers, scales, zeros, m, n, first, tl.minimum(first + leaf_groups, groups), rows, columns, depth,
            BLOCK_M, BLOCK_N, BITS, GROUP,
        )  # fmt: skip
    _store(value, bias, out, wide, m, n, rows, columns, has_bias, is_wide, is_split, mine)


@triton.jit(do_not_specialize_on_alignment=["ids"])
def byte_rows(ids, numbers, scales, out, first, columns, depth, GROUP: tl.constexpr):
    """Rows ids - first of a weight of 8 bits, zeros for an id outside. Grid: ids, groups."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(ids + token) - first
    k = tl.arange(0, GROUP)
    inputs = tl.where((row >= 0) & (row < columns), GROUP, 0)
    at = group.to(tl.int64) * columns + row
    q = tl.load(numbers + at * GROUP + k, mask=k < inputs, other=128).to(tl.int16) - 128
    scale = tl.load(scales + at + k * 0, mask=k < inputs, other=0.0)
    value = (q.to(tl.float32) * scale).to(out.dtype.element_ty)
    tl.store(out + token * depth + group * GROUP + k, value, mask=k < depth - group * GROUP)
