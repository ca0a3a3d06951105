"""Paged attention as the GPU runs it (Dao et al. 2022 over Kwon et al. 2023); kernels/triton_attention.py launches it.

    rows of one sequence and KV head        keys, tiles at absolute positions
      token 0: its `group` query heads      |  tile 0  |  tile 1  |  tile 2  | ...
      token 1: ...                          |<-- part 0: part_tokens -->|<-- part 1 ...

A program takes BLOCK_M such rows, so decode (a few rows) and prefill (many) are one function. A tile that a row does
not see leaves its numbers as they are, bit for bit. Parts are joined in ascending order, by the program itself or, when
other programs computed them, by `join_parts`: the same additions. How far the keys go is read on the device, so that a
captured launch fits every length.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def _scores(q, k, scale, soft_cap, SOFT_CAP: tl.constexpr):
    """q k^T scale, capped, in powers of two. [BLOCK_M, BLOCK_N] fp32."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    if SOFT_CAP:
        # soft_cap * tanh(scores / soft_cap)
        scores = soft_cap * (2 * tl.sigmoid(2 * scores / soft_cap) - 1)
    return scores * LOG2E


@triton.jit
def _finite(top):
    """A maximum to subtract: 0 where nothing was seen."""
    return tl.where(top == NOTHING, 0.0, top)


@triton.jit
def _attend_part(
    q, keys, values, table, position, first, last, length, window, scale, soft_cap,
    row_stride, head_dim, block_tokens,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, SOFT_CAP: tl.constexpr,
):  # fmt: skip
    """Maximum, sum and weighted values over the keys [first, last); first is a multiple of BLOCK_N."""
    top = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    d = tl.arange(0, BLOCK_D)
    for tile in range(first, last, BLOCK_N):
        at = tile + tl.arange(0, BLOCK_N)
        is_there = at < length
        block = tl.load(table + at // block_tokens, mask=is_there, other=0)
        row = (block.to(tl.int64) * block_tokens + at % block_tokens) * row_stride
        is_number = is_there[:, None] & (d < head_dim)[None, :]
        k = tl.load(keys + row[:, None] + d[None, :], mask=is_number, other=0.0)
        scores = _scores(q, k, scale, soft_cap, SOFT_CAP)
        is_seen = (at[None, :] <= position[:, None]) & (at[None, :] > position[:, None] - window)
        scores = tl.where(is_seen, scores, NOTHING)
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = _finite(new_top)
        fade = tl.exp2(top - base)
        weights = tl.exp2(scores - base[:, None])
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(values + row[:, None] + d[None, :], mask=is_number, other=0.0)
        weighted = tl.dot(weights.to(v.dtype), v, weighted * fade[:, None], input_precision="ieee")
        top = new_top
    return top, total, weighted


@triton.jit
def _join(top, total, weighted, part_top, part_total, part_weighted):
    """Two ranges of keys as one. A part in which nothing was seen changes no bit."""
    new_top = tl.maximum(top, part_top)
    base = _finite(new_top)
    fade, part_fade = tl.exp2(top - base), tl.exp2(part_top - base)
    total = total * fade + part_total * part_fade
    weighted = weighted * fade[:, None] + part_weighted * part_fade[:, None]
    return new_top, total, weighted


@triton.jit
def _finish(top, total, weighted, sinks):
    """The softmax's quotient; sinks: a logit a row, -inf for none."""
    sinks = sinks * LOG2E
    new_top = tl.maximum(top, sinks)
    base = _finite(new_top)
    fade = tl.exp2(top - base)
    total = total * fade + tl.exp2(sinks - base)
    return weighted * fade[:, None] / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def _store_part(tops, totals, values, part, flat, query_rows, head_dim, d, is_row, more):
    """`part` is a loop's number, which need not be a tensor."""
    at = (tl.zeros([1], tl.int64) + query_rows) * part + flat
    tl.store(tops + at, more[0], mask=is_row)
    tl.store(totals + at, more[1], mask=is_row)
    is_number = is_row[:, None] & (d < head_dim)[None, :]
    tl.store(values + at[:, None] * head_dim + d[None, :], more[2], mask=is_number)


@triton.jit(
    do_not_specialize=["window", "group", "heads", "kv_heads", "width", "part_tokens", "query_rows", "is_split"],
    do_not_specialize_on_alignment=["tile_sequences", "tile_rows", "starts", "lens", "tables"],
)
def attend_tiles(
    q, keys, values, sinks, out, part_tops, part_totals, part_values,
    tile_sequences, tile_rows, starts, lens, tables,
    scale, soft_cap, window, group, heads, kv_heads, width, part_tokens, query_rows, is_split,
    head_dim, block_tokens,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    SOFT_CAP: tl.constexpr, JOIN: tl.constexpr,
):  # fmt: skip
    """Grid: tiles of rows, KV heads, and programs that share the keys when split, else 1.

    Unsplit, the result goes to `out`. Split, each part goes to part_* [parts, query_rows] and [parts, query_rows,
    head_dim]; row = token * heads + head. With JOIN a part is `part_tokens` keys at absolute positions, whichever
    program computes it; without, each program has one part, its share of the keys that these rows see.
    """
    tile, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, first_row = tl.load(tile_sequences + tile), tl.load(tile_rows + tile)
    start, length = tl.load(starts + sequence), tl.load(lens + sequence)
    count = tl.load(starts + sequence + 1) - start
    rows = first_row + tl.arange(0, BLOCK_M)
    is_row = rows < count * group
    position = length - count + rows // group
    flat = (start + rows // group).to(tl.int64) * heads + kv_head * group + rows % group
    d = tl.arange(0, BLOCK_D)
    is_number = is_row[:, None] & (d < head_dim)[None, :]
    numbers = flat[:, None] * head_dim + d[None, :]
    q_tile = tl.load(q + numbers, mask=is_number, other=0.0)

    # The keys that any of the rows sees, from a tile's first one on.
    last_row = tl.minimum(first_row + BLOCK_M, count * group) - 1
    end = length - count + last_row // group + 1
    begin = tl.maximum(0, length - count + first_row // group - window + 1) // BLOCK_N * BLOCK_N
    table, offset = tables + sequence.to(tl.int64) * width, kv_head * head_dim
    top = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    weighted = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if JOIN:
        first_part = begin // part_tokens
        last_part = (end + part_tokens - 1) // part_tokens
        for p in range(first_part + part, last_part, tl.num_programs(2)):
            low, high = tl.maximum(begin, p * part_tokens), tl.minimum(end, (p + 1) * part_tokens)
            more = _attend_part(
                q_tile, keys + offset, values + offset, table, position, low, high, length, window, scale, soft_cap,
                kv_heads * head_dim, head_dim, block_tokens, BLOCK_M, BLOCK_N, BLOCK_D, SOFT_CAP,
            )  # fmt: skip
            if is_split != 0:
                _store_part(part_tops, part_totals, part_values, p, flat, query_rows, head_dim, d, is_row, more)
            else:
                top, total, weighted = _join(top, total, weighted, more[0], more[1], more[2])
    else:
        share = tl.cdiv(tl.cdiv(end - begin, tl.num_programs(2)), BLOCK_N) * BLOCK_N
        low = begin + part * share
        more = _attend_part(
            q_tile, keys + offset, values + offset, table, position, low, tl.minimum(end, low + share), length, window,
            scale, soft_cap, kv_heads * head_dim, head_dim, block_tokens, BLOCK_M, BLOCK_N, BLOCK_D, SOFT_CAP,
        )  # fmt: skip
        if is_split != 0:
            _store_part(part_tops, part_totals, part_values, part, flat, query_rows, head_dim, d, is_row, more)
        else:
            top, total, weighted = more

    if is_split == 0:
        sink = tl.load(sinks + kv_head * group + rows % group)
        tl.store(out + numbers, _finish(top, total, weighted, sink).to(out.dtype.element_ty), mask=is_number)


@triton.jit(
    do_not_specialize=["window", "heads", "splits", "part_tokens", "query_rows"],
    do_not_specialize_on_alignment=["positions", "tokens"],
)
def join_parts(
    part_tops, part_totals, part_values, sinks, out, positions, tokens,
    window, heads, splits, part_tokens, query_rows, head_dim, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The parts of one row in ascending order. Grid: tokens that were split, heads.

    splits: parts of every row; 0: those of `part_tokens` keys that the row sees.
    """
    token, head = tl.load(tokens + tl.program_id(0)), tl.program_id(1)
    position = tl.load(positions + token).to(tl.int32)
    row = token.to(tl.int64) * heads + head
    d = tl.arange(0, BLOCK_D)
    all_rows = tl.zeros([1], tl.int64) + query_rows
    top = tl.full([1], NOTHING, tl.float32)
    total = tl.zeros([1], tl.float32)
    weighted = tl.zeros([1, BLOCK_D], tl.float32)
    first = tl.where(splits != 0, 0, tl.maximum(0, position - window + 1) // part_tokens)
    last = tl.where(splits != 0, splits, position // part_tokens + 1)
    for part in range(first, last):
        at = row + part * all_rows
        values = tl.load(part_values + at[:, None] * head_dim + d[None, :], mask=(d < head_dim)[None, :], other=0.0)
        top, total, weighted = _join(top, total, weighted, tl.load(part_tops + at), tl.load(part_totals + at), values)
    sink = tl.load(sinks + head + tl.arange(0, 1))
    result = _finish(top, total, weighted, sink).to(out.dtype.element_ty)
    tl.store(out + row * head_dim + d[None, :], result, mask=(d < head_dim)[None, :])
