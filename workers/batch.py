"""A plan as tensors: what each sequence's tokens, blocks and positions are on one rank."""

from collections.abc import Sequence as Run
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rayline.kernels.context import ForwardContext
from rayline.protos.plan import Admission, Plan, Slice
from rayline.protos.types import SamplingParams


@dataclass(slots=True)
class Resident:
    """What a rank remembers of a sequence between steps. `token_ids` grows by what was sampled."""

    prompt_tokens: int
    token_ids: list[int]
    params: SamplingParams
    table: list[int] = field(default_factory=list)

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_tokens


class Residents:
    """All sequences a rank knows, by number. Follows plans: admit, extend tables, release."""

    def __init__(self) -> None:
        self._by_number: dict[int, Resident] = {}

    def __getitem__(self, number: int) -> Resident:
        return self._by_number[number]

    def __len__(self) -> int:
        return len(self._by_number)

    def gain(self, number: int, token_id: int) -> None:
        """Append a sampled token, unless the sequence was released meanwhile."""
        if (resident := self._by_number.get(number)) is not None:
            resident.token_ids.append(token_id)

    def follow(self, plan: Plan) -> None:
        """Bring the records up to what `plan` says before it is computed."""
        for number in plan.released:
            self._by_number.pop(number, None)
        for new in plan.admitted:
            self._by_number[new.sequence] = _resident(new)
        for item in plan.slices:
            self._by_number[item.sequence].table[item.first_block :] = item.block_ids


def _resident(new: Admission) -> Resident:
    return Resident(len(new.prompt_ids), [*new.prompt_ids, *new.output_ids], new.params)


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
