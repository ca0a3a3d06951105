"""Beam search as arithmetic: which beams go on, which hypotheses are kept, when it is over.

The algorithm of `transformers` 5 (`GenerationMixin._beam_search`), one request at a time:

    score of a beam          sum of the processed logprobs of its tokens, in fp32
    candidates of a step     all (beam, next token), best score first, ties to the earlier beam, then the lower id
    hypotheses               of the first `width` candidates those that end: score / length ** length_penalty
    beams of the next step   the first `width` candidates that do not end

A hypothesis ends with an end token, or at the length limit. The `width` best hypotheses are kept.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rayline.protos.events import Beam, FinishReason, TokenLogprob
from rayline.protos.types import EarlyStopping, SamplingParams, TokenRules

_MOST_EXPONENT = 80.0  # e ** 80 is near the ends of fp32; a length penalty beyond ranks as this one does


@dataclass(frozen=True, slots=True)
class BeamRules:
    """What a search is asked for. ends: tokens that end a hypothesis. most_tokens: output tokens of the longest."""

    width: int
    best: int
    ends: frozenset[int]
    most_tokens: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False


@dataclass(frozen=True, slots=True)
class Hope:
    """A beam that is still searched. score: fp32, not divided by its length."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Search:
    """A search between two steps: its beams and the hypotheses kept so far, both best first."""

    hopes: tuple[Hope, ...] = (Hope(),)
    kept: tuple[Beam, ...] = ()
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class Heir:
    """A beam of the next step is the beam at place `parent` of this one and one more token."""

    parent: int
    token_id: int


def rules_of(params: SamplingParams, rules: TokenRules, eos_ids: Collection[int], most_tokens: int) -> BeamRules:
    return BeamRules(
        params.beam_width,
        params.n,
        end_ids(params, rules, eos_ids),
        most_tokens,
        params.length_penalty,
        params.early_stopping,
    )


def is_end(token_id: int, params: SamplingParams, rules: TokenRules, eos_ids: Collection[int]) -> bool:
    """Whether a token ends a text. Under `ignore_eos` a grammar allows EOS when it is complete: nothing follows."""
    if token_id in params.stop_token_ids:
        return True
    return token_id in eos_ids and (not params.ignore_eos or bool(rules.grammar))


def end_ids(params: SamplingParams, rules: TokenRules, eos_ids: Collection[int]) -> frozenset[int]:
    """All tokens of which `is_end` holds."""
    return frozenset(token for token in (*params.stop_token_ids, *eos_ids) if is_end(token, params, rules, eos_ids))


def candidates_needed(params: SamplingParams, rules: TokenRules, eos_ids: Collection[int]) -> int:
    """How many next tokens of each beam a step must see.

    With so many, `width` tokens of the beam alone do not end it; no token behind them can be among the `width` best
    that do not end, nor among the `width` best of all.
    """
    return params.beam_width + len(end_ids(params, rules, eos_ids))


def advance(
    search: Search, rules: BeamRules, candidates: Sequence[Sequence[TokenLogprob]]
) -> tuple[Search, list[Heir]]:
    """One step: `candidates` are the best next tokens of each beam, best first. A logprob of -inf is no candidate."""
    ranked = _ranked(search, rules, candidates)
    length = len(search.hopes[0].token_ids) + 1
    is_last = length >= rules.most_tokens
    ending = [is_last or token.token_id in rules.ends for _, token, _ in ranked]
    first = list(zip(ranked, ending, strict=True))
    ended = [_grown(search.hopes[at], token, score) for (at, token, score), ends in first[: rules.width] if ends]
    kept = _kept(search.kept, [_hypothesis(hope, rules) for hope in ended], rules.width)
    going = [entry for entry, ends in first if not ends][: rules.width]
    hopes = tuple(_grown(search.hopes[at], token, score) for at, token, score in going)
    grown = Search(hopes, kept, is_over=not hopes)
    is_over = grown.is_over or _is_settled(grown, rules, length)
    return replace(grown, is_over=is_over), [Heir(at, token.token_id) for at, token, _ in going]


def best(search: Search, rules: BeamRules) -> tuple[Beam, ...]:
    """What the client gets: the n best hypotheses, fewer where masks left fewer texts."""
    return search.kept[: rules.best]


Entry = tuple[int, TokenLogprob, float]
"""Place of the beam, its next token, their score, a number of fp32."""


def _ranked(search: Search, rules: BeamRules, candidates: Sequence[Sequence[TokenLogprob]]) -> list[Entry]:
    """The best candidates, so many that `width` of them do not end."""
    found = [(at, token) for at, tokens in enumerate(candidates) for token in tokens if token.logprob > -math.inf]
    places = np.array([at for at, _ in found], dtype=np.int64)
    ids = np.array([token.token_id for _, token in found], dtype=np.int64)
    logprobs = np.array([token.logprob for _, token in found], dtype=np.float32)
    scores = np.array([hope.score for hope in search.hopes], dtype=np.float32)[places] + logprobs
    order = np.lexsort((ids, places, -scores))[: (1 + len(rules.ends)) * rules.width]
    return [(*found[i], float(scores[i])) for i in order.tolist()]


def _grown(hope: Hope, token: TokenLogprob, score: float) -> Hope:
    return Hope((*hope.token_ids, token.token_id), (*hope.logprobs, token.logprob), score)


def _hypothesis(hope: Hope, rules: BeamRules) -> Beam:
    last = hope.token_ids[-1]
    reason = FinishReason.STOP if last in rules.ends else FinishReason.LENGTH
    score = float(np.float32(hope.score) / _divisor(len(hope.token_ids), rules.length_penalty))
    return Beam(hope.token_ids, score, hope.logprobs, reason, last if reason is FinishReason.STOP else None)


def _kept(kept: Sequence[Beam], new: Sequence[Beam], width: int) -> tuple[Beam, ...]:
    """Best first; of equals the earlier one first, so that a later one never drives it out."""
    return tuple(sorted((*kept, *new), key=lambda beam: -beam.score)[:width])


def _is_settled(search: Search, rules: BeamRules, length: int) -> bool:
    """Whether no beam can become better than the worst hypothesis kept, by the estimate that was asked for.

    A beam's score only falls, so its best future is its score at a length: the present one, or with "never" and a
    penalty that rewards length the longest one.
    """
    if len(search.kept) < rules.width:
        return False
    if rules.early_stopping is True:
        return True
    is_never = rules.early_stopping == "never" and rules.length_penalty > 0.0
    divisor = _divisor(rules.most_tokens if is_never else length, rules.length_penalty)
    return not np.float32(search.hopes[0].score) / divisor > np.float32(search.kept[-1].score)


def _divisor(length: int, penalty: float) -> np.float32:
    exponent = penalty * math.log(length)
    if abs(exponent) > _MOST_EXPONENT:
        return np.float32(math.exp(math.copysign(_MOST_EXPONENT, exponent)))
    return np.float32(float(length) ** penalty)
