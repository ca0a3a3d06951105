"""Logprobs of whole rows: the best next tokens of beams, and the scores of given tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rayline.kernels.sampling import RowLogprobs, SamplingRows


def candidates(logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    scores = logits.float().log_softmax(-1)
    for row, tokens in enumerate(rows.suppressed):
        scores[row, list(tokens)] = -torch.inf
    return [_best(row, count) for row, count in zip(scores, most, strict=True)]


def score(logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[RowLogprobs]:
    scores = logits.float().log_softmax(-1)
    return [
        RowLogprobs(float(row[token]), _best(row, count))
        for row, token, count in zip(scores, token_ids, tops, strict=True)
    ]


def _best(row: Tensor, count: int) -> tuple[tuple[int, float], ...]:
    order = row.sort(descending=True, stable=True).indices[:count].tolist()
    return tuple(zip(order, row[order].tolist(), strict=True))
