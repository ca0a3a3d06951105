"""What the rules of one request need to have at hand at each of its tokens, kept as they come.

All of it is a function of the prompt, the output and the rules, so a sequence that was resumed, preempted or forked
knows what it would have known.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rayline.kernels.edits import mask_of
from rayline.protos.types import SamplingParams, TokenRules
from rayline.workers.thought import Thought

_ROOM = 64  # output tokens for which arrays have room before they grow


class History:
    """Of one sequence: counts under penalties, n-grams, its last tokens, whether it thinks, and what its lists of ids
    are as tensors. Appending takes the same time however long the sequence is."""

    def __init__(
        self, params: SamplingParams, rules: TokenRules, prompt_ids: Sequence[int], output_ids: Sequence[int]
    ) -> None:
        self._counts = Counts(prompt_ids if params.repetition_penalty != 1.0 else ()) if penalises(params) else None
        self._ngrams = NGrams(params.no_repeat_ngram_size) if params.no_repeat_ngram_size else None
        self._bad_words = BadWords(rules.bad_words) if rules.bad_words else None
        self._thought = _thought(rules)
        self._fixed = Fixed(params)
        if self._ngrams or self._bad_words:
            for token in prompt_ids:
                self._follow(token)
        for token in output_ids:
            self.append(token)

    def append(self, token_id: int) -> None:
        """Take in one output token."""
        if self._counts is not None:
            self._counts.append(token_id)
        if self._thought is not None:
            self._thought.append(token_id)
        self._follow(token_id)

    def _follow(self, token_id: int) -> None:
        if self._ngrams is not None:
            self._ngrams.append(token_id)
        if self._bad_words is not None:
            self._bad_words.append(token_id)

    def copy(self) -> "History":
        """For a fork: both go on from here by themselves."""
        twin = object.__new__(History)
        twin._counts = None if self._counts is None else self._counts.copy()
        twin._ngrams = None if self._ngrams is None else self._ngrams.copy()
        twin._bad_words = None if self._bad_words is None else self._bad_words.copy()
        twin._thought = None if self._thought is None else self._thought.copy()
        twin._fixed = self._fixed  # never written to
        return twin

    @property
    def fixed(self) -> "Fixed":
        return self._fixed

    @property
    def counts(self) -> tuple[Tensor, Tensor] | None:
        """Ids under penalties, int64 [S], and how often each was output, fp32 [S]: views, until the next token."""
        return None if self._counts is None else self._counts.view()

    @property
    def banned(self) -> tuple[int, ...]:
        """Ids that would repeat an n-gram or complete a bad word."""
        ngrams = () if self._ngrams is None else self._ngrams.repeating()
        return (*ngrams, *(() if self._bad_words is None else self._bad_words.completing()))

    @property
    def forced(self) -> int | None:
        """The token that must come next, for the budget of thinking is spent."""
        return None if self._thought is None else self._thought.forced


def needs_history(params: SamplingParams, rules: TokenRules) -> bool:
    """Whether a request asks for anything that depends on its tokens."""
    lists = params.logit_bias or params.allowed_token_ids or rules.bad_words
    return bool(penalises(params) or params.no_repeat_ngram_size or lists or limits_thinking(rules))


def penalises(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.frequency_penalty != 0.0 or params.presence_penalty != 0.0


def limits_thinking(rules: TokenRules) -> bool:
    return rules.thinking is not None and rules.thinking.budget_tokens is not None and bool(rules.thinking.end_ids)


class Fixed:
    """A request's lists of ids that stay as they are, as tensors that are made once. Ids outside mean nothing."""

    def __init__(self, params: SamplingParams) -> None:
        self._bias = params.logit_bias
        self._allowed = params.allowed_token_ids
        self._made: tuple[tuple[Tensor, Tensor] | None, Tensor | None] | None = None

    def of(self, vocab_size: int) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
        """Biased ids and their biases, and the mask of the allowed ids; each None where there is none."""
        if self._made is None:
            pairs = [(token, bias) for token, bias in dict(self._bias).items() if token < vocab_size]
            ids, values = [token for token, _ in pairs], [bias for _, bias in pairs]
            bias = (torch.tensor(ids, dtype=torch.int64), torch.tensor(values, dtype=torch.float32))
            allowed = [token for token in self._allowed if token < vocab_size]
            self._made = bias if pairs else None, mask_of(allowed, vocab_size) if self._allowed else None
        return self._made


class Counts:
    """How often each token was output. `also` are tokens that count as seen before the first output."""

    def __init__(self, also: Sequence[int] = ()) -> None:
        seen = np.unique(np.asarray(also, dtype=np.int64))
        self._place = {token: place for place, token in enumerate(seen.tolist())}
        self._ids = np.zeros(len(seen) + _ROOM, dtype=np.int64)
        self._ids[: len(seen)] = seen
        self._times = np.zeros(len(self._ids), dtype=np.float32)

    def append(self, token_id: int) -> None:
        place = self._place.get(token_id)
        if place is None:
            place = self._place[token_id] = len(self._place)
            if place == len(self._ids):
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._times = np.concatenate((self._times, np.zeros_like(self._times)))
            self._ids[place] = token_id
        self._times[place] += 1

    def view(self) -> tuple[Tensor, Tensor]:
        size = len(self._place)
        return torch.from_numpy(self._ids[:size]), torch.from_numpy(self._times[:size])

    def copy(self) -> "Counts":
        twin = object.__new__(Counts)
        twin._place, twin._ids, twin._times = dict(self._place), self._ids.copy(), self._times.copy()
        return twin


class NGrams:
    """Which tokens followed each run of size - 1 tokens."""

    def __init__(self, size: int) -> None:
        self._run = size - 1
        self._tail: tuple[int, ...] = ()
        self._after: dict[tuple[int, ...], tuple[int, ...]] = {}

    def append(self, token_id: int) -> None:
        if len(self._tail) == self._run:
            known = self._after.get(self._tail, ())
            if token_id not in known:
                self._after[self._tail] = (*known, token_id)
        if self._run:
            self._tail = (*self._tail, token_id)[-self._run :]

    def repeating(self) -> tuple[int, ...]:
        """Tokens that would complete an n-gram for the second time."""
        return self._after.get(self._tail, ())

    def copy(self) -> "NGrams":
        twin = NGrams(self._run + 1)
        twin._tail, twin._after = self._tail, dict(self._after)
        return twin


class BadWords:
    """Sequences of ids, found by the one before their last."""

    def __init__(self, words: Sequence[tuple[int, ...]]) -> None:
        self._always = tuple(word[0] for word in words if len(word) == 1)
        self._by_token: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) > 1:
                self._by_token.setdefault(word[-2], []).append(word)
        self._longest = max((len(word) for word in words), default=1) - 1
        self._tail: tuple[int, ...] = ()

    def append(self, token_id: int) -> None:
        if self._longest:
            self._tail = (*self._tail, token_id)[-self._longest :]

    def completing(self) -> tuple[int, ...]:
        """Tokens that would complete a bad word."""
        if not self._tail:
            return self._always
        near = self._by_token.get(self._tail[-1], ())
        return (*self._always, *(word[-1] for word in near if self._tail[1 - len(word) :] == word[:-1]))

    def copy(self) -> "BadWords":
        twin = object.__new__(BadWords)
        twin._always, twin._by_token, twin._longest = self._always, self._by_token, self._longest  # never written to
        twin._tail = self._tail
        return twin


def _thought(rules: TokenRules) -> Thought | None:
    if rules.thinking is None or not limits_thinking(rules):
        return None
    return Thought(rules.thinking, comes_first=bool(rules.grammar))
