"""Logits to tokens. A row's token is a pure function of its logits, edit, parameters, seed and position.

    score = (logit - best) / temperature        logits as the row's edit leaves them
    token = argmax(score + noise)               over what the truncation keeps; ties to the lowest id

Temperature 0 is the argmax without noise. What else is in the batch changes no bit of a row: rows meet
only in elementwise operations, in maxima, and in sums along one row in one order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rayline.kernels.candidates import Candidates, Draw, chosen, contenders, winners
from rayline.kernels.edits import Edit, edited
from rayline.kernels.truncation import Rules, kept, least_score

NO_TOKEN = -1
Candidate = tuple[int, float]
"""A token and its value."""
_CHUNK_ELEMENTS = 2**18  # logits whose noise is drawn at once: the draw's temporaries stay in the cache


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How each row of a batch is sampled; every tuple has one entry a row.

    temperature 0 is greedy; top_n_sigma, top_k and min_p 0, top_p and typical_p 1 are off. `position` is the absolute
    position of the token being sampled, below 2^32; seeds fill 63 bits. edits: what is done to the logits first.
    logprobs: None, or how many of the best tokens to report beside the sampled one.
    """

    temperature: tuple[float, ...]
    top_k: tuple[int, ...]
    top_p: tuple[float, ...]
    min_p: tuple[float, ...]
    typical_p: tuple[float, ...]
    top_n_sigma: tuple[float, ...]
    seed: tuple[int, ...]
    position: tuple[int, ...]
    edits: tuple[Edit | None, ...]
    logprobs: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.temperature)

    def is_truncated(self, row: int) -> bool:
        return self.top_k[row] > 0 or min(self.top_p[row], self.typical_p[row]) < 1.0 or self._is_cut_below(row)

    def _is_cut_below(self, row: int) -> bool:
        return self.min_p[row] > 0.0 or self.top_n_sigma[row] > 0.0


@dataclass(frozen=True, slots=True)
class RowLogprobs:
    """Natural logarithms of probabilities under the raw logits.

    `top` lists (id, logprob) of the n best tokens by (logprob descending, id ascending).
    """

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class SampledRows:
    """token_ids: int64 [N], NO_TOKEN where edits left a row none. logprobs: one entry a row, None where not wanted.

    Logprobs may still be on their way from a device (kernels/coming_rows.py).
    """

    token_ids: Tensor
    logprobs: Sequence[RowLogprobs | None]


def sample(logits: Tensor, rows: SamplingRows) -> SampledRows:
    """Sample one token for each row of fp32 [N, V]. Logits may be infinite but not NaN."""
    allowed = edited(logits, rows.edits)
    token_ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    greedy = [i for i in range(len(rows)) if rows.temperature[i] == 0.0]
    noisy = [i for i in range(len(rows)) if rows.temperature[i] != 0.0]
    if greedy:
        token_ids[greedy] = _take(allowed, greedy).argmax(-1)
    for part in _chunks(noisy, logits.shape[-1]):
        token_ids[part] = draw(_take(allowed, part), rows, part)
    logprobs = logprobs_of(logits, token_ids, rows)
    return SampledRows(token_ids if allowed is logits else named(token_ids, allowed.amax(-1)), logprobs)


def named(token_ids: Tensor, values: Tensor) -> Tensor:
    """The ids of edited rows, NO_TOKEN where the best value is -inf."""
    return token_ids.where(values > -torch.inf, NO_TOKEN)


def best_candidates(logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> list[tuple[Candidate, ...]]:
    """Of each row of fp32 [N, V] the `most` best (id, value) by (value descending, id ascending), for beams.

    value: the log-softmax of the raw logits, then edited, not normalised again: as `transformers` searches. Tokens
    at -inf are left out.
    """
    logprobs = edited(torch.stack([_log_softmax(row) for row in logits]), rows.edits)
    found = []
    for row, count in zip(logprobs, most, strict=True):
        ids = _best_ids(row, count)
        pairs = zip(ids, row[ids].tolist(), strict=True)
        found.append(tuple((token, value) for token, value in pairs if value > -torch.inf))
    return found


def score(logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[RowLogprobs]:
    """Of each row of fp32 [N, V] the logprob of one token, and its `tops` best."""
    return [_logprobs(row, token, top) for row, token, top in zip(logits, token_ids, tops, strict=True)]


def logprobs_of(logits: Tensor, token_ids: Tensor, rows: SamplingRows) -> tuple[RowLogprobs | None, ...]:
    """What the rows want to know of their tokens, under the raw logits."""
    return tuple(None if n is None else _logprobs(logits[i], int(token_ids[i]), n) for i, n in enumerate(rows.logprobs))


def draw(logits: Tensor, rows: SamplingRows, part: list[int]) -> Tensor:
    """Tokens of the noisy rows `part` of the batch; `logits` [P, V] are theirs."""
    device = logits.device

    def column(values: tuple[float, ...] | tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.tensor([values[i] for i in part], dtype=dtype, device=device)

    rules = Rules(
        temperature=column(rows.temperature, torch.float64),
        top_n_sigma=column(rows.top_n_sigma, torch.float64),
        top_k=column(rows.top_k, torch.int64),
        top_p=column(rows.top_p, torch.float64),
        least_score=column(tuple(least_score(p) for p in rows.min_p), torch.float64),
        typical_p=column(rows.typical_p, torch.float64),
    )
    draw = Draw(seed=column(rows.seed, torch.int64), position=column(rows.position, torch.int64))
    truncated = [at for at, i in enumerate(part) if rows.is_truncated(i)]
    whole = [at for at, i in enumerate(part) if not rows.is_truncated(i)]
    found = [*_whole(logits, rules, draw, whole), *_truncated(logits, rules, draw, truncated)]
    return winners(found, len(part))


def _whole(logits: Tensor, rules: Rules, draw: Draw, at: list[int]) -> Iterator[Candidates]:
    if at:
        index = torch.tensor(at, device=logits.device)
        some = Draw(draw.seed[index], draw.position[index])
        for found in contenders(_take(logits, at), rules.temperature[index], some):
            yield Candidates(index[found.row], found.token, found.score, found.word)


def _truncated(logits: Tensor, rules: Rules, draw: Draw, at: list[int]) -> Iterator[Candidates]:
    if at:
        index = torch.tensor(at, device=logits.device)
        for row, token, score in kept(_take(logits, at), rules.take(index)):
            yield chosen(index[row], token, score, draw)


def _logprobs(logits: Tensor, token_id: int, count: int) -> RowLogprobs:
    """Of one row, fp32 [V]."""
    logprobs = _log_softmax(logits)
    ids = _best_ids(logprobs, count)
    return RowLogprobs(float(logprobs[token_id]), tuple(zip(ids, logprobs[ids].tolist(), strict=True)))


def _log_softmax(logits: Tensor) -> Tensor:
    """Of one row, fp32 [V]. Shifted by the best first, so that infinite logits give no NaN."""
    best = logits.max()
    return torch.where(logits == best, 0.0, logits - best).log_softmax(-1)


def _best_ids(values: Tensor, count: int) -> list[int]:
    """Ids of the `count` largest of [V] by (value descending, id ascending)."""
    count = min(count, len(values))
    if count == 0:
        return []
    least = values.topk(count).values[-1]
    ids = (values >= least).nonzero()[:, 0]
    order = values[ids].sort(dim=-1, descending=True, stable=True).indices[:count]
    best: list[int] = ids[order].tolist()
    return best


def _take(logits: Tensor, rows: list[int]) -> Tensor:
    return logits if len(rows) == len(logits) else logits[rows]


def _chunks(rows: list[int], vocab: int) -> Iterator[list[int]]:
    size = max(1, _CHUNK_ELEMENTS // vocab)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
