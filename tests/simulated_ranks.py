"""A model without arithmetic: follows plans as a rank does and checks everything a plan promises.

Its "keys and values" are the tokens themselves: a slot holds (position, hash of the tokens up to it). If
a plan points at a block whose content is another one's, or was overwritten, the check fails at once.
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field

from rayline.protos.events import TokenLogprob
from rayline.protos.plan import Candidates, Copy, Plan, Refused, Sampled, Scored, Slice, StepResult
from rayline.protos.types import PLAIN_RULES, SamplingParams, TokenRules
from rayline.workers.pipeline import RankStats
from rayline.workers.scheduling.beams import candidates_needed


def next_token(tokens: tuple[int, ...], vocab_size: int, seed: int = 0) -> int:
    """The token this model continues with: a pure function of everything before it and the seed."""
    digest = hashlib.sha256(repr((*tokens, f"seed {seed}") if seed else tokens).encode()).digest()
    return int.from_bytes(digest[:4], "little") % vocab_size


def prompt_score(tokens: tuple[int, ...]) -> float:
    """What it says of the last of `tokens` as a continuation of those before."""
    digest = hashlib.sha256(b"score" + repr(tokens).encode()).digest()
    return -int.from_bytes(digest[:2], "little") / 4096


def candidates(tokens: tuple[int, ...], vocab_size: int, count: int) -> tuple[TokenLogprob, ...]:
    """Its best continuations, best first: pure as `next_token` is."""
    scored = ((prompt_score((*tokens, token)), token) for token in range(vocab_size))
    return tuple(TokenLogprob(token, score) for score, token in sorted(scored, key=lambda s: (-s[0], s[1]))[:count])


@dataclass
class Known:
    tokens: list[int]
    params: SamplingParams
    prompt: int = 0
    rules: TokenRules = PLAIN_RULES
    table: list[int] = field(default_factory=list)


class SimulatedRanks:
    """A Pipeline. `delay` plans are in flight before a result comes, as with `delay` pipeline stages."""

    def __init__(
        self, blocks: int, block_tokens: int, vocab_size: int, delay: int = 1, eos_ids: frozenset[int] = frozenset()
    ):
        self.block_tokens = block_tokens
        self.vocab_size = vocab_size
        self.eos_ids = eos_ids
        self.window = delay
        self.slots: list[tuple[int, int] | None] = [None] * (blocks * block_tokens)
        self.known: dict[int, Known] = {}
        self.results: deque[StepResult] = deque()
        self.plans: list[Plan] = []

    @property
    def in_flight(self) -> int:
        return len(self.results)

    def submit(self, plan: Plan) -> None:
        assert plan.slices, "an empty plan"
        assert len({s.sequence for s in plan.slices}) == len(plan.slices), "a sequence twice in one plan"
        self.plans.append(plan)
        self._meet(plan)
        self._copy(plan.copies)
        written: set[int] = set()
        for item in plan.slices:
            self._write(item, written)
        ending = [item for item in plan.slices if self._checked(item)]
        sampling = [number for item in ending for number in (item.sequence, *item.forks)]
        scored = [self._score(item) for item in plan.slices if item.scores]
        beams = [number for number in sampling if self.known[number].params.beam_width]
        tokens = [number for number in sampling if number not in beams]
        self.results.append(
            StepResult(
                plan.epoch,
                plan.step,
                tuple(self._sample(number) for number in tokens if self.known[number].rules.grammar != "bad"),
                candidates=tuple(self._search(number) for number in beams),
                scored=tuple(scored),
                refused=tuple(self._refuse(number) for number in tokens if self.known[number].rules.grammar == "bad"),
            )
        )

    def next_result(self) -> StepResult:
        return self.results.popleft()

    def check(self) -> None:
        """Nothing can be lost here."""

    def rank_stats(self) -> tuple[RankStats, ...]:
        assert not self.results, "ranks answer between steps only"
        return (RankStats(0, 0, 0.0, 0.0, 0, 0, 0, 0, 0),)

    @property
    def limit_s(self) -> float:
        return 1.5

    def fence(self) -> None:
        """Nothing to end."""

    def close(self) -> None:
        """Nothing to end."""

    def _slot(self, table: list[int], position: int) -> int:
        return table[position // self.block_tokens] * self.block_tokens + position % self.block_tokens

    def _meet(self, plan: Plan) -> None:
        """Everything said of sequences, in the order a plan is followed."""
        for new in plan.admitted:
            assert new.sequence not in self.known
            tokens = [*new.prompt_ids, *new.output_ids]
            self.known[new.sequence] = Known(tokens, new.params, len(new.prompt_ids), new.rules)
        for fork in plan.forked:
            assert fork.sequence not in self.known
            parent = self.known[fork.parent]
            self.known[fork.sequence] = Known(list(parent.tokens), fork.params, parent.prompt, parent.rules)
        for given in plan.gained:
            known = self.known[given.sequence]
            assert known.params.beam_width, "a token of a sequence that samples"
            known.tokens.append(given.token_id)
        for number in plan.released:
            del self.known[number]

    def _copy(self, copies: tuple[Copy, ...]) -> None:
        size = self.block_tokens
        read = [self.slots[copy.source * size : (copy.source + 1) * size] for copy in copies]
        assert len({copy.target for copy in copies}) == len(copies), "a block copied to twice"
        for copy, content in zip(copies, read, strict=True):
            self.slots[copy.target * size : (copy.target + 1) * size] = content

    def _write(self, item: Slice, written: set[int]) -> None:
        known = self.known[item.sequence]
        known.table[item.first_block :] = item.block_ids
        assert item.start + item.count <= len(known.tokens), "tokens that nobody has sampled yet"
        for position in range(item.start, item.start + item.count):
            content = (position, hash(tuple(known.tokens[: position + 1])))
            slot = self._slot(known.table, position)
            assert slot not in written, "two sequences write to one slot"
            written.add(slot)
            self.slots[slot] = content

    def _checked(self, item: Slice) -> bool:
        known = self.known[item.sequence]
        for position in range(item.start + item.count):
            expected = (position, hash(tuple(known.tokens[: position + 1])))
            assert self.slots[self._slot(known.table, position)] == expected, "another sequence's keys and values"
        assert item.samples == (item.start + item.count == len(known.tokens))
        assert item.samples or not item.forks
        assert all(self.known[fork].tokens == known.tokens for fork in item.forks)
        return item.samples

    def _sample(self, number: int) -> Sampled:
        known = self.known[number]
        token = next_token(tuple(known.tokens), self.vocab_size, known.params.seed or 0)
        known.tokens.append(token)
        return Sampled(number, token)

    def _search(self, number: int) -> Candidates:
        known = self.known[number]
        count = candidates_needed(known.params, known.rules, self.eos_ids)
        return Candidates(number, candidates(tuple(known.tokens), self.vocab_size, count))

    def _score(self, item: Slice) -> Scored:
        known = self.known[item.sequence]
        first, end = item.start + 1, min(item.start + item.count + 1, known.prompt)
        tokens = tuple(known.tokens)
        scores = ((TokenLogprob(tokens[at], prompt_score(tokens[: at + 1])), ()) for at in range(first, end))
        return Scored(item.sequence, first, tuple(scores))

    def _refuse(self, number: int) -> Refused:
        """As real ranks do it takes a token all the same: the next plan may count on one."""
        self.known[number].tokens.append(0)
        return Refused(number, "no such grammar")
