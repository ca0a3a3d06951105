"""Edits of logits as the GPU runs them; kernels/triton_edits.py launches them, kernels/edits.py has the rules."""

import triton
import triton.language as tl

from rayline.kernels.triton_sampling_code import NOTHING

PENALTY = tl.constexpr(0)
BIAS = tl.constexpr(1)
WORD_BITS = tl.constexpr(32)


@triton.jit
def _low_number(pair):
    """fp32 of the low half of an int64."""
    return pair.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["kind"], do_not_specialize_on_alignment=["rows", "starts", "pairs"])
def edit_tokens(logits, rows, starts, pairs, penalties, kind, vocab, BLOCK: tl.constexpr):
    """Change single logits in place. Grid: edited rows, blocks of the longest list.

    rows int64 [M]. pairs int64: id in the high half, fp32 in the low one; row m's are [starts[m], starts[m + 1]).
    kind 0: repetition, frequency and presence penalties [M, 3], the fp32 a count. 1: it is added. 2: -inf is set.
    """
    at = tl.program_id(0).to(tl.int64)
    row, end = tl.load(rows + at), tl.load(starts + at + 1)
    i = tl.load(starts + at) + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(pairs + i, mask=i < end, other=0)
    place = logits + row * vocab + (pair >> 32)
    logit, number = tl.load(place, mask=i < end, other=0.0), _low_number(pair)
    if kind == PENALTY:
        repetition, frequency = tl.load(penalties + 3 * at), tl.load(penalties + 3 * at + 1)
        presence = tl.load(penalties + 3 * at + 2)
        repeated = tl.where(
            logit > 0.0, tl.div_rn(logit, tl.zeros([BLOCK], tl.float32) + repetition), logit * repetition
        )
        less = repeated - frequency * number
        tl.store(place, tl.where(number > 0.0, less - presence, repeated), mask=i < end)
    else:
        tl.store(place, tl.where(kind == BIAS, logit + number, NOTHING), mask=i < end)


@triton.jit(do_not_specialize=["words"], do_not_specialize_on_alignment=["rows", "forced", "masks"])
def mask_logits(logits, rows, forced, masks, words, vocab, BLOCK: tl.constexpr):
    """-inf where a row's mask has no bit, and for all but a forced token. Grid: masked rows, blocks of the vocabulary.

    rows, forced int64 [M], -1 forces none; masks int32 [M, words], whose words behind the last allow what they like.
    """
    at = tl.program_id(0).to(tl.int64)
    row, token = tl.load(rows + at), tl.load(forced + at)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(masks + at * words + i // WORD_BITS, mask=i < vocab, other=0)
    logit = tl.load(logits + row * vocab + i, mask=i < vocab, other=NOTHING)
    allowed = tl.where(((word >> (i % WORD_BITS)) & 1) != 0, logit, NOTHING)
    kept = tl.where(allowed == NOTHING, 0.0, allowed)
    only = tl.where(i == token, kept, NOTHING)
    tl.store(logits + row * vocab + i, tl.where(token >= 0, only, allowed), mask=i < vocab)
