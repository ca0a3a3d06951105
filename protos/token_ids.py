"""Long runs of token ids inside of a deployment: four bytes each, the lowest first.

A list of numbers would hold up an event loop: 100 000 take 4 ms to write as `repeated uint32` and 3 ms to read, these
0.6 and 1.5 ms.
"""

import sys
from array import array
from collections.abc import Sequence

_KIND = next(kind for kind in "IL" if array(kind).itemsize == 4)


def packed(token_ids: Sequence[int]) -> bytes:
    """Ids are 0 to 2^32 - 1."""
    return _ordered(array(_KIND, token_ids)).tobytes()


def unpacked(data: bytes) -> tuple[int, ...]:
    return tuple(_ordered(array(_KIND, data)))


def _ordered(ids: "array[int]") -> "array[int]":
    if sys.byteorder == "big":
        ids.byteswap()
    return ids
