"""One sequence that follows a grammar: which tokens may come next, given those that came.

A pure state machine over token ids: the same tokens give the same masks on any rank, group or day, which is what lets a
resumed or preempted stream go on exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import llguidance
import numpy as np
import numpy.typing as npt

from rayline.cluster.grammar_limits import failure, parser_limits

Words = npt.NDArray[np.int32]
"""A bit for each token id, 32 to a word, lowest first."""


class GrammarFailed(Exception):
    """The grammar cannot be followed any further; the message says why."""


class Vocabulary:
    """The bytes of every token, in the library's form."""

    def __init__(self, path: Path, vocab_size: int, eos_ids: tuple[int, ...]):
        """Read tokenizer.json in the model directory `path`. Raises GrammarFailed when it cannot be used."""
        self.size = vocab_size
        self.eos_ids = tuple(i for i in eos_ids if i < vocab_size)
        try:
            text = (path / "tokenizer.json").read_text(encoding="utf-8")
            self.tokens = _tokenizer(text, vocab_size, self.eos_ids)
        except (OSError, ValueError) as error:
            raise GrammarFailed(f"the model's tokenizer.json gives no bytes for its tokens: {error}") from None
        self.known = self.tokens.vocab_size
        self.words = -(-vocab_size // 32)

    def compiled(self, grammar: str) -> llguidance.LLMatcher:
        """A matcher at the beginning of a grammar. Raises GrammarFailed."""
        matcher = llguidance.LLMatcher(self.tokens, grammar, log_level=0, limits=parser_limits())
        if (why := failure(matcher)) is not None:
            raise GrammarFailed(why)
        return matcher


def _tokenizer(text: str, vocab_size: int, eos_ids: tuple[int, ...]) -> llguidance.LLTokenizer:
    """Padded to the model's vocabulary; a tokenizer that knows more tokens than the model keeps its own size."""
    ends = list(eos_ids) or None
    try:
        return llguidance.LLTokenizer(text, n_vocab=vocab_size, eos_token=ends)
    except ValueError:
        return llguidance.LLTokenizer(text, eos_token=ends)


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
        _set(words, (token_id,))
        return Mask(words)

    def only(self, token_id: int) -> "Mask":
        """Nothing but one token."""
        assert self.words is not None
        words = np.zeros_like(self.words)
        _set(words, (token_id,))
        return Mask(words)


ANYTHING = Mask()


@dataclass(frozen=True, slots=True)
class Ends:
    """Tokens that end a sequence; `avoided` ones (EOS under ignore_eos) only where nothing else may come."""

    ids: tuple[int, ...]
    avoided: tuple[int, ...] = ()

    @classmethod
    def of(cls, eos_ids: tuple[int, ...], stop_token_ids: tuple[int, ...], ignore_eos: bool) -> Self:
        return cls(stop_token_ids, eos_ids) if ignore_eos else cls((*eos_ids, *stop_token_ids))


class Matcher:
    """A grammar, at the place where a sequence is. Not thread-safe."""

    def __init__(self, vocabulary: Vocabulary, start: llguidance.LLMatcher, ends: Ends):
        """`start`: the grammar at its beginning, which is left as it is."""
        self._vocabulary = vocabulary
        self._grammar = start.deep_copy()
        self._ends = ends

    def copy(self, ends: Ends) -> "Matcher":
        """The same place, to go another way from."""
        return Matcher(self._vocabulary, self._grammar, ends)

    def consume(self, token_id: int) -> None:
        """Go on by one token. An end where the grammar may end leaves it there. Raises GrammarFailed."""
        self._check()
        if token_id in (*self._ends.ids, *self._ends.avoided) and self._grammar.is_accepting():
            return
        if self._grammar.is_stopped():
            raise GrammarFailed(f"token {token_id} comes after its end")
        if not self._grammar.consume_token(token_id):
            self._check()

    def mask(self) -> Mask:
        """Which tokens may come next. Raises GrammarFailed."""
        words = np.zeros(-(-self._vocabulary.known // 32), dtype=np.int32)
        self._grammar.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self._check()
        return self._with_ends(self._fitted(words), self._grammar.is_accepting())

    def _check(self) -> None:
        if (why := failure(self._grammar)) is not None:
            raise GrammarFailed(why)

    def _fitted(self, words: Words) -> Words:
        """As wide as the model's vocabulary, without the bits of ids beyond it."""
        fitted = np.zeros(self._vocabulary.words, dtype=np.int32)
        shared = min(len(words), len(fitted))
        fitted[:shared] = words[:shared]
        if rest := self._vocabulary.size % 32:
            fitted[-1] &= np.int32((1 << rest) - 1)
        return fitted

    def _with_ends(self, words: Words, may_end: bool) -> Mask:
        """Tokens that end the sequence are allowed where the grammar may end, and nowhere else."""
        library_ends = self._vocabulary.tokens.eos_tokens
        content = words.copy()
        _clear(content, (*library_ends, *self._ends.ids, *self._ends.avoided), self._vocabulary.size)
        goes_on = bool(content.any())
        if may_end:
            _set(content, self._ends.ids if goes_on else (*self._ends.ids, *self._ends.avoided))
            if not content.any():
                raise GrammarFailed("it is complete, and the model has no token to end with: give stop_token_ids")
            return Mask(content, must_end=not goes_on)
        if goes_on:
            return Mask(content)
        _clear(words, library_ends, self._vocabulary.size)  # only a stop token leads on: it is content, and ends
        if not words.any():
            raise GrammarFailed("no token of the vocabulary continues it")
        return Mask(words, must_end=True)


def _set(words: Words, token_ids: Sequence[int]) -> None:
    for token_id in token_ids:
        words.view(np.uint32)[token_id >> 5] |= np.uint32(1 << (token_id & 31))


def _clear(words: Words, token_ids: Sequence[int], size: int) -> None:
    for token_id in token_ids:
        if token_id < size:
            words.view(np.uint32)[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)
