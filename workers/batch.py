"""A plan as tensors: what each sequence's tokens, blocks and positions are on one rank."""

from collections.abc import Sequence as Run
from dataclasses import dataclass

import numpy as np
import torch

from rayline.kernels.context import ForwardContext
from rayline.kernels.transfer import to_device
from rayline.protos.plan import Slice
from rayline.workers.resident import Residents


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """Prompt tokens [start, end) of a sequence, whose logprobs are wanted: the rows are those of the tokens before."""

    sequence: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose logits a step wants, in the order of their rows: first those of sequences that sample, then those of
    beams, then those of prompt tokens. Choices that fork have the packed token of their trunk again.

    tokens: the packed token of each row.
    """

    tokens: tuple[int, ...]
    sampling: tuple[int, ...]
    beams: tuple[int, ...]
    scored: tuple[ScoredRun, ...]


def wanted(slices: Run[Slice], residents: Residents) -> Wanted:
    """What the slices of a plan ask of the last stage."""
    sampling: list[tuple[int, int]] = []
    beams: list[tuple[int, int]] = []
    scored: list[ScoredRun] = []
    before: list[int] = []
    end = 0
    for item in slices:
        resident = residents[item.sequence]
        if item.scores and (run := _scored(item, resident.prompt_tokens)):
            before += range(end, end + run.end - run.start)
            scored.append(run)
        end += item.count
        if item.samples:
            rows = beams if resident.params.beam_width else sampling
            rows += [(number, end - 1) for number in (item.sequence, *item.forks)]
    return Wanted(
        tokens=(*(row for _, row in sampling), *(row for _, row in beams), *before),
        sampling=tuple(number for number, _ in sampling),
        beams=tuple(number for number, _ in beams),
        scored=tuple(scored),
    )


def _scored(item: Slice, prompt_tokens: int) -> ScoredRun | None:
    first, end = item.start + 1, min(item.start + item.count + 1, prompt_tokens)
    return ScoredRun(item.sequence, first, end) if first < end else None


def forward_context(
    slices: Run[Slice], residents: Residents, wanted_tokens: Run[int], block_tokens: int, device: torch.device
) -> ForwardContext:
    """Positions, slots and tables of a plan's slices, packed in plan order."""
    positions: list[int] = []
    slots: list[int] = []
    starts, lens = [0], []
    tables = [residents[item.sequence].table for item in slices]
    for item, table in zip(slices, tables, strict=True):
        end = item.start + item.count
        positions.extend(range(item.start, end))
        slots.extend(table[p // block_tokens] * block_tokens + p % block_tokens for p in range(item.start, end))
        starts.append(starts[-1] + item.count)
        lens.append(end)
    width = max(-(-n // block_tokens) for n in lens)
    rows = np.zeros((len(tables), width), dtype=np.int32)  # a long table is copied, not walked
    for row, table in zip(rows, tables, strict=True):
        known = min(len(table), width)
        row[:known] = np.frombuffer(table, dtype=np.int32, count=known)
    return ForwardContext(
        positions=to_device(torch.tensor(positions, dtype=torch.int64), device),
        slots=to_device(torch.tensor(slots, dtype=torch.int64), device),
        starts=tuple(starts),
        lens=tuple(lens),
        tables=to_device(torch.from_numpy(rows), device),
        wanted=to_device(torch.tensor(wanted_tokens, dtype=torch.int64), device),
    )


def idle_tokens(sequences: int, device: torch.device) -> ForwardContext:
    """A decode step of tokens that only fill a batch: their slots take nothing."""
    order = torch.arange(sequences, dtype=torch.int64, device=device)
    return ForwardContext(
        positions=torch.zeros_like(order),
        slots=torch.full_like(order, -1),
        starts=tuple(range(sequences + 1)),
        lens=(1,) * sequences,
        tables=torch.zeros((sequences, 1), dtype=torch.int32, device=device),
        wanted=order,
    )


def first_tokens(sequences: int, slot_tokens: int, device: torch.device) -> ForwardContext:
    """The step that computes the first token of sequences 0, 1, 2 .. in the slots of these numbers."""
    order = torch.arange(sequences, dtype=torch.int64, device=device)
    return ForwardContext(
        positions=torch.zeros_like(order),
        slots=order * slot_tokens,
        starts=tuple(range(sequences + 1)),
        lens=(1,) * sequences,
        tables=order.to(torch.int32)[:, None].clone(),
        wanted=order,
    )
