"""What may come next in a text that follows rules, as bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.int32]
"""A bit for each token id, 32 to a word, lowest first."""


@dataclass(frozen=True, slots=True)
class Mask:
    """What may come next. must_end: only a token that ends the sequence. None for `words`: anything."""

    words: Words | None = None
    must_end: bool = False

    def allows(self, token_id: int) -> bool:
        return self.words is None or bool(self.words[token_id >> 5] >> (token_id & 31) & 1)

    def also(self, token_id: int | None) -> "Mask":
        """The same, and one token more."""
        if token_id is None or self.words is None:
            return self
        words = self.words.copy()
        set_bits(words, (token_id,))
        return Mask(words)

    def only(self, token_id: int) -> "Mask":
        """Nothing but one token."""
        assert self.words is not None
        words = np.zeros_like(self.words)
        set_bits(words, (token_id,))
        return Mask(words)


ANYTHING = Mask()


def set_bits(words: Words, token_ids: Sequence[int]) -> None:
    """Allow these ids, too."""
    for token_id in token_ids:
        words.view(np.uint32)[token_id >> 5] |= np.uint32(1 << (token_id & 31))
