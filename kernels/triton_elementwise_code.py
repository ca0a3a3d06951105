"""Operations on single rows as the GPU runs them; kernels/triton_elementwise.py launches them.

Arithmetic in fp32, rounded to the dtype wherever the reference rounds.
"""

import triton
import triton.language as tl


@triton.jit
def _summed(x, residual, row, at, dim):
    """s = x + residual, where there is one, in fp32. Each thread reads what it has read itself."""
    wide = tl.load(x + row + at, mask=at < dim, other=0.0).to(tl.float32)
    if residual is not None:
        wide += tl.load(residual + row + at, mask=at < dim, other=0.0).to(tl.float32)
        wide = wide.to(x.dtype.element_ty).to(tl.float32)
    return wide


@triton.jit
def _inverse_rms(x, residual, total, row, eps, dim, BLOCK: tl.constexpr):
    """1 / rms(s) of the row that begins at `row`; s goes to `total`, where there is a residual."""
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, dim, BLOCK):
        at = first + tl.arange(0, BLOCK)
        wide = _summed(x, residual, row, at, dim)
        if residual is not None:
            tl.store(total + row + at, wide.to(x.dtype.element_ty), mask=at < dim)
        squares += wide * wide
    return 1 / tl.sqrt(tl.sum(squares, 0) / dim + eps)


@triton.jit
def _normed_at(x, residual, weight, row, at, inverse, dim):
    """s / rms(s) * weight."""
    dtype = x.dtype.element_ty
    scaled = (_summed(x, residual, row, at, dim) * inverse).to(dtype).to(tl.float32)
    by = tl.load(weight + at, mask=at < dim, other=0.0).to(tl.float32)
    return (scaled * by).to(dtype)


@triton.jit
def _gated_at(gate_up, row, at, dim):
    """silu(gate) * up."""
    dtype = gate_up.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * dim + at, mask=at < dim, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * dim + dim + at, mask=at < dim, other=0.0).to(tl.float32)
    silu = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    return (silu * up).to(dtype)


@triton.jit
def rms_norm_rows(x, residual, weight, out, total, eps, dim, BLOCK: tl.constexpr):
    """s = x + residual, where there is one, to `total`; s / rms(s) * weight to `out`. Grid: rows."""
    row = tl.program_id(0).to(tl.int64) * dim
    inverse = _inverse_rms(x, residual, total, row, eps, dim, BLOCK)
    for first in range(0, dim, BLOCK):
        at = first + tl.arange(0, BLOCK)
        tl.store(out + row + at, _normed_at(x, residual, weight, row, at, inverse, dim), mask=at < dim)


@triton.jit
def silu_gate_rows(gate_up, out, dim, BLOCK: tl.constexpr):
    """silu(gate) * up. Grid: rows, blocks of `dim`."""
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + row * dim + at, _gated_at(gate_up, row, at, dim), mask=at < dim)


@triton.jit(do_not_specialize_on_alignment=["ids"])
def embedding_rows(ids, table, out, first, size, dim, BLOCK: tl.constexpr):
    """Rows ids - first of a table, zeros for an id outside. Grid: ids, blocks of `dim`."""
    token, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + token) - first
    there = tl.where((row >= 0) & (row < size), dim, 0)
    numbers = tl.load(table + row * dim + at, mask=at < there, other=0.0)
    tl.store(out + token * dim + at, numbers, mask=at < dim)


@triton.jit
def _normed(x, weight, at, is_there, eps, head_dim):
    """A head's halves [2, HALF] over its rms, by the weight, rounded as `rms_norm` rounds."""
    dtype = weight.dtype.element_ty
    inverse = 1 / tl.sqrt(tl.sum(tl.sum(x * x, 1), 0) / head_dim + eps)
    scaled = (x * inverse).to(dtype).to(tl.float32)
    by = tl.load(weight + at, mask=is_there, other=0.0).to(tl.float32)
    return (scaled * by).to(dtype).to(tl.float32)


@triton.jit(do_not_specialize=["heads", "kv_heads"], do_not_specialize_on_alignment=["positions", "slots"])
def write_kv_rows(
    qkv, q_norm, k_norm, cos, sin, positions, slots, q, keys, values, eps, heads, kv_heads, head_dim, HALF: tl.constexpr
):
    """Norm and turn one head of one token, and put it where it belongs. Grid: tokens, heads + 2 kv_heads.

    A slot below 0 takes nothing: such a token only fills a batch.
    """
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dtype = q.dtype.element_ty
    half = head_dim // 2
    pair = tl.arange(0, HALF)[None, :]
    at = tl.arange(0, 2)[:, None] * half + pair
    slot = tl.load(slots + token)
    is_there = at < (at - pair) + half
    is_kept = at < (at - pair) + tl.where(slot >= 0, half, 0)
    source = qkv + (token * (heads + 2 * kv_heads) + head) * head_dim
    x = tl.load(source + at, mask=is_there, other=0.0).to(tl.float32)
    cached = (slot * kv_heads + (head - heads) % kv_heads) * head_dim
    if head >= heads + kv_heads:
        tl.store(values + cached + at, x.to(dtype), mask=is_kept)
    else:
        if q_norm is not None:
            x = _normed(x, tl.where(head < heads, q_norm, k_norm), at, is_there, eps, head_dim)
        place = tl.load(positions + token) * half + pair
        c, s = tl.load(cos + place, mask=pair < half, other=0.0), tl.load(sin + place, mask=pair < half, other=0.0)
        # (first, second) -> (first c - second s, second c + first s)
        is_second = tl.arange(0, 2)[:, None] == 1
        first = tl.sum(tl.where(is_second, 0.0, x), 0)[None, :]
        second = tl.sum(tl.where(is_second, x, 0.0), 0)[None, :]
        turned = tl.where(is_second, second * c + first * s, first * c - second * s).to(dtype)
        if head < heads:
            tl.store(q + (token * heads + head) * head_dim + at, turned, mask=is_there)
        else:
            tl.store(keys + cached + at, turned, mask=is_kept)
