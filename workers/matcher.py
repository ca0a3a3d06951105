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

from rayline.cluster.grammar_limits import failure, parser_limits
from rayline.workers.mask import Mask, Words, set_bits


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
        self.everything: Words = np.full(self.words, -1, dtype=np.int32)
        if rest := vocab_size % 32:
            self.everything[-1] = (1 << rest) - 1

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
class Ends:
    """Tokens that end a sequence; `avoided` ones (EOS under ignore_eos) only where nothing else may come."""

    ids: tuple[int, ...]
    avoided: tuple[int, ...] = ()

    @classmethod
    def of(cls, eos_ids: tuple[int, ...], stop_token_ids: tuple[int, ...], ignore_eos: bool) -> Self:
        return cls(stop_token_ids, eos_ids) if ignore_eos else cls((*eos_ids, *stop_token_ids))


class EndWords:
    """The ends of a sequence as bits. content: all tokens that are neither its ends nor the library's."""

    def __init__(self, vocabulary: Vocabulary, ends: Ends):
        self.ends = ends
        self.usual = _bits(vocabulary, ends.ids)
        self.all = _bits(vocabulary, (*ends.ids, *ends.avoided))
        self.library = _bits(vocabulary, vocabulary.tokens.eos_tokens)
        self.content: Words = ~(self.all | self.library) & vocabulary.everything


class Matcher:
    """A grammar, at the place where a sequence is. Not thread-safe."""

    def __init__(self, vocabulary: Vocabulary, start: llguidance.LLMatcher, ends: Ends | EndWords):
        """`start`: the grammar at its beginning, which is left as it is."""
        self._vocabulary = vocabulary
        self._grammar = start.deep_copy()
        self._words = ends if isinstance(ends, EndWords) else EndWords(vocabulary, ends)

    def copy(self, ends: Ends) -> "Matcher":
        """The same place, to go another way from."""
        return Matcher(self._vocabulary, self._grammar, self._words if ends == self._words.ends else ends)

    def consume(self, token_id: int) -> None:
        """Go on by one token. An end where the grammar may end leaves it there. Raises GrammarFailed."""
        self._check()
        ends = self._words.ends
        if (token_id in ends.ids or token_id in ends.avoided) and self._grammar.is_accepting():
            return
        if self._grammar.is_stopped():
            raise GrammarFailed(f"token {token_id} comes after its end")
        if not self._grammar.consume_token(token_id):
            self._check()

    def mask(self) -> Mask:
        """Which tokens may come next. Raises GrammarFailed."""
        words = np.zeros(max(self._vocabulary.words, -(-self._vocabulary.known // 32)), dtype=np.int32)
        self._grammar.unsafe_compute_mask_ptr(words.ctypes.data, -(-self._vocabulary.known // 32) * words.itemsize)
        self._check()
        return self._with_ends(words[: self._vocabulary.words], self._grammar.is_accepting())

    def _check(self) -> None:
        if (why := failure(self._grammar)) is not None:
            raise GrammarFailed(why)

    def _with_ends(self, words: Words, may_end: bool) -> Mask:
        """Tokens that end the sequence are allowed where the grammar may end, and nowhere else."""
        content = words & self._words.content
        goes_on = bool(content.any())
        if may_end:
            content |= self._words.usual if goes_on else self._words.all
            if not goes_on and not content.any():
                raise GrammarFailed("it is complete, and the model has no token to end with: give stop_token_ids")
            return Mask(content, must_end=not goes_on)
        if goes_on:
            return Mask(content)
        words &= ~self._words.library & self._vocabulary.everything  # a stop token alone leads on: as content, it ends
        if not words.any():
            raise GrammarFailed("no token of the vocabulary continues it")
        return Mask(words, must_end=True)


def _bits(vocabulary: Vocabulary, token_ids: Sequence[int]) -> Words:
    words = np.zeros(vocabulary.words, dtype=np.int32)
    set_bits(words, [token_id for token_id in token_ids if token_id < vocabulary.size])
    return words
