"""How long a step may take before its group counts as stuck: pure, from the sizes and times of recent steps.

A step's time is taken to be a + b tokens + c rows + d pairs, with unknown a, b, c, d >= 0. So a step seen to take t
bounds every other one:

    time(size) <= t * max(1, tokens / its tokens, rows / its rows, pairs / its pairs)

save that a step without rows (a prompt's first chunks have none) says nothing of what rows cost. Of steps of about one
size the median bound holds, whatever single ones were disturbed by; among the sizes the tightest bound does.
"""

from collections import deque
from dataclasses import dataclass
from statistics import median

from rayline.protos.plan import Plan

FIRST_LIMIT_S = 120.0  # first calls compile, map and fault in what later ones find ready
FIRST_STEPS = 2  # those of the warm-up
NEW_SIZE_LIMIT_S = 10.0  # at least, for the first step of a size: libraries pick and compile kernels by size
LEAST_LIMIT_S = 1.5  # a process that wants a core on a crowded machine gets one long before
MULTIPLE = 8.0
REMEMBERED = 9  # steps of one size


@dataclass(frozen=True, slots=True)
class StepSize:
    """What a step costs. tokens: computed; rows: of logits; pairs: of query and key tokens, at most."""

    tokens: int
    rows: int
    pairs: int

    def times(self, other: "StepSize") -> float:
        """How many times as long as `other` this may take, at most; at least 1."""
        return max(
            1.0,
            self.tokens / max(1, other.tokens),
            self.rows / max(1, other.rows),
            self.pairs / max(1, other.pairs),
        )


def size_of(plan: Plan) -> StepSize:
    """The size of a plan."""
    rows = sum((s.count if s.scores else s.samples) + len(s.forks) for s in plan.slices)
    return StepSize(plan.tokens, rows, sum(s.count * (s.start + s.count) for s in plan.slices))


class StepTimes:
    """Times of recent steps, and the limits that follow from them. `depth`: stages that one plan runs through.

    One thread calls `record`; any may ask for limits.
    """

    def __init__(self, depth: int = 1):
        self._depth = depth
        self._steps = 0
        self._seen: dict[tuple[int, bool], deque[tuple[StepSize, float]]] = {}

    def record(self, size: StepSize, took_s: float) -> None:
        """A step of `size` brought its result `took_s` after it could begin."""
        bucket = self._seen.setdefault(_bucket(size), deque(maxlen=REMEMBERED))
        bucket.append((size, took_s))
        self._steps += 1

    def limit_s(self, size: StepSize) -> float:
        """A step of `size` that takes longer than this is stuck."""
        if self._steps < FIRST_STEPS:
            return FIRST_LIMIT_S
        bounds = [
            median(took_s * size.times(seen) for seen, took_s in list(bucket))
            for (_, has_rows), bucket in tuple(self._seen.items())
            if has_rows or not size.rows
        ]
        least_s = LEAST_LIMIT_S if _bucket(size) in self._seen else NEW_SIZE_LIMIT_S
        return max(least_s, MULTIPLE * self._depth * min(bounds)) if bounds else FIRST_LIMIT_S


def _bucket(size: StepSize) -> tuple[int, bool]:
    """Sizes up to about twice each other are of one bucket, with rows or without."""
    return size.tokens.bit_length(), size.rows > 0


class InFlight:
    """The plans that a group has not answered yet, oldest first, and since when each could run."""

    def __init__(self, times: StepTimes):
        self._times = times
        self._sizes: deque[tuple[StepSize, float]] = deque()
        self._answered_s = 0.0

    def __len__(self) -> int:
        return len(self._sizes)

    def submitted(self, plan: Plan, now_s: float) -> None:
        self._sizes.append((size_of(plan), now_s))

    def answered(self, now_s: float, busy_s: float) -> None:
        """The oldest plan's result is here. Results that waited for the leader come at once: `busy_s` still tells."""
        size, submitted_s = self._sizes.popleft()
        self._times.record(size, max(now_s - max(submitted_s, self._answered_s), busy_s))
        self._answered_s = now_s

    @property
    def limit_s(self) -> float:
        """How long the oldest plan may take. With none in flight: LEAST_LIMIT_S, enough for anything between steps."""
        try:
            size, _ = self._sizes[0]
        except IndexError:
            return LEAST_LIMIT_S
        return self._times.limit_s(size)

    @property
    def all_limit_s(self) -> float:
        """How long all of them together may take, one after the other."""
        return sum(self._times.limit_s(size) for size, _ in tuple(self._sizes)) or LEAST_LIMIT_S
