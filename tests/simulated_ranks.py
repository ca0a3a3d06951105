"""A model without arithmetic: follows plans as a rank does and checks everything a plan promises.

Its "keys and values" are the tokens themselves: a slot holds (position, hash of the tokens up to it). If
a plan points at a block whose content is another one's, or was overwritten, the check fails at once.
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field

from rayline.protos.plan import Plan, Sampled, Slice, StepResult
from rayline.protos.types import SamplingParams
from rayline.workers.pipeline import RankStats


def next_token(tokens: tuple[int, ...], vocab_size: int) -> int:
    """The token this model continues with: a pure function of everything before it."""
    digest = hashlib.sha256(repr(tokens).encode()).digest()
    return int.from_bytes(digest[:4], "little") % vocab_size


@dataclass
class Known:
    tokens: list[int]
    params: SamplingParams
    table: list[int] = field(default_factory=list)


class SimulatedRanks:
    """A Pipeline. `delay` plans are in flight before a result comes, as with `delay` pipeline stages."""

    def __init__(self, blocks: int, block_tokens: int, vocab_size: int, delay: int = 1):
        self.block_tokens = block_tokens
        self.vocab_size = vocab_size
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
        for number in plan.released:
            del self.known[number]
        for new in plan.admitted:
            assert new.sequence not in self.known
            self.known[new.sequence] = Known([*new.prompt_ids, *new.output_ids], new.params)
        for item in plan.slices:
            self._write(item)
        sampled = [self._sample(item) for item in plan.slices if self._checked(item)]
        self.results.append(StepResult(plan.epoch, plan.step, tuple(sampled)))

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

    def _write(self, item: Slice) -> None:
        known = self.known[item.sequence]
        known.table[item.first_block :] = item.block_ids
        assert item.start + item.count <= len(known.tokens), "tokens that nobody has sampled yet"
        for position in range(item.start, item.start + item.count):
            content = (position, hash(tuple(known.tokens[: position + 1])))
            self.slots[self._slot(known.table, position)] = content

    def _checked(self, item: Slice) -> bool:
        known = self.known[item.sequence]
        for position in range(item.start + item.count):
            expected = (position, hash(tuple(known.tokens[: position + 1])))
            assert self.slots[self._slot(known.table, position)] == expected, "another sequence's keys and values"
        assert item.samples == (item.start + item.count == len(known.tokens))
        return item.samples

    def _sample(self, item: Slice) -> Sampled:
        known = self.known[item.sequence]
        token = next_token(tuple(known.tokens), self.vocab_size)
        known.tokens.append(token)
        return Sampled(item.sequence, token)
