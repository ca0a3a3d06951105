"""Rows of results that the device knows and the host does not yet."""

from array import array
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from torch import Tensor

from rayline.kernels.sampling import Candidate, RowLogprobs
from rayline.kernels.transfer import to_host

Row = TypeVar("Row")


class ComingRows(Sequence[Row], Generic[Row]):
    """`count` rows, to be read once the device has passed a mark made behind them. read: makes them of what is `told`,
    int64."""

    def __init__(self, told: Tensor, count: int, read: Callable[[list[int]], Sequence[Row]]) -> None:
        self._told = to_host(told)
        self._count = count
        self._make = read
        self._rows: Sequence[Row] = ()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Row: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...

    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if not self._rows and self._count:
            self._rows = self._make(self._told.tolist())
        return self._rows[at]


def some_ranked_of(told: Sequence[int], wanted: Sequence[int | None]) -> list[RowLogprobs | None]:
    """`ranked_of` the rows whose `wanted` is not None; None for the others."""
    found = iter(ranked_of(told, [count for count in wanted if count is not None]))
    return [None if count is None else next(found) for count in wanted]


def ranked_of(told: Sequence[int], counts: Sequence[int]) -> list[RowLogprobs]:
    """Of each row one token's logprob and those of its `counts` best, the one token being in front."""
    return [
        RowLogprobs(pairs[0][1], tuple(pairs[1 : count + 1]))
        for pairs, count in zip(_pairs_of(told, len(counts)), counts, strict=True)
    ]


def candidates_of(told: Sequence[int], most: Sequence[int]) -> list[tuple[Candidate, ...]]:
    """Of each row its `most` first tokens, without those at -inf."""
    return [
        tuple(pair for pair in pairs[:count] if pair[1] > float("-inf"))
        for pairs, count in zip(_pairs_of(told, len(most)), most, strict=True)
    ]


def _pairs_of(told: Sequence[int], rows: int) -> list[list[Candidate]]:
    """told: all ids [rows, width], then as many fp64 values by their bits."""
    half, width = len(told) // 2, len(told) // 2 // rows
    values = array("d", array("q", told[half:]).tobytes()).tolist()
    pairs = list(zip(told[:half], values, strict=True))
    return [pairs[at * width : (at + 1) * width] for at in range(rows)]
