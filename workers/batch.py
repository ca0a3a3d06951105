"""A plan as tensors: what each sequence's tokens, blocks and positions are on one rank."""

from collections.abc import Sequence as Run

import torch
from torch import Tensor

from rayline.kernels.context import ForwardContext
from rayline.protos.plan import Slice
from rayline.workers.resident import Residents


def input_ids(slices: Run[Slice], residents: Residents, device: torch.device) -> Tensor:
    """The packed token ids of a plan, int64 [T]. All of them are known by now on the first stage."""
    ids: list[int] = []
    for item in slices:
        ids += residents[item.sequence].token_ids[item.start : item.start + item.count]
    return torch.tensor(ids, dtype=torch.int64, device=device)


def forward_context(
    slices: Run[Slice], residents: Residents, block_tokens: int, device: torch.device
) -> ForwardContext:
    """Positions, slots and tables of a plan's slices, packed in plan order."""
    positions: list[int] = []
    slots: list[int] = []
    starts, lens, wanted = [0], [], []
    tables = [residents[item.sequence].table for item in slices]
    for item, table in zip(slices, tables, strict=True):
        end = item.start + item.count
        positions.extend(range(item.start, end))
        slots.extend(table[p // block_tokens] * block_tokens + p % block_tokens for p in range(item.start, end))
        starts.append(starts[-1] + item.count)
        lens.append(end)
        if item.samples:
            wanted.append(starts[-1] - 1)
    width = max(-(-n // block_tokens) for n in lens)
    rows = [table[:width] + [0] * (width - len(table)) for table in tables]
    return ForwardContext(
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        slots=torch.tensor(slots, dtype=torch.int64, device=device),
        starts=tuple(starts),
        lens=tuple(lens),
        tables=torch.tensor(rows, dtype=torch.int32, device=device),
        wanted=torch.tensor(wanted, dtype=torch.int64, device=device),
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
