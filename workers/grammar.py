"""Grammars of the sequences on one rank, followed beside the computation.

As soon as a token is known the next mask is computed in a thread of its own, while the rank computes the next step; the
library gives Python's lock back meanwhile. Grammars of new sequences are compiled in a second thread, so that a large
one holds up no other sequence before its own first token.
"""

import os
import threading
import time
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
from rayline.workers.mask import ANYTHING, Mask
from rayline.workers.matcher import Ends, GrammarFailed, Matcher, Vocabulary
from rayline.workers.thought import Thought

MAX_COMPILED = 32  # grammars kept compiled for further requests
# Computing time of a sequence's masks: so much for each token, and so much in reserve. An ambiguous grammar makes them
# slow and the whole batch waits; usual ones take 0.01 to 0.3 ms. Ranks need not agree: the one that reports decides.
SPARE_S = 1.0
TOKEN_S = 0.005
NOTHING_LEFT = "no token is left that both the grammar and the request's other rules allow"


class Follower:
    """One sequence: its thinking, then its grammar, and the mask for its next token."""

    def __init__(self, matcher: Matcher, thought: Thought | None):
        self._matcher = matcher
        self._thought = thought
        self._left_s = SPARE_S
        self.mask = self._next()

    def consume(self, token_ids: Sequence[int]) -> "Follower":
        """Itself, gone on by these tokens. Raises GrammarFailed."""
        began_s = time.thread_time()
        for token_id in token_ids:
            if self._thought is None or not self._thought.append(token_id):
                self._matcher.consume(token_id)
        self.mask = self._next()
        self._left_s = min(SPARE_S, self._left_s + TOKEN_S * len(token_ids) - (time.thread_time() - began_s))
        if self._left_s < 0:
            raise GrammarFailed(f"its tokens take more than {TOKEN_S} s each: it is too ambiguous")
        return self

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


class _Place:
    """Where one sequence is, or why it is nowhere any more. `ready` is done when the last work on it is."""

    def __init__(self) -> None:
        self.ready: Future[None] = Future()
        self._follower: Follower | None = None
        self._failure = ""

    def put(self, made: Callable[[], Follower]) -> None:
        """Work on it, in the thread for that. Whatever a grammar does is its own request's failure."""
        if self._failure:
            return
        try:
            self._follower = made()
        except GrammarFailed as error:
            self._failure = str(error)
        except BaseException as error:  # a panic of the library is no Exception
            self._failure = f"{type(error).__name__}: {error}"

    def step(self, token_id: int) -> None:
        self.put(lambda: self.follower().consume((token_id,)))

    def follower(self) -> Follower:
        """Raises GrammarFailed. Waits for nothing: only for those who know that it is ready, or do the work."""
        if self._failure or self._follower is None:
            raise GrammarFailed(self._failure)
        return self._follower

    @property
    def mask(self) -> Mask:
        """Waits until it is ready. Of a grammar that has failed, anything."""
        self.ready.result()
        return ANYTHING if self._failure or self._follower is None else self._follower.mask

    @property
    def failure(self) -> str:
        """Waits until it is ready. "" while all is well."""
        self.ready.result()
        return self._failure


class Grammars:
    """All sequences of a rank that follow a grammar, by number. Others cost nothing here."""

    def __init__(self, path: Path, vocab_size: int, eos_ids: Sequence[int]):
        self._path = path
        self._vocab_size = vocab_size
        self._eos_ids = tuple(eos_ids)
        self._places: dict[int, _Place] = {}
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
            return follower.consume(output_ids) if output_ids else follower

        place = self._places[number] = _Place()
        place.ready = self._compiling.submit(place.put, begin)

    def fork(self, number: int, parent: int, params: SamplingParams) -> None:
        """Let `number` go on from where `parent` is. Nothing happens when that follows no grammar."""
        if (source := self._places.get(parent)) is None:
            return
        ends, before = self._ends(params), source.ready

        def copy() -> Follower:
            before.result()
            return source.follower().copy(ends)

        place = self._places[number] = _Place()
        place.ready = self._following.submit(place.put, copy)

    def advance(self, gained: Sequence[tuple[int, int]]) -> None:
        """(sequence, token id) of what was sampled: their next masks are computed from now on."""
        moved = [(place, token_id) for number, token_id in gained if (place := self._places.get(number)) is not None]
        if moved:
            ready = self._following.submit(_step_all, [(place, place.ready, token_id) for place, token_id in moved])
            for place, _ in moved:
                place.ready = ready

    def release(self, number: int) -> None:
        """Forget a sequence."""
        self._places.pop(number, None)

    def mask(self, number: int) -> Mask:
        """What the sequence's grammar allows next. Waits until it is there. Of one that failed, anything."""
        place = self._places.get(number)
        return ANYTHING if place is None else place.mask

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
        failures = ((number, place.failure) for number, place in places if place is not None)
        return tuple(Refused(number, f"the grammar cannot be followed: {why}") for number, why in failures if why)

    def _allows(self, item: Sampled) -> bool:
        place = self._places.get(item.sequence)
        return place is None or place.mask.allows(item.token_id)

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


def _step_all(moved: Sequence[tuple[_Place, "Future[None]", int]]) -> None:
    for place, before, token_id in moved:
        before.result()
        place.step(token_id)


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
