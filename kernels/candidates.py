"""Tokens that may win a row's draw, and the draw: argmax(score + noise).

Adding Gumbel noise to logits and taking the largest samples exactly from their softmax (Gumbel, 1954;
Maddison, Tarlow, Minka, "A* sampling", 2014).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.philox import NOISE_MAX, NOISE_MIN, SAMPLE, gumbel, noise_words

WORDS = 4  # vocabulary ids that share one Philox block
_SPARSE = 8  # below 1 / _SPARSE of the vocabulary, noise is drawn id by id
_LOG_WORDS = 32 * math.log(2)
_SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class Candidates:
    """Flat lists over all rows.

    row    int64 [M]   row of the batch
    token  int64 [M]   vocabulary id
    score  fp64 [M]    (logit - the row's best logit) / temperature, so 0 at best
    word   int64 [M]   32 bits of noise
    """

    row: Tensor
    token: Tensor
    score: Tensor
    word: Tensor


@dataclass(frozen=True, slots=True)
class Draw:
    """Where rows' noise comes from: int64 [R] each, on the logits' device."""

    seed: Tensor
    position: Tensor


def scores(logits: Tensor, best: Tensor, temperature: Tensor) -> Tensor:
    """(logits - best) / temperature in fp64; 0 where a logit equals the best, infinite ones too."""
    return torch.where(logits == best, 0.0, (logits.double() - best.double()) / temperature)


def contenders(logits: Tensor, temperature: Tensor, draw: Draw) -> Iterator[Candidates]:
    """All tokens of untruncated rows that noise can carry to the top: fp32 [R, V], fp64 [R].

    The best logit ends at NOISE_MIN or above and any other at its score + NOISE_MAX or below, so a score
    below NOISE_MIN - NOISE_MAX cannot win. Rows with few scores above draw noise for those alone.
    """
    best = logits.amax(-1, keepdim=True)
    floor = best.double() + (NOISE_MIN - NOISE_MAX) * temperature[:, None]
    below = torch.nextafter(floor.float(), torch.tensor(-torch.inf, device=logits.device))
    possible = logits >= below
    few = possible.sum(-1) * _SPARSE < logits.shape[-1]
    sparse, dense = few.nonzero()[:, 0], (~few).nonzero()[:, 0]
    if len(sparse):
        at, token = possible[sparse].nonzero(as_tuple=True)
        row = sparse[at]
        yield chosen(row, token, scores(logits[row, token], best[row, 0], temperature[row]), draw)
    if len(dense):
        yield _lucky(logits, best, temperature, draw, dense)


def _lucky(logits: Tensor, best: Tensor, temperature: Tensor, draw: Draw, rows: Tensor) -> Candidates:
    """Tokens of `rows` whose noise can carry them past the best logit at its unluckiest.

    score + noise >= NOISE_MIN and v <= -log1p(-v) = exp(-noise) give v <= exp(score - NOISE_MIN): few
    words are so small, and only theirs become fp64 noise. The bound is loosened by more than fp32 errs.
    """
    vocab = logits.shape[-1]
    block = torch.arange(-(-vocab // WORDS), device=logits.device)
    words = noise_words(draw.seed[rows, None], draw.position[rows, None], block, SAMPLE).flatten(1)[:, :vocab]
    some, top, scale = logits[rows], best[rows], temperature[rows, None].float()
    limit = torch.where(some == top, 0.0, (some - top) / scale).add_(_LOG_WORDS - NOISE_MIN + _SLACK).exp_()
    at, token = (words <= limit).nonzero(as_tuple=True)
    score = scores(some[at, token], top[at, 0], temperature[rows[at]])
    return Candidates(rows[at], token, score, words[at, token])


def chosen(row: Tensor, token: Tensor, score: Tensor, draw: Draw) -> Candidates:
    """Candidates that a truncation has already chosen: flat lists, as in `Candidates`."""
    words = noise_words(draw.seed[row], draw.position[row], token // WORDS, SAMPLE)
    return Candidates(row, token, score, words.gather(-1, (token % WORDS)[:, None])[:, 0])


def winners(candidates: Sequence[Candidates], rows: int) -> Tensor:
    """The token of the largest score + noise of each row, ties to the lowest id: int64 [rows].

    Every row must have a candidate. Maximum and minimum are exact in any order.
    """
    row, token, score, word = (
        torch.cat(parts) for parts in zip(*((c.row, c.token, c.score, c.word) for c in candidates), strict=True)
    )
    value = score + gumbel(word)
    top = torch.full((rows,), -torch.inf, dtype=value.dtype, device=value.device)
    top = top.scatter_reduce(0, row, value, "amax")
    wins = value == top[row]
    none = torch.full((rows,), torch.iinfo(torch.int64).max, device=row.device)
    return none.scatter_reduce(0, row[wins], token[wins], "amin")
