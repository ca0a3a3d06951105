"""Logits to tokens, logprobs and beams' candidates on GPUs: nothing waits for the device before the results are read.

edits --> best --> draw      rows that nothing truncates: one launch
               --> tally, gather, draw      truncated rows
raw logits     --> tally, gather, rank      rows whose logprobs are wanted, of prompts too
logprobs --> edits --> tally, gather, rank  beams
                   all of it              --> one transfer to the host
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rayline.kernels.coming_rows import ComingRows, candidates_of, ranked_of, some_ranked_of
from rayline.kernels.sampling import Candidate, RowLogprobs, SampledRows, SamplingRows, named
from rayline.kernels.transfer import to_device, whole_numbers
from rayline.kernels.triton_edits import edited
from rayline.kernels.triton_sampling import draw
from rayline.kernels.triton_truncation import Logits, best_tokens, draw_truncated, rules_of


def sample(logits: Tensor, rows: SamplingRows, units: int) -> SampledRows:
    """One token for each row of fp32 [N, V], as `kernels.sampling.sample` gives it. Nothing is waited for.

    units: processors to fill with programs; the results do not depend on it.
    """
    raw = logits.contiguous()
    allowed = Logits.of(edited(raw, rows.edits), units)
    token_ids, values = _drawn(allowed, rows)
    token_ids = token_ids.clamp(max=logits.shape[1] - 1)  # of rows with nothing left, which mean nothing
    logprobs: Sequence[RowLogprobs | None] = (None,) * len(rows)
    asked = [i for i, wanted in enumerate(rows.logprobs) if wanted is not None]
    if asked:
        table = allowed if allowed.values is raw else Logits.of(raw, units)
        index = to_device(whole_numbers(asked), logits.device)
        told = _ranked(table, asked, token_ids[index], max(rows.logprobs[i] or 0 for i in asked))
        logprobs = ComingRows(told, len(rows), partial(some_ranked_of, wanted=rows.logprobs))
    return SampledRows(token_ids if allowed.values is raw else named(token_ids, values), logprobs)


def score(logits: Tensor, token_ids: Sequence[int], tops: Sequence[int], units: int) -> Sequence[RowLogprobs]:
    """`kernels.sampling.score`. Nothing is waited for."""
    ids = to_device(whole_numbers(token_ids), logits.device)
    told = _ranked(Logits.of(logits, units), range(len(token_ids)), ids, max(tops))
    return ComingRows(told, len(token_ids), partial(ranked_of, counts=tops))


def best_candidates(
    logits: Tensor, rows: SamplingRows, most: Sequence[int], units: int
) -> Sequence[tuple[Candidate, ...]]:
    """`kernels.sampling.best_candidates`. Nothing is waited for."""
    raw, everyone = Logits.of(logits, units), range(len(rows))
    zeros = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
    own = best_tokens(raw, everyone, raw.values.argmax(-1), 0)[1][:, :1]  # the best token's logprob
    best = raw.best[:, None]
    below = torch.where(raw.values == best, 0.0, raw.values - best)
    table = Logits.of(edited(below + own.float(), rows.edits), units)
    ids, values = best_tokens(table, everyone, zeros, min(max(most), logits.shape[1]), is_logprob=False)
    told = torch.cat((ids[:, 1:].flatten(), values[:, 1:].flatten().view(torch.int64)))
    return ComingRows(told, len(rows), partial(candidates_of, most=most))


def _drawn(allowed: Logits, rows: SamplingRows) -> tuple[Tensor, Tensor]:
    """A token of each row, int64 [N], and its value, fp64 [N]."""
    cut = [i for i in range(len(rows)) if rows.temperature[i] != 0.0 and rows.is_truncated(i)]
    if not cut:
        return draw(allowed, rows, range(len(rows)))
    truncated = draw_truncated(allowed, rules_of(rows, cut, allowed.values.device))
    if len(cut) == len(rows):
        return truncated
    whole = sorted(set(range(len(rows))).difference(cut))
    ids, values = (torch.cat(pair) for pair in zip(draw(allowed, rows, whole), truncated, strict=True))
    places = sorted(range(len(rows)), key=[*whole, *cut].__getitem__)
    index = to_device(whole_numbers(places), ids.device)
    return ids[index], values[index]


def _ranked(logits: Logits, at: Sequence[int], token_ids: Tensor, most: int) -> Tensor:
    """Ids and logprobs of one token a row and of its best, as int64 [2 * M * (1 + most)]."""
    ids, values = best_tokens(logits, at, token_ids, min(most, logits.values.shape[1]))
    return torch.cat((ids.flatten(), values.flatten().view(torch.int64)))
