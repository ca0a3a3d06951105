"""Sampled tokens on their way to the host: the next step takes them on the device, where they are, before they come.

    sampled in step n   [a b c]  on the device, the host does not know them
    inputs of n + 1     p q r | a c    p, q, r from the host's records, a and c from step n

They come from this rank's own sampling, or to the first stage of a pipeline from the last one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rayline.kernels.transfer import to_device, to_host
from rayline.protos.plan import Slice
from rayline.workers.resident import Residents


@dataclass(frozen=True, slots=True)
class FreshTokens:
    """One token for each of `sequences`, int64 [N] on the device, and its copy on the host, which is coming."""

    sequences: Sequence[int]
    token_ids: Tensor
    coming: Tensor = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coming", to_host(self.token_ids))

    @property
    def on_host(self) -> list[int]:
        """To be read once the device has passed a mark that was made behind them."""
        ids: list[int] = self.coming.tolist()
        return ids


class TokenFeed:
    """What a rank computes next, as ids. A sequence has one fresh token at most: the next one follows from it.

    NO_TOKEN counts as id 0: plans in flight count on a token, whatever it is.
    """

    def __init__(self, residents: Residents, device: torch.device) -> None:
        self._residents = residents
        self._device = device
        self._fresh: list[FreshTokens] = []
        self._places: dict[int, int] = {}  # of each sequence among all fresh tokens
        self._count = 0

    def push(self, fresh: FreshTokens) -> None:
        self._fresh.append(fresh)
        for number in fresh.sequences:
            self._places[number] = self._count
            self._count += 1

    def lacks(self, slices: Sequence[Slice]) -> bool:
        """Whether tokens of `slices` are known neither here nor on the device."""
        return any(self._missing(item) > (item.sequence in self._places) for item in slices)

    def inputs(self, slices: Sequence[Slice]) -> Tensor:
        """The packed token ids of a plan, int64 [T] on the device. Waits for nothing."""
        known: list[int] = []
        fresh: list[tuple[int, int]] = []  # places among the packed tokens, and among the fresh ones
        for item in slices:
            known += self._residents[item.sequence].token_ids[item.start : item.start + item.count]
            if self._missing(item):
                fresh.append((len(known), self._places[item.sequence]))
                known.append(0)
        if not fresh:
            return to_device(torch.tensor(known, dtype=torch.int64), self._device)
        return self._mixed(known, fresh)

    def settle(self) -> None:
        """The device has passed all that was pushed: the host's records take it in."""
        for fresh in self._fresh:
            for number, token_id in zip(fresh.sequences, fresh.on_host, strict=True):
                self._residents.gain(number, max(token_id, 0))
        self._fresh.clear()
        self._places.clear()
        self._count = 0

    def _missing(self, item: Slice) -> int:
        """Tokens of a slice that the host does not know."""
        return max(0, item.start + item.count - len(self._residents[item.sequence].token_ids))

    def _mixed(self, known: list[int], fresh: list[tuple[int, int]]) -> Tensor:
        """One copy to the device, one gather there."""
        tokens = [each.token_ids for each in self._fresh]
        order = list(range(len(known)))
        for at, place in fresh:
            order[at] = len(known) + place
        packed = to_device(torch.tensor([known, order], dtype=torch.int64), self._device)
        return torch.cat((packed[0], *tokens))[packed[1]].clamp(min=0)
