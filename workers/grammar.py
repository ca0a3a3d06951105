"""Grammars of the sequences on one rank, followed beside the computation.

As soon as a token is known the next mask is computed in a thread of its own, while the rank computes the next step; the
library gives Python's lock back meanwhile. Grammars of new sequences are compiled in a second thread, so that a large
one holds up no other sequence before its own first token.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import llguidance

from rayline.cluster.grammar_limits import FOLLOW_STACK_BYTES
from rayline.protos.plan import Plan, Refused, Sampled
from rayline.protos.types import SamplingParams, TokenRules
from rayline.workers.matcher import ANYTHING, Ends, GrammarFailed, Mask, Matcher, Vocabulary
from rayline.workers.thought import Thought

MAX_COMPILED = 32  # grammars kept compiled for further requests
NOTHING_LEFT = "no token is left that both the grammar and the request's other rules allow"


class Follower:
    """One sequence: its thinking, then its grammar, and the mask for its next token."""

    def __init__(self, matcher: Matcher, thought: Thought | None):
        self._matcher = matcher
        self._thought = thought
        self.mask = self._next()

    def consume(self, token_ids: Iterable[int]) -> None:
        """Go on by these tokens. Raises GrammarFailed."""
        for token_id in token_ids:
            if self._thought is None or not self._thought.append(token_id):
                self._matcher.consume(token_id)
        self.mask = self._next()

    def copy(self, ends: Ends) -> "Follower":
        return Follower(self._matcher.copy(ends), None if self._thought is None else self._thought.copy())

    def _next(self) -> Mask:
        thought = self._thought
        if thought is None:
            return self._matcher.mask()
        if thought.is_open:
            return ANYTHING
        mask = self._matcher.mask()
        return mask.also(thought.first) if thought.begun is None else mask.only(thought.begun)


class Grammars:
    """All sequences of a rank that follow a grammar, by number. Others cost nothing here."""

    def __init__(self, path: Path, vocab_size: int, eos_ids: Sequence[int]):
        self._path = path
        self._vocab_size = vocab_size
        self._eos_ids = tuple(eos_ids)
        self._places: dict[int, Future[Follower]] = {}
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()

    def follow(self, plan: Plan) -> None:
        """Take in what `plan` says of sequences before it is computed."""
        for new in plan.admitted:
            if new.rules.grammar:
                self.start(new.sequence, new.rules, new.params, new.output_ids)
        for fork in plan.forked:
            self.fork(fork.sequence, fork.parent, fork.params)
        self.advance([(gain.sequence, gain.token_id) for gain in plan.gained])
        for number in plan.released:
            self.release(number)

    def start(self, number: int, rules: TokenRules, params: SamplingParams, output_ids: Sequence[int]) -> None:
        """Follow a grammar from its beginning, through what the sequence has of output already."""
        ends = self._ends(params)

        def begin() -> Follower:
            thought = None if rules.thinking is None else Thought(rules.thinking, comes_first=True)
            follower = Follower(Matcher(self._vocabulary, self._start_of(rules.grammar), ends), thought)
            if output_ids:
                follower.consume(output_ids)
            return follower

        self._places[number] = self._compiling.submit(_guarded, begin)

    def fork(self, number: int, parent: int, params: SamplingParams) -> None:
        """Let `number` go on from where `parent` is. Nothing happens when that follows no grammar."""
        if (place := self._places.get(parent)) is not None:
            ends = self._ends(params)
            self._places[number] = self._following.submit(_guarded, lambda: place.result().copy(ends))

    def advance(self, gained: Sequence[tuple[int, int]]) -> None:
        """(sequence, token id) of what was sampled: their next masks are computed from now on."""
        for number, token_id in gained:
            if (place := self._places.get(number)) is not None:
                self._places[number] = self._following.submit(_guarded, _step(place, token_id))

    def release(self, number: int) -> None:
        """Forget a sequence."""
        self._places.pop(number, None)

    def mask(self, number: int) -> Mask:
        """What the sequence's grammar allows next. Waits until it is there. Of one that failed, anything."""
        place = self._places.get(number)
        return ANYTHING if place is None or place.exception() is not None else place.result().mask

    def accept(self, sampled: tuple[Sampled, ...]) -> tuple[tuple[Sampled, ...], tuple[Refused, ...]]:
        """Go on by what was sampled; sequences that cannot are refused instead."""
        if not self._places:
            return sampled, ()
        refused = self.refused(item.sequence for item in sampled)
        out = {item.sequence for item in refused}
        strays = [item for item in sampled if item.sequence not in out and not self._allows(item)]
        refused += tuple(Refused(item.sequence, NOTHING_LEFT) for item in strays)
        out |= {item.sequence for item in strays}
        kept = tuple(item for item in sampled if item.sequence not in out)
        self.advance([(item.sequence, item.token_id) for item in kept])
        return kept, refused

    def refused(self, numbers: Iterable[int]) -> tuple[Refused, ...]:
        """Those whose grammar has failed, and why."""
        places = ((number, self._places.get(number)) for number in numbers)
        errors = ((number, place.exception()) for number, place in places if place is not None)
        return tuple(Refused(number, f"the grammar cannot be followed: {error}") for number, error in errors if error)

    def _allows(self, item: Sampled) -> bool:
        place = self._places.get(item.sequence)
        return place is None or place.result().mask.allows(item.token_id)

    def _ends(self, params: SamplingParams) -> Ends:
        return Ends.of(self._eos_ids, params.stop_token_ids, params.ignore_eos)

    def _start_of(self, grammar: str) -> llguidance.LLMatcher:
        """The compiled grammar, from those compiled before or anew. Only the compiling thread comes here."""
        if grammar not in self._compiled:
            self._compiled[grammar] = self._vocabulary.compiled(grammar)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._path, self._vocab_size, self._eos_ids)

    @cached_property
    def _compiling(self) -> ThreadPoolExecutor:
        return _thread("compile grammars")

    @cached_property
    def _following(self) -> ThreadPoolExecutor:
        return _thread("follow grammars")


def _step(place: "Future[Follower]", token_id: int) -> Callable[[], Follower]:
    def step() -> Follower:
        follower = place.result()
        follower.consume((token_id,))
        return follower

    return step


def _guarded(work: Callable[[], Follower]) -> Follower:
    """Whatever a grammar does is its own request's failure: the library's panics are no Exceptions."""
    try:
        return work()
    except GrammarFailed:
        raise
    except BaseException as error:
        raise GrammarFailed(f"{type(error).__name__}: {error}") from None


def _thread(name: str) -> ThreadPoolExecutor:
    """One thread, with a stack for deep grammars, on any core: this process may keep its own for computing."""
    before = threading.stack_size(FOLLOW_STACK_BYTES)
    try:
        pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_on_any_core)
        pool.submit(int).result()  # a thread begins with its first work
    finally:
        threading.stack_size(before)
    return pool


def _on_any_core() -> None:
    with suppress(OSError):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
