"""Products whose bits are a row's own, as the GPU runs them; kernels/triton_product.py launches them.

    depth   |  leaf 0  |  leaf 1  | ... |  leaf 7  |        each a chain of tiles of BLOCK_K inputs
    result  ((l0 + l1) + (l2 + l3)) + ((l4 + l5) + (l6 + l7))

One program goes through all leaves, or one program a leaf and `join_leaves`: the same additions.
"""

import triton
import triton.language as tl


@triton.jit
def _hold(leaf, bit: tl.constexpr, held, value):
    """The left neighbour on a level of the tree, kept until its right one is there."""
    return tl.where(leaf & bit == 0, value, held)


@triton.jit
def _join(leaf, held_1, held_2, held_4, value):
    """Put leaf after leaf into the tree: what is complete, and what waits for a neighbour on each level."""
    joined_1 = tl.where(leaf & 1 == 0, value, held_1 + value)
    joined_2 = tl.where(leaf & 2 == 0, joined_1, held_2 + joined_1)
    joined_4 = tl.where(leaf & 4 == 0, joined_2, held_4 + joined_2)
    return _hold(leaf, 1, held_1, value), _hold(leaf, 2, held_2, joined_1), _hold(leaf, 4, held_4, joined_2), joined_4


@triton.jit
def _place(tile, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row and column tile of a program: 8 row tiles side by side read the same columns while these are in the cache."""
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    band = tile // (8 * tiles_n)
    height = tl.minimum(tiles_m - band * 8, 8)
    inside = tile - band * 8 * tiles_n
    return band * 8 + inside % height, inside // height


@triton.jit
def _store(value, bias, out, wide, m, n, rows, columns, has_bias, is_wide, is_leaf, leaf):
    """[BLOCK_M, BLOCK_N] as fp32 to wide [.., rows, columns], or with its bias to out [rows, columns]."""
    is_number = (m < rows)[:, None] & (n < columns)[None, :]
    at = m[:, None].to(tl.int64) * columns + n[None, :]
    if is_wide + is_leaf != 0:
        tl.store(wide + at + leaf * is_leaf * rows.to(tl.int64) * columns, value, mask=is_number)
    else:
        added = tl.load(bias + n, mask=n < tl.where(has_bias != 0, columns, 0), other=0.0).to(tl.float32)
        tl.store(out + at, (value + added[None, :]).to(out.dtype.element_ty), mask=is_number)


@triton.jit
def _chain(x, weight, m, n, first, rows, columns, depth, leaf_depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """x W^T over the inputs [first, first + leaf_depth), tile after tile."""
    k = tl.arange(0, BLOCK_K)
    x_at = x + m[:, None].to(tl.int64) * depth + first + k[None, :]
    weight_at = weight + n[:, None].to(tl.int64) * depth + first + k[None, :]
    is_row, is_column = (m < rows)[:, None], (n < columns)[:, None]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for done in range(0, leaf_depth, BLOCK_K):
        if EVEN:
            a, b = tl.load(x_at, mask=is_row, other=0.0), tl.load(weight_at, mask=is_column, other=0.0)
        else:
            is_input = (k < leaf_depth - done)[None, :]
            a = tl.load(x_at, mask=is_row & is_input, other=0.0)
            b = tl.load(weight_at, mask=is_column & is_input, other=0.0)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
        x_at += BLOCK_K
        weight_at += BLOCK_K
    return total


@triton.jit(do_not_specialize=["rows", "leaves", "has_bias", "is_wide", "is_split"])
def product_tiles(
    x, weight, bias, out, wide, rows, leaves, has_bias, is_wide, is_split, columns, depth, leaf_depth,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """x W^T (+ bias). Grid: tiles, and leaves when split, else 1."""
    tile_m, tile_n = _place(tl.program_id(0), rows, columns, BLOCK_M, BLOCK_N)
    m, n = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mine = tl.program_id(1)
    held_1 = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    held_2, held_4, value = held_1, held_1, held_1
    for leaf in range(0, tl.where(is_split != 0, 1, leaves)):
        more = _chain(
            x, weight, m, n, (mine + leaf) * leaf_depth, rows, columns, depth, leaf_depth,
            BLOCK_M, BLOCK_N, BLOCK_K, EVEN,
        )  # fmt: skip
        held_1, held_2, held_4, value = _join(leaf, held_1, held_2, held_4, more)
    _store(value, bias, out, wide, m, n, rows, columns, has_bias, is_wide, is_split, mine)


@triton.jit(do_not_specialize=["numbers", "leaves", "has_bias", "is_wide"])
def join_leaves(
    parts, bias, out, wide, numbers, leaves, has_bias, is_wide, columns, BLOCK: tl.constexpr
):  # fmt: skip
    """The leaves fp32 [leaves, numbers] of a product, numbers = rows * columns. Grid: blocks of numbers."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    held_1 = tl.zeros([BLOCK], tl.float32)
    held_2, held_4, value = held_1, held_1, held_1
    place = at
    for leaf in range(0, leaves):
        more = tl.load(parts + place, mask=at < numbers, other=0.0)
        held_1, held_2, held_4, value = _join(leaf, held_1, held_2, held_4, more)
        place += numbers
    if is_wide != 0:
        tl.store(wide + at, value, mask=at < numbers)
    else:
        added = tl.load(bias + at % columns, mask=at < tl.where(has_bias != 0, numbers, 0), other=0.0)
        tl.store(out + at, (value + added.to(tl.float32)).to(out.dtype.element_ty), mask=at < numbers)
