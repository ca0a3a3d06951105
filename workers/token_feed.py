"""Sampled tokens on their way to the host: the next step takes them on the device, where they are, before they come.

    sampled in step n   [a b c]  on the device, the host does not know them
    inputs of n + 1     p q r | a c    p, q, r from the host's records, a and c from step n

They come from this rank's own sampling, or to the first stage of a pipeline from the last one.
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from rayline.kernels.transfer import to_device, to_host, whole_numbers
from rayline.protos.plan import Slice
from rayline.workers.resident import Residents


class FreshTokens:
    """One token for each of `sequences`, int64 [N] on the device, and its copy on the host, which is coming."""

    __slots__ = ("_coming", "_ids", "sequences", "token_ids")

    def __init__(self, sequences: Sequence[int], token_ids: Tensor) -> None:
        self.sequences = sequences
        self.token_ids = token_ids
        self._coming = to_host(token_ids)
        self._ids: list[int] | None = None

    @property
    def on_host(self) -> list[int]:
        """To be read once the device has passed a mark that was made behind them."""
        if self._ids is None:
            self._ids = self._coming.tolist()
        return self._ids


class TokenFeed:
    """What a rank computes next, as ids. A sequence has a fresh token for each of its steps in flight.

    NO_TOKEN counts as id 0: plans in flight count on a token, whatever it is.
    """

    def __init__(self, residents: Residents, device: torch.device) -> None:
        self._residents = residents
        self._device = device
        self._fresh: deque[FreshTokens] = deque()
        self._places: dict[int, deque[int]] = {}  # of each sequence among all tokens that were ever pushed
        self._count = 0
        self._settled = 0
        self.pushed = 0  # so often

    def push(self, fresh: FreshTokens) -> None:
        self._fresh.append(fresh)
        self.pushed += 1
        for number in fresh.sequences:
            self._places.setdefault(number, deque()).append(self._count)
            self._count += 1

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Memory that inputs are read from."""
        return tuple(fresh.token_ids for fresh in self._fresh)

    def lacks(self, slices: Sequence[Slice]) -> bool:
        """Whether tokens of `slices` are known neither here nor on the device."""
        return any(self._missing(item) > len(self._places.get(item.sequence, ())) for item in slices)

    def inputs(self, slices: Sequence[Slice]) -> Tensor:
        """The packed token ids of a plan, int64 [T] on the device. Waits for nothing."""
        known: list[int] = []
        fresh: list[tuple[int, int]] = []  # places among the packed tokens, and among the fresh ones
        for item in slices:
            start, end = item.start, item.start + item.count
            token_ids = self._residents[item.sequence].token_ids
            known += token_ids[start:end]
            for position in range(max(start, len(token_ids)), end):
                fresh.append((len(known), self._places[item.sequence][position - len(token_ids)]))
                known.append(0)
        if not fresh:
            return to_device(whole_numbers(known), self._device)
        return self._mixed(known, fresh)

    def settle(self, pushed: int) -> None:
        """The device has passed what had been pushed when `pushed` was read: the host's records take it in."""
        for _ in range(pushed - self._settled):
            fresh = self._fresh.popleft()
            for number, token_id in zip(fresh.sequences, fresh.on_host, strict=True):
                self._residents.gain(number, max(token_id, 0))
                self._places[number].popleft()
                if not self._places[number]:
                    del self._places[number]
        self._settled = pushed

    def _missing(self, item: Slice) -> int:
        """Tokens of a slice that the host does not know."""
        return max(0, item.start + item.count - len(self._residents[item.sequence].token_ids))

    def _mixed(self, known: list[int], fresh: list[tuple[int, int]]) -> Tensor:
        """One copy to the device, one gather there."""
        tokens = self.held
        first = self._count - sum(len(each.sequences) for each in self._fresh)
        order = list(range(len(known)))
        for at, place in fresh:
            order[at] = len(known) + place - first
        ids, places = to_device(whole_numbers([*known, *order]), self._device).view(2, -1)
        return torch.cat((ids, *tokens))[places].clamp(min=0)
