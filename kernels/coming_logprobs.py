"""Logprobs that the device knows and the host does not yet."""

from array import array
from collections.abc import Sequence
from typing import overload

from torch import Tensor

from rayline.kernels.sampling import RowLogprobs
from rayline.kernels.transfer import to_host


class ComingLogprobs(Sequence[RowLogprobs | None]):
    """One entry a row, as `SampledRows` has them, to be read once the device has passed a mark made behind them."""

    def __init__(self, told: Tensor, wanted: Sequence[int | None]) -> None:
        """told: int64, as `ranked_of` takes it, of the rows whose `wanted` is not None."""
        self._told = to_host(told)
        self._wanted = wanted
        self._read: tuple[RowLogprobs | None, ...] = ()

    def __len__(self) -> int:
        return len(self._wanted)

    @overload
    def __getitem__(self, at: int) -> RowLogprobs | None: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[RowLogprobs | None]: ...

    def __getitem__(self, at: int | slice) -> RowLogprobs | Sequence[RowLogprobs | None] | None:
        if not self._read:
            found = iter(ranked_of(self._told.tolist(), [count for count in self._wanted if count is not None]))
            self._read = tuple(None if count is None else next(found) for count in self._wanted)
        return self._read[at]


def ranked_of(told: Sequence[int], counts: Sequence[int]) -> list[RowLogprobs]:
    """Of each row one token's logprob and those of its `counts` best.

    told: ids, then fp64 logprobs by their bits, [M, 1 + most] each, the one token's in front.
    """
    half, width = len(told) // 2, len(told) // 2 // len(counts)
    values = array("d", array("q", told[half:]).tobytes()).tolist()
    found = []
    for at, count in enumerate(counts):
        first, last = at * width + 1, at * width + 1 + count
        found.append(RowLogprobs(values[first - 1], tuple(zip(told[first:last], values[first:last], strict=True))))
    return found
