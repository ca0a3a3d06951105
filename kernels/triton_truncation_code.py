"""What top-n-sigma, top-k, top-p, min-p and typical-p keep, as the GPU runs it; triton_truncation.py launches it.

    tally    each segment of each row    the largest logits of its groups, the sum of its weights
    gather   each segment of each row    the tokens that can be among the kept, in no order
    draw     each row                    what is kept of those, by bisection over keys, and the draw over it

Nothing is sorted. Weights are whole numbers (kernels/weights.py), so sums over them are the same in any order, and
every set is that of kernels/truncation.py. A key is a token's place in the order (logit descending, id ascending) as a
number: the larger the key, the earlier the token.
"""

import triton
import triton.language as tl

from rayline.kernels.triton_sampling_code import NO_TOKEN, NOTHING, _gumbel, _word

ID_BITS = tl.constexpr(24)
IDS = tl.constexpr(1 << 24)
INFINITY = tl.constexpr(float("inf"))
LOWEST = tl.constexpr(-30.0)
LARGEST_INVERSE = tl.constexpr(1e30)
LEAST_HEAT = tl.constexpr(1e-30)
WHOLE = tl.constexpr(8388608.0)  # 2^23: fp32 numbers from here on have no fraction
UNIT = tl.constexpr(5.820766091346741e-11)  # 2^-34
ZERO_SCORE = tl.constexpr(-25.0)  # lower scores have weight 0
BISECTIONS = tl.constexpr(12)  # of a bound that need not be sharp
LANES = tl.constexpr(16)
UNROLL = tl.constexpr(16)


@triton.jit
def _rounded(x):
    """The nearest whole number, of two the even one."""
    shift = tl.where(x < 0.0, -WHOLE, WHOLE)
    return tl.where(tl.abs(x) < WHOLE, (x + shift) - shift, x)


@triton.jit
def _inverse(heat):
    return tl.minimum(1.0 / heat, LARGEST_INVERSE).to(tl.float32)


@triton.jit
def _below(logit, top):
    """logit - top; infinite logits are not subtracted from themselves."""
    is_best = logit == top
    return tl.where(is_best, 0.0, logit) - tl.where(is_best, 0.0, top)


@triton.jit
def _rough(logit, top, inverse):
    """Scores in fp32, as kernels/weights.py has them."""
    return tl.minimum(_below(logit, top), 0.0) * inverse


@triton.jit
def _weights(score):
    """exp(score) in units of 2^-34, rounded: whole numbers in fp32."""
    inside = tl.maximum(score, LOWEST)
    power = _rounded(inside * 1.44269504)
    rest = inside - power * 0.693359375
    rest = rest - power * -2.12194440e-4
    series = rest * 1.9875691500e-4 + 1.3981999507e-3
    series = series * rest + 8.3334519073e-3
    series = series * rest + 4.1665795894e-2
    series = series * rest + 1.6666665459e-1
    series = series * rest + 5.0000001201e-1
    series = series * (rest * rest)
    series = (series + rest) + 1.0
    unit = ((power.to(tl.int32) + 161) << 23).to(tl.float32, bitcast=True)
    return _rounded(series * unit)


@triton.jit
def _key(logit):
    """Whole numbers in the logits' order, at least 0; zeros are one number."""
    bits = tl.where(logit == 0.0, 0.0, logit).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 0x80000000


@triton.jit
def _place(logit, token):
    """The key of a token among all tokens of its row."""
    return (_key(logit) << ID_BITS) + (IDS - 1 - token)


@triton.jit
def _halves(lanes):
    """Sum of 16 numbers: halves are added until one is left. A sum of two has no order."""
    eight = tl.sum(tl.reshape(lanes, [2, 8]), 0)
    four = tl.sum(tl.reshape(eight, [2, 4]), 0)
    return tl.sum(tl.sum(tl.reshape(four, [2, 2]), 0), 0)


@triton.jit(do_not_specialize_on_alignment=["numbers"])
def sigma_floors(logits, best, numbers, sigmas, floors, vocab):
    """The lowest logit that top-n-sigma keeps, best - n sigma; -inf where n is 0. Grid: rows.

    Sums go over every 16th logit, one after the other, then over these 16 in halves: their order is part of the result.
    """
    at = tl.program_id(0).to(tl.int64)
    row = tl.load(numbers + at)
    top, many = tl.load(best + row), tl.load(sigmas + at)
    lane = tl.arange(0, LANES)
    total = tl.zeros([LANES], tl.float64)
    squares = tl.zeros([LANES], tl.float64)
    there = tl.zeros([LANES], tl.float64)
    size = tl.where(many > 0.0, tl.where(tl.abs(top) < INFINITY, vocab, 0), 0)
    for first in tl.range(0, size, LANES, loop_unroll_factor=UNROLL):
        logit = tl.load(logits + row * vocab + first + lane, mask=first + lane < vocab, other=NOTHING)
        below = -_below(tl.where(logit > NOTHING, logit, top).to(tl.float64), top.to(tl.float64))
        total += below
        squares += below * below
        there += tl.where(logit > NOTHING, 1.0, 0.0)
    number = tl.maximum(tl.sum(there, 0), 1.0)
    mean = _halves(total) / number
    variance = _halves(squares) / number - mean * mean
    floor = (top.to(tl.float64) - many * tl.sqrt(tl.maximum(variance, 0.0))).to(tl.float32)
    tl.store(floors + at, tl.where(many > 0.0, floor, NOTHING))


@triton.jit(do_not_specialize=["segment"], do_not_specialize_on_alignment=["numbers", "totals", "held"])
def tally_rows(
    logits, best, numbers, heats, floors, peaks, totals, held, segment, vocab, BLOCK: tl.constexpr, PEAKS: tl.constexpr
):
    """Of a segment: its groups' largest logits, [rows, segments, PEAKS], and the sum of its weights. Grid: rows,
    segments of a multiple of BLOCK. Nothing is held of a row yet."""
    at, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(numbers + at)
    top, floor = tl.load(best + row), tl.load(floors + at)
    inverse = _inverse(tl.load(heats + at))
    peak = tl.full([BLOCK], NOTHING, tl.float32)
    total = tl.zeros([BLOCK], tl.int64)
    for first in range(part * segment, tl.minimum((part + 1) * segment, vocab), BLOCK):
        ids = first + tl.arange(0, BLOCK)
        logit = tl.load(logits + row * vocab + ids, mask=ids < vocab, other=NOTHING)
        peak = tl.maximum(peak, logit)
        weight = _weights(_rough(logit, top, inverse)).to(tl.int64)
        total += tl.where((logit >= floor) & (ids < vocab), weight, 0)
    mine = at * tl.num_programs(1) + part
    group = tl.max(tl.reshape(peak, [PEAKS, BLOCK // PEAKS]), 1)
    tl.store(peaks + mine * PEAKS + tl.arange(0, PEAKS), group)
    tl.store(totals + mine, tl.sum(total, 0))
    tl.store(held + at, 0, mask=part == 0)


@triton.jit
def _bound_of_most(peak, top, most):
    """A logit that at least `most` tokens reach, for as many groups' largest ones do; -inf where there are not."""
    low = tl.min(tl.where(peak > NOTHING, peak, top), 0)
    high = top
    is_bound = (tl.sum((peak > NOTHING).to(tl.int64), 0) >= most) & (tl.abs(top) < INFINITY)
    for _ in range(0, tl.where(is_bound, BISECTIONS, 0)):
        middle = low * 0.5 + high * 0.5
        is_reached = tl.sum((peak >= middle).to(tl.int64), 0) >= most
        low, high = tl.where(is_reached, middle, low), tl.where(is_reached, high, middle)
    return tl.where(is_bound, low, NOTHING)


@triton.jit
def _bound_of_score(top, score, heat):
    """A logit below all those of at least this score, by more than fp32 errs."""
    is_finite = tl.abs(top) < INFINITY
    bound = (tl.where(is_finite, top, 0.0).to(tl.float64) + score * tl.maximum(heat, LEAST_HEAT)).to(tl.float32)
    return tl.where(is_finite, bound - (tl.abs(bound) * 2.4e-7 + 1e-37), NOTHING)


@triton.jit
def _bound(peak, top, floor, heat, most, top_p, least, total, vocab):
    """No token below can be kept, nor count in what decides which are.

    With top-k, top-p counts all of the first k tokens; without, those of more than the mean weight of what it leaves
    out hold enough.
    """
    bound = floor
    if most > 0:
        bound = tl.maximum(bound, _bound_of_most(peak, top, most))
    elif top_p < 1.0:
        share = 0.99 * (1.0 - top_p) * total.to(tl.float64) / vocab
        score = tl.where(share >= 0.5, tl.maximum(tl.log(tl.maximum(share, 0.5) * UNIT) - 0.01, ZERO_SCORE), ZERO_SCORE)
        bound = tl.maximum(bound, _bound_of_score(top, score, heat))
    is_relative = (least > NOTHING) & ((most == 0) | (top_p >= 1.0))
    return tl.where(is_relative, tl.maximum(bound, _bound_of_score(top, tl.maximum(least, -1e30), heat)), bound)


@triton.jit(
    do_not_specialize=["rows", "segment", "capacity", "parts"],
    do_not_specialize_on_alignment=["numbers", "totals", "held", "ids"],
)
def gather_rows(
    logits, best, numbers, rules, floors, peaks, totals, held, bounds, listed, ids,
    rows, segment, capacity, parts, vocab, BLOCK: tl.constexpr, PEAKS: tl.constexpr,
):  # fmt: skip
    """List the tokens of a segment that its row needs, behind those of other segments. Grid: rows, segments.

    numbers int64: row, top_k of all rows; rules fp64: temperature, top_p, least score. A list that does not fit is not
    written to its end; the row itself is read then.
    """
    at, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, most = tl.load(numbers + at), tl.load(numbers + rows + at)
    heat, top_p, least = tl.load(rules + at), tl.load(rules + rows + at), tl.load(rules + 2 * rows + at)
    top, floor = tl.load(best + row), tl.load(floors + at)
    peak = tl.load(peaks + at * PEAKS + tl.arange(0, PEAKS))
    bound = _bound(peak, top, floor, heat, most, top_p, least, _total(totals, at, parts), vocab)
    tl.store(bounds + at, bound, mask=part == 0)
    for first in range(part * segment, tl.minimum((part + 1) * segment, vocab), BLOCK):
        token = first + tl.arange(0, BLOCK)
        logit = tl.load(logits + row * vocab + token, mask=token < vocab, other=NOTHING)
        is_needed = (logit >= bound) & (logit > NOTHING)
        count = tl.sum(is_needed.to(tl.int32), 0)
        if count > 0:
            place = tl.atomic_add(held + at, count) + tl.cumsum(is_needed.to(tl.int32), 0) - 1
            fits = is_needed & (place < capacity)
            tl.store(listed + at * capacity + place, logit, mask=fits)
            tl.store(ids + at * capacity + place, token, mask=fits)


@triton.jit
def _total(totals, at, parts):
    """What a row weighs."""
    total = tl.load(totals + at * parts)
    for other in range(1, parts):
        total += tl.load(totals + at * parts + other)
    return total


@triton.jit
def _tokens(logits, listed, ids, row, at, first, held, vocab, capacity, BLOCK: tl.constexpr):
    """Some logits and ids of a row's list, or of the row itself where the list is not whole; -inf behind the last."""
    i = first + tl.arange(0, BLOCK)
    is_listed = held <= capacity
    is_mine = i < tl.where(is_listed, held, 0)
    mine = tl.load(listed + at * capacity + i, mask=is_mine, other=NOTHING)
    token = tl.load(ids + at * capacity + i, mask=is_mine, other=0)
    whole = tl.load(logits + row * vocab + i, mask=i < tl.where(is_listed, 0, vocab), other=NOTHING)
    return tl.where(is_listed, mine, whole), tl.where(is_listed, token, i).to(tl.int64)


@triton.jit
def _amount(
    logits, listed, ids, row, at, held, vocab, capacity, top, inverse, low, high, is_count, BLOCK: tl.constexpr
):
    """How many tokens have keys in [low, high), or what they weigh."""
    amount = tl.zeros([BLOCK], tl.int64)
    for first in range(0, tl.where(held <= capacity, held, vocab), BLOCK):
        logit, token = _tokens(logits, listed, ids, row, at, first, held, vocab, capacity, BLOCK)
        place = _place(logit, token)
        weight = tl.where(is_count, 1, _weights(_rough(logit, top, inverse)).to(tl.int64))
        amount += tl.where((place >= low) & (place < high) & (logit > NOTHING), weight, 0)
    return tl.sum(amount, 0)


@triton.jit
def _reach(
    logits, listed, ids, row, at, held, vocab, capacity, top, inverse, last, goal, is_count, BLOCK: tl.constexpr
):
    """The largest key from which on the tokens reach `goal`; `last` where they do not.

    First among keys of logits, then, if several tokens share the logit, among theirs.
    """
    end = (_key(top) + 1) << ID_BITS
    low, high, grain = last, end, tl.full([], IDS, tl.int64)
    for _ in range(0, 2):
        while high - low > grain:
            middle = low + ((high - low) >> 1)
            middle = tl.where(grain > 1, ((low >> ID_BITS) + (high >> ID_BITS) >> 1) << ID_BITS, middle)
            reached = _amount(
                logits, listed, ids, row, at, held, vocab, capacity, top, inverse, middle, end, is_count, BLOCK
            )
            is_reached = reached.to(tl.float64) >= goal
            low, high = tl.where(is_reached, middle, low), tl.where(is_reached, high, middle)
        equals = _amount(logits, listed, ids, row, at, held, vocab, capacity, top, inverse, low, high, True, BLOCK)
        grain = tl.where(equals > 1, 1, grain)
    return low


@triton.jit
def _scores(logit, top, heat):
    """As kernels/candidates.py has them, fp64."""
    return _below(logit.to(tl.float64), top.to(tl.float64)) / heat


@triton.jit
def _distance(
    logits, listed, ids, row, at, held, vocab, capacity, top, heat, inverse, last, least, typical, BLOCK: tl.constexpr
):
    """The mean of the scores that are left, and the distance from it within which typical-p keeps tokens."""
    weighed, moments = tl.zeros([BLOCK], tl.int64), tl.zeros([BLOCK], tl.int64)
    size = tl.where(held <= capacity, held, vocab)
    for first in range(0, size, BLOCK):
        logit, token = _tokens(logits, listed, ids, row, at, first, held, vocab, capacity, BLOCK)
        is_left = (_place(logit, token) >= last) & (_scores(logit, top, heat) >= least) & (logit > NOTHING)
        rough = _rough(logit, top, inverse)
        weight = _weights(rough)
        weighed += tl.where(is_left, weight.to(tl.int64), 0)
        moments += tl.where(is_left, _rounded(weight * tl.maximum(rough, LOWEST)).to(tl.int64), 0)
    total = tl.maximum(tl.sum(weighed, 0), 1).to(tl.float64)
    mean = (tl.sum(moments, 0).to(tl.float64) / total).to(tl.float32)
    low, high = tl.full([], -1, tl.int32), tl.full([], INFINITY, tl.float32).to(tl.int32, bitcast=True)
    while high - low > 1:
        middle = low + ((high - low) >> 1)
        inside = tl.zeros([BLOCK], tl.int64)
        for first in range(0, size, BLOCK):
            logit, token = _tokens(logits, listed, ids, row, at, first, held, vocab, capacity, BLOCK)
            is_left = (_place(logit, token) >= last) & (_scores(logit, top, heat) >= least) & (logit > NOTHING)
            rough = _rough(logit, top, inverse)
            is_near = tl.abs(rough - mean).to(tl.int32, bitcast=True) <= middle
            inside += tl.where(is_left & is_near, _weights(rough).to(tl.int64), 0)
        is_reached = tl.sum(inside, 0).to(tl.float64) >= typical * total
        low, high = tl.where(is_reached, low, middle), tl.where(is_reached, middle, high)
    return mean, high.to(tl.float32, bitcast=True)


@triton.jit(
    do_not_specialize=["rows", "capacity", "parts"],
    do_not_specialize_on_alignment=["numbers", "totals", "held", "ids", "tokens"],
)
def draw_kept(
    logits, best, numbers, rules, totals, held, bounds, listed, ids, values, tokens,
    rows, capacity, parts, vocab, BLOCK: tl.constexpr,
):  # fmt: skip
    """The draw over what is kept of each row. Grid: rows.

    numbers int64: row, top_k, seed, position of all rows; rules fp64: temperature, top_p, least score, typical_p. A
    value of -inf: nothing is left to take.
    """
    at = tl.program_id(0).to(tl.int64)
    row, most = tl.load(numbers + at), tl.load(numbers + rows + at)
    seed, position = tl.load(numbers + 2 * rows + at), tl.load(numbers + 3 * rows + at)
    heat, top_p = tl.load(rules + at), tl.load(rules + rows + at)
    least, typical = tl.load(rules + 2 * rows + at), tl.load(rules + 3 * rows + at)
    top, count = tl.load(best + row), tl.load(held + at)
    inverse = _inverse(heat)
    last = _key(tl.load(bounds + at)) << ID_BITS
    for rule in range(0, 2):  # top-k, then top-p: a loop, so that the compiled code holds `_reach` once
        is_count = rule == 0
        if tl.where(is_count, most > 0, top_p < 1.0):
            total = _total(totals, at, parts)
            if (rule == 1) & (most > 0):
                end = (_key(top) + 1) << ID_BITS
                total = _amount(
                    logits, listed, ids, row, at, count, vocab, capacity, top, inverse, last, end, False, BLOCK
                )
            goal = tl.where(is_count, most.to(tl.float64), top_p * total.to(tl.float64))
            last = _reach(
                logits, listed, ids, row, at, count, vocab, capacity, top, inverse, last, goal, is_count, BLOCK
            )
    mean, distance = tl.full([], 0.0, tl.float32), tl.full([], INFINITY, tl.float32)
    if typical < 1.0:
        mean, distance = _distance(
            logits, listed, ids, row, at, count, vocab, capacity, top, heat, inverse, last, least, typical, BLOCK
        )
    value = tl.full([BLOCK], NOTHING, tl.float64)
    chosen = tl.full([BLOCK], NO_TOKEN, tl.int64)
    for first in range(0, tl.where(count <= capacity, count, vocab), BLOCK):
        logit, token = _tokens(logits, listed, ids, row, at, first, count, vocab, capacity, BLOCK)
        score = _scores(logit, top, heat)
        is_near = tl.abs(_rough(logit, top, inverse) - mean) <= distance
        is_kept = (_place(logit, token) >= last) & (score >= least) & is_near & (logit > NOTHING)
        drawn = tl.where(is_kept, score + _gumbel(_word(seed, position, token)), NOTHING)
        is_better = (drawn > value) | ((drawn == value) & (token < chosen) & is_kept)
        value, chosen = tl.where(is_better, drawn, value), tl.where(is_better, token, chosen)
    highest = tl.max(value, 0)
    tl.store(values + at, highest)
    tl.store(tokens + at, tl.min(tl.where(value == highest, chosen, NO_TOKEN), 0))


@triton.jit(
    do_not_specialize=["rows", "capacity", "parts", "count", "is_logprob"],
    do_not_specialize_on_alignment=["numbers", "totals", "held", "ids", "found"],
)
def rank_rows(
    logits, best, numbers, totals, held, listed, ids, found, values,
    rows, capacity, parts, count, is_logprob, vocab, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token of each row, and its `count` best in order: ids and logprobs, [rows, 1 + count]. Grid: rows.

    numbers int64: row, the token, of all rows. is_logprob 0: the logits themselves. Behind the last: id 0 at -inf.
    """
    at = tl.program_id(0).to(tl.int64)
    row, own = tl.load(numbers + at), tl.load(numbers + rows + at)
    top, size = tl.load(best + row).to(tl.float64), tl.load(held + at)
    total = tl.log(_total(totals, at, parts).to(tl.float64) * UNIT)
    before = tl.full([], 1 << 62, tl.int64)
    for rank in range(0, count + 1):
        place = tl.full([BLOCK], -1, tl.int64)
        for first in range(0, tl.where(rank == 0, 0, tl.where(size <= capacity, size, vocab)), BLOCK):
            logit, token = _tokens(logits, listed, ids, row, at, first, size, vocab, capacity, BLOCK)
            mine = _place(logit, token)
            place = tl.maximum(place, tl.where((mine < before) & (logit > NOTHING), mine, -1))
        following = tl.max(place, 0)
        before = tl.where(rank == 0, before, following)
        token = tl.where(rank == 0, own, IDS - 1 - (following & (IDS - 1)))
        is_there = (rank == 0) | (following >= 0)
        logit = tl.load(logits + row * vocab + token, mask=is_there, other=NOTHING).to(tl.float64)
        logprob = _below(logit, top) - total
        value = tl.where(is_logprob != 0, logprob.to(tl.float32).to(tl.float64), logit)
        tl.store(found + at * (count + 1) + rank, tl.where(is_there, token, 0))
        tl.store(values + at * (count + 1) + rank, tl.where(is_there, value, NOTHING))
