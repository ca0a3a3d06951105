"""Logits of which each rank of the last stage holds a part, to tokens that all of them know.

A rank reduces its own part to a few numbers and only these are exchanged: the best logit and the best draw of a row,
and a sum for its logprobs. Rows that are cut by top-k, top-p or min-p are gathered whole.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from rayline.kernels.backend import Kernels
from rayline.kernels.edits import edited
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.native_sampling import Draws, Limits, NativeReductions, Part, column
from rayline.kernels.sampling import RowLogprobs, SampledRows, SamplingRows, best_candidates, sample, score
from rayline.kernels.tree import join_pairwise
from rayline.kernels.vocabulary import LEAVES, vocab_segment, vocab_share
from rayline.workers.collectives import Alone, Collective


class TokenSampler(Protocol):
    """Every rank of the stage samples the same rows in the same order."""

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        """One token for each row of fp32 [N, share]: this rank's part of the vocabulary, as `vocab_share` cuts it."""
        ...

    def candidates(
        self, logits: Tensor, rows: SamplingRows, most: Sequence[int]
    ) -> list[tuple[tuple[int, float], ...]]:
        """(id, value) of each row's `most` best tokens for beams: see `best_candidates`."""
        ...

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[RowLogprobs]:
        """The logprob of one token a row under the raw logits, and those of its `tops` best."""
        ...


def token_sampler(kernels: Kernels, collective: Collective, vocab_size: int, tp_rank: int) -> TokenSampler:
    """The sampler that fits the kernels."""
    if isinstance(kernels, NativeKernels):
        return NativeSampler(kernels, collective, vocab_size, tp_rank)
    return TorchSampler(collective, vocab_size)


class TorchSampler:
    """Gathers whole rows and samples them on every rank."""

    def __init__(self, collective: Collective, vocab_size: int) -> None:
        self._collective = collective
        self._vocab_size = vocab_size

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        return sample(self._whole(logits), rows)

    def candidates(
        self, logits: Tensor, rows: SamplingRows, most: Sequence[int]
    ) -> list[tuple[tuple[int, float], ...]]:
        return best_candidates(self._whole(logits), rows, most)

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[RowLogprobs]:
        return score(self._whole(logits), token_ids, tops)

    def _whole(self, logits: Tensor) -> Tensor:
        return self._collective.gather_columns(logits)[:, : self._vocab_size]


class NativeSampler:
    """Reduces parts in C++. Bits depend on neither tp (1, 2, 4, 8) nor threads nor the rows beside a row."""

    def __init__(self, kernels: NativeKernels, collective: Collective, vocab_size: int, tp_rank: int) -> None:
        share = vocab_share(vocab_size, collective.tp_size)
        self._reductions = NativeReductions(kernels.operations, vocab_segment(vocab_size))
        self._collective = collective
        self._vocab_size = vocab_size
        self._is_cut_evenly = LEAVES % collective.tp_size == 0
        self._first = min(tp_rank * share, vocab_size)
        self._size = min(share, vocab_size - self._first)

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        if self._is_cut_evenly and not any(rows.edits):
            part = Part(logits, self._size, self._first)
            return _Step(self._reductions, self._collective, part, part, rows).sample(self._vocab_size)
        raw = Part(self._collective.gather_columns(logits), self._vocab_size)
        part = Part(edited(raw.logits[:, : self._vocab_size], rows.edits), self._vocab_size) if any(rows.edits) else raw
        return _Step(self._reductions, Alone(), part, raw, rows).sample(self._vocab_size)

    def candidates(
        self, logits: Tensor, rows: SamplingRows, most: Sequence[int]
    ) -> list[tuple[tuple[int, float], ...]]:
        whole = self._collective.gather_columns(logits)[:, : self._vocab_size]
        return best_candidates(whole, rows, most)

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[RowLogprobs]:
        whole = self._collective.gather_columns(logits)[:, : self._vocab_size]
        return score(whole, token_ids, tops)


class _Step:
    """The rows of one step on one rank."""

    def __init__(
        self, reductions: NativeReductions, collective: Collective, part: Part, raw: Part, rows: SamplingRows
    ) -> None:
        self._reductions = reductions
        self._collective = collective
        self._part = part
        self._raw = raw
        self._rows = rows

    def sample(self, vocab_size: int) -> SampledRows:
        rows, everyone = self._rows, range(len(self._rows))
        noisy = [i for i in everyone if rows.temperature[i] != 0.0]
        whole = [i for i in noisy if not rows.is_truncated(i)]
        cut = [i for i in noisy if rows.is_truncated(i)]
        best = self._best(self._part, everyone)
        tokens = best[:, 1].clone()
        if whole:
            tokens[whole] = self._draw(whole, best[whole, 0].contiguous())
        if cut:
            tokens[cut] = self._draw_kept(cut, best[cut, 0].contiguous(), vocab_size)
        token_ids = tokens.to(torch.int64)
        asked = [i for i in everyone if rows.logprobs[i] is not None]
        logprobs: list[RowLogprobs | None] = [None] * len(rows)
        if asked:
            for i, found in zip(asked, self._logprobs(asked, token_ids[asked], vocab_size), strict=True):
                logprobs[i] = found
        return SampledRows(token_ids, tuple(logprobs))

    def _best(self, part: Part, at: Sequence[int]) -> Tensor:
        return self._winner(self._reductions.best(part, torch.tensor(at)))

    def _draw(self, at: list[int], best: Tensor) -> Tensor:
        """Ids of untruncated rows: fp64 [M]."""
        return self._winner(self._reductions.draw(self._part, torch.tensor(at), best, self._draws(at)))[:, 1]

    def _draw_kept(self, at: list[int], best: Tensor, vocab_size: int) -> Tensor:
        """Ids of truncated rows, which every rank draws from the whole row: fp64 [M]."""
        part, index = self._part, torch.tensor(at)
        if self._collective.tp_size > 1:
            part = Part(self._collective.gather_columns(part.logits[index]), vocab_size)
            index = torch.arange(len(at))
        rows = self._rows
        limits = Limits(
            column(rows.top_k, at, torch.int64),
            column(rows.top_p, at, torch.float64),
            column(rows.min_p, at, torch.float64),
        )
        return self._reductions.draw_kept(part, index, best, self._draws(at), limits)[:, 1]

    def _draws(self, at: list[int]) -> Draws:
        rows = self._rows
        return Draws(
            column(rows.seed, at, torch.int64),
            column(rows.position, at, torch.int64),
            column(rows.temperature, at, torch.float64),
        )

    def _logprobs(self, at: list[int], token_ids: Tensor, vocab_size: int) -> Iterator[RowLogprobs]:
        """Of the raw logits: the sampled token's, and those of the best by (logit descending, id ascending)."""
        index = torch.tensor(at)
        counts = [min(self._rows.logprobs[i] or 0, vocab_size) for i in at]
        best = self._best(self._raw, at)[:, 0].contiguous()
        ones = torch.ones_like(best)
        total = join_pairwise(self._by_rank(self._reductions.exp_sum(self._raw, index, best, ones)[:, None]))[:, 0]
        top = self._top(index, max(counts))
        logits = torch.cat((self._logits_of(index, token_ids)[:, None], top[..., 0]), dim=1)
        values = self._reductions.logprobs(logits, best, total)
        for row, ids, count in zip(values.tolist(), top[..., 1].long().tolist(), counts, strict=True):
            yield RowLogprobs(row[0], tuple(zip(ids[:count], row[1 : count + 1], strict=True)))

    def _top(self, index: Tensor, most: int) -> Tensor:
        """[M, most, 2]: the best of all ranks. Ranks come in order of their ids, so equals stay in order."""
        if most == 0:
            return torch.empty(len(index), 0, 2, dtype=torch.float64)
        found = self._by_rank(self._reductions.top(self._raw, index, most)).transpose(0, 1).flatten(1, 2)
        order = found[..., 0].sort(dim=1, descending=True, stable=True).indices[:, :most]
        return found.gather(1, order[..., None].expand(-1, -1, 2))

    def _logits_of(self, index: Tensor, token_ids: Tensor) -> Tensor:
        """fp64 [M]: the logits of one token a row, which one rank holds."""
        local = token_ids - self._raw.first
        is_mine = (local >= 0) & (local < self._raw.size)
        mine = self._raw.logits[index, local.where(is_mine, 0)].double().where(is_mine, -torch.inf)
        return self._by_rank(mine[:, None]).amax(0)[:, 0]

    def _winner(self, found: Tensor) -> Tensor:
        """Of the ranks' pairs [M, 2] the larger ones, at equal values the one of the lowest id."""
        if self._collective.tp_size == 1:
            return found
        value, token = self._by_rank(found).unbind(-1)
        top = value.amax(0)
        return torch.stack((top, token.where(value == top, torch.inf).amin(0)), dim=-1)

    def _by_rank(self, mine: Tensor) -> Tensor:
        """fp64 [M, ...] of each rank -> [tp, M, ...]."""
        tp_size, rows = self._collective.tp_size, len(mine)
        if tp_size == 1:
            return mine[None]
        words = mine.contiguous().view(torch.float32).view(rows, -1)
        gathered = self._collective.gather_columns(words).contiguous().view(torch.float64)
        return gathered.view(rows, tp_size, *mine.shape[1:]).transpose(0, 1)
