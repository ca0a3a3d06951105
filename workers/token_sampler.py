"""Logits of which each rank of the last stage holds a part, to tokens that all of them know.

A rank reduces its own part to a few numbers and only these are exchanged: the best logit and the best draw of a row,
and a sum for its logprobs. Rows that are cut by top-k, top-p or min-p are gathered whole.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from rayline.kernels.backend import Kernels
from rayline.kernels.native_edits import NativeEdits
from rayline.kernels.native_kernels import NativeKernels
from rayline.kernels.native_sampling import Draws, Limits, NativeReductions, Part, column
from rayline.kernels.sampling import (
    Candidate,
    RowLogprobs,
    SampledRows,
    SamplingRows,
    best_candidates,
    named,
    sample,
    score,
)
from rayline.kernels.tree import join_pairwise
from rayline.kernels.truncation import least_score
from rayline.kernels.vocabulary import LEAVES, vocab_segment, vocab_share
from rayline.workers.collectives import Alone, Collective


class TokenSampler(Protocol):
    """Every rank of the stage samples the same rows in the same order. What comes beside token ids is to be read once
    the device has passed a mark made behind the call."""

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        """One token for each row of fp32 [N, share]: this rank's part of the vocabulary, as `vocab_share` cuts it.

        It may write over the rows."""
        ...

    def candidates(self, logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> Sequence[tuple[Candidate, ...]]:
        """(id, value) of each row's `most` best tokens for beams: see `best_candidates`."""
        ...

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> Sequence[RowLogprobs]:
        """The logprob of one token a row under the raw logits, and those of its `tops` best."""
        ...


def token_sampler(kernels: Kernels, collective: Collective, vocab_size: int, tp_rank: int) -> TokenSampler:
    """The sampler that fits the kernels."""
    if isinstance(kernels, NativeKernels):
        return NativeSampler(kernels, collective, vocab_size, tp_rank)
    if isinstance(kernels, DrawingKernels):
        return DeviceSampler(kernels, collective, vocab_size)
    return TorchSampler(collective, vocab_size)


class TorchSampler:
    """Gathers whole rows and samples them on every rank."""

    def __init__(self, collective: Collective, vocab_size: int) -> None:
        self._collective = collective
        self._vocab_size = vocab_size

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        return sample(self._whole(logits), rows)

    def candidates(self, logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> Sequence[tuple[Candidate, ...]]:
        return best_candidates(self._whole(logits), rows, most)

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> Sequence[RowLogprobs]:
        return score(self._whole(logits), token_ids, tops)

    def _whole(self, logits: Tensor) -> Tensor:
        return self._collective.gather_columns(logits)[:, : self._vocab_size]


@runtime_checkable
class DrawingKernels(Protocol):
    """Kernels that sample whole rows, fp32 [N, V], on their device. Nothing waits for it."""

    def draw(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        """As `TokenSampler.sample`."""
        ...

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> Sequence[RowLogprobs]:
        """As `TokenSampler.score`."""
        ...

    def candidates(self, logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> Sequence[tuple[Candidate, ...]]:
        """As `TokenSampler.candidates`."""
        ...


class DeviceSampler:
    """Gathers whole rows; every rank samples them on its device, and nothing waits for it."""

    def __init__(self, kernels: DrawingKernels, collective: Collective, vocab_size: int) -> None:
        self._kernels = kernels
        self._collective = collective
        self._vocab_size = vocab_size

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        return self._kernels.draw(self._whole(logits), rows)

    def candidates(self, logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> Sequence[tuple[Candidate, ...]]:
        return self._kernels.candidates(self._whole(logits), rows, most)

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> Sequence[RowLogprobs]:
        return self._kernels.score(self._whole(logits), token_ids, tops)

    def _whole(self, logits: Tensor) -> Tensor:
        return self._collective.gather_columns(logits)[:, : self._vocab_size]


class NativeSampler:
    """Reduces parts in C++. Bits depend on neither tp (1, 2, 4, 8) nor threads nor the rows beside a row."""

    def __init__(self, kernels: NativeKernels, collective: Collective, vocab_size: int, tp_rank: int) -> None:
        share = vocab_share(vocab_size, collective.tp_size)
        self._reductions = NativeReductions(kernels.operations, vocab_segment(vocab_size))
        self._edits = NativeEdits(kernels.operations)
        self._collective = collective
        self._vocab_size = vocab_size
        self._is_cut_evenly = LEAVES % collective.tp_size == 0
        self._first = min(tp_rank * share, vocab_size)
        self._size = min(share, vocab_size - self._first)

    def sample(self, logits: Tensor, rows: SamplingRows) -> SampledRows:
        step, everyone = self._step(logits), range(len(rows))
        is_edited = any(edit is not None for edit in rows.edits)
        take_back = self._edits.make(step.part, rows.edits) if is_edited else None
        best = step.best(everyone)
        token_ids = step.tokens(rows, best).to(torch.int64)
        shown = token_ids if take_back is None else named(token_ids, best[:, 0])
        asked = [i for i in everyone if rows.logprobs[i] is not None]
        logprobs: list[RowLogprobs | None] = [None] * len(rows)
        if asked:
            if take_back is not None:
                take_back()
                best = step.best(everyone)
            counts = [rows.logprobs[i] or 0 for i in asked]
            for i, found in zip(asked, step.logprobs(asked, best[asked, 0], token_ids[asked], counts), strict=True):
                logprobs[i] = found
        return SampledRows(shown, tuple(logprobs))

    def candidates(self, logits: Tensor, rows: SamplingRows, most: Sequence[int]) -> Sequence[tuple[Candidate, ...]]:
        step = self._step(logits)
        values = step.log_softmax()
        self._edits.make(values.part, rows.edits)
        top = values.top(range(len(rows)), min(max(most), self._vocab_size)).tolist()
        return [
            tuple((int(token), value) for value, token in pairs[:count] if value > -torch.inf)
            for pairs, count in zip(top, most, strict=True)
        ]

    def score(self, logits: Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> Sequence[RowLogprobs]:
        step, everyone = self._step(logits), range(len(token_ids))
        return list(step.logprobs(everyone, step.best(everyone)[:, 0], torch.tensor(token_ids), tops))

    def _step(self, logits: Tensor) -> "_Step":
        if self._is_cut_evenly:
            part = Part(logits, self._size, self._first)
            return _Step(self._reductions, self._collective, part, self._vocab_size)
        whole = Part(self._collective.gather_columns(logits), self._vocab_size)
        return _Step(self._reductions, Alone(), whole, self._vocab_size)


class _Step:
    """The rows of one step on one rank."""

    def __init__(self, reductions: NativeReductions, collective: Collective, part: Part, vocab_size: int) -> None:
        self._reductions = reductions
        self._collective = collective
        self._vocab_size = vocab_size
        self.part = part

    def best(self, at: Sequence[int]) -> Tensor:
        """The largest logits and their ids: fp64 [M, 2]."""
        return self._winner(self._reductions.best(self.part, torch.tensor(at)))

    def tokens(self, rows: SamplingRows, best: Tensor) -> Tensor:
        """The ids to sample: fp64 [N]."""
        noisy = [i for i in range(len(rows)) if rows.temperature[i] != 0.0]
        whole = [i for i in noisy if not rows.is_truncated(i)]
        cut = [i for i in noisy if rows.is_truncated(i)]
        tokens = best[:, 1].clone()
        if whole:
            draws, top = draws_of(rows, whole), best[whole, 0].contiguous()
            tokens[whole] = self._winner(self._reductions.draw(self.part, torch.tensor(whole), top, draws))[:, 1]
        if cut:
            tokens[cut] = self._draw_kept(rows, cut, best[cut, 0].contiguous())
        return tokens

    def _draw_kept(self, rows: SamplingRows, at: list[int], best: Tensor) -> Tensor:
        """Ids of truncated rows, which every rank draws from the whole row: fp64 [M]."""
        part, index = self.part, torch.tensor(at)
        if self._collective.tp_size > 1:
            part = Part(self._collective.gather_columns(part.logits[index]), self._vocab_size)
            index = torch.arange(len(at))
        return self._reductions.draw_kept(part, index, best, draws_of(rows, at), limits_of(rows, at))[:, 1]

    def log_softmax(self) -> "_Step":
        """The same rows as logprobs."""
        index = torch.arange(len(self.part.logits))
        best = self.best(range(len(index)))[:, 0].contiguous()
        values = self._reductions.log_softmax(self.part, index, best, self._total(index, best))
        part = Part(values, self.part.size, self.part.first)
        return _Step(self._reductions, self._collective, part, self._vocab_size)

    def logprobs(
        self, at: Sequence[int], best: Tensor, token_ids: Tensor, tops: Sequence[int]
    ) -> Iterator[RowLogprobs]:
        """One token's of each row `at`, whose best logits are `best`, and those of its best."""
        index, best = torch.tensor(at), best.contiguous()
        counts = [min(count, self._vocab_size) for count in tops]
        top = self.top(at, max(counts))
        logits = torch.cat((self._logits_of(index, token_ids)[:, None], top[..., 0]), dim=1)
        values = self._reductions.logprobs(logits, best, self._total(index, best))
        for row, ids, count in zip(values.tolist(), top[..., 1].long().tolist(), counts, strict=True):
            yield RowLogprobs(row[0], tuple(zip(ids[:count], row[1 : count + 1], strict=True)))

    def _total(self, index: Tensor, best: Tensor) -> Tensor:
        """Sums of exp(logit - best): fp64 [M]."""
        mine = self._reductions.exp_sum(self.part, index, best, torch.ones_like(best))
        return join_pairwise(self._by_rank(mine[:, None]))[:, 0]

    def top(self, at: Sequence[int], most: int) -> Tensor:
        """[M, most, 2]: the best of all ranks. Ranks come in order of their ids, so equals stay in order."""
        if most == 0:
            return torch.empty(len(at), 0, 2, dtype=torch.float64)
        mine = self._reductions.top(self.part, torch.tensor(at), most)
        if self._collective.tp_size == 1:
            return mine
        found = self._by_rank(mine).transpose(0, 1).flatten(1, 2)
        order = found[..., 0].sort(dim=1, descending=True, stable=True).indices[:, :most]
        return found.gather(1, order[..., None].expand(-1, -1, 2))

    def _logits_of(self, index: Tensor, token_ids: Tensor) -> Tensor:
        """fp64 [M]: the logits of one token a row, which one rank holds."""
        local = token_ids - self.part.first
        is_mine = (local >= 0) & (local < self.part.size)
        mine = self.part.logits[index, local.where(is_mine, 0)].double().where(is_mine, -torch.inf)
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


def draws_of(rows: SamplingRows, at: Sequence[int]) -> Draws:
    """The noise of the rows `at`."""
    return Draws(
        column(rows.seed, at, torch.int64),
        column(rows.position, at, torch.int64),
        column(rows.temperature, at, torch.float64),
    )


def limits_of(rows: SamplingRows, at: Sequence[int]) -> Limits:
    """What cuts the rows `at`."""
    return Limits(
        top_n_sigma=column(rows.top_n_sigma, at, torch.float64),
        top_k=column(rows.top_k, at, torch.int64),
        top_p=column(rows.top_p, at, torch.float64),
        least_score=column([least_score(p) for p in rows.min_p], at, torch.float64),
        typical_p=column(rows.typical_p, at, torch.float64),
    )
