"""Tokens drawn from rows of logits as the GPU runs it; kernels/triton_sampling.py launches it.

The numbers of kernels/candidates.py: score + noise in fp64, the largest wins, of equal ones the lowest id. Philox gives
each four ids in a row one block of words (kernels/philox.py).
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(10)
FIRST = tl.constexpr(0xD2511F53)
SECOND = tl.constexpr(0xCD9E8D57)
WEYL_0 = tl.constexpr(0x9E3779B9)
WEYL_1 = tl.constexpr(0xBB67AE85)
LOW = tl.constexpr(0xFFFFFFFF)
NOTHING = tl.constexpr(float("-inf"))
NO_TOKEN = tl.constexpr(1 << 62)


@triton.jit
def _words(seed, position, block):
    """Philox4x32-10 of counters (position, block, 0, 0): four 32-bit words for each block, in int64."""
    c0 = (block * 0 + position) & LOW
    c1 = block & LOW
    c2 = block * 0
    c3 = block * 0
    k0, k1 = seed & LOW, (seed >> 32) & LOW
    for _ in tl.static_range(ROUNDS):
        # A product of two 32-bit numbers wraps in int64, yet its 64 bits are the right ones.
        first, second = c0 * FIRST, c2 * SECOND
        c0, c2 = (((second >> 32) & LOW) ^ c1 ^ k0) & LOW, (((first >> 32) & LOW) ^ c3 ^ k1) & LOW
        c1, c3 = second & LOW, first & LOW
        k0, k1 = (k0 + WEYL_0) & LOW, (k1 + WEYL_1) & LOW
    return c0, c1, c2, c3


@triton.jit
def _word(seed, position, token):
    """The word of each token by itself."""
    w0, w1, w2, w3 = _words(seed, position, token >> 2)
    at = token & 3
    return tl.where(at == 0, w0, tl.where(at == 1, w1, tl.where(at == 2, w2, w3)))


@triton.jit
def _gumbel(word):
    """Standard Gumbel noise in fp64 (kernels/philox.py)."""
    v = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10
    return -tl.log(-tl.log(1.0 - v))  # 1 - v is exact: 33 bits


@triton.jit(do_not_specialize=["rows", "segment"], do_not_specialize_on_alignment=["numbers", "tokens"])
def draw_rows(logits, best, numbers, heats, values, tokens, rows, segment, vocab, BLOCK: tl.constexpr):
    """The best of each segment of some rows. Grid: rows, segments; `segment` is a multiple of 4 BLOCK.

    numbers int64: row, seed, position of all of them. A temperature of 0 takes the largest logit, without noise. A
    value of -inf: nothing is left to take.
    """
    at, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(numbers + at)
    heat, top = tl.load(heats + at), tl.load(best + row)
    seed, position = tl.load(numbers + rows + at), tl.load(numbers + 2 * rows + at)
    column = tl.arange(0, 4)[None, :]
    value = tl.full([BLOCK, 4], NOTHING, tl.float64)
    token = tl.full([BLOCK, 4], NO_TOKEN, tl.int64)
    for first in range(part * segment, tl.minimum((part + 1) * segment, vocab), 4 * BLOCK):
        blocks = (first // 4 + tl.arange(0, BLOCK)).to(tl.int64)
        ids = blocks[:, None] * 4 + column
        logit = tl.load(logits + row * vocab + ids, mask=ids < vocab, other=NOTHING)
        w0, w1, w2, w3 = _words(seed, position, blocks)
        word = tl.where(column == 0, w0[:, None], w1[:, None])
        word = tl.where(column == 2, w2[:, None], tl.where(column == 3, w3[:, None], word))
        wide = logit.to(tl.float64)
        # Infinite logits are not subtracted from themselves.
        below = tl.where(logit == top, 0.0, wide) - tl.where(logit == top, 0.0, top.to(tl.float64))
        score = below / tl.where(heat == 0.0, 1.0, heat)
        drawn = tl.where(logit == NOTHING, NOTHING, tl.where(heat == 0.0, wide, score + _gumbel(word)))
        is_better = drawn > value  # ids ascend, so the first of equals stays
        value, token = tl.where(is_better, drawn, value), tl.where(is_better, ids, token)
    most = tl.max(tl.max(value, 1), 0)
    mine = at * tl.num_programs(1) + part
    tl.store(values + mine, most)
    tl.store(tokens + mine, tl.min(tl.min(tl.where(value == most, token, NO_TOKEN), 1), 0))
