"""How much of the prompts a step may compute beside running streams, so that these keep their pace.

A step with streams in it may take `stretch` times as long as one without prompts. How many prompt tokens that is
depends on machine, model and context, so it is measured:

    seconds of a step = decode_s(rows) + token_s * prompt tokens + attended_s * sum of the positions they attend to

decode_s is the median of the last steps that had streams alone; while a prompt is computed, one step in PROBE_STEPS
leaves it out to look again. The two costs are a least-squares fit to relative errors in which old steps fade. What the
fit was wrong by lately is the margin that is left, for the limit is meant for the 99th percentile.

One token of a prompt is the least that a step can compute, and behind many others it may take longer than the limit.
Then no step with a prompt keeps it, and streams keep it in the mean: what was beyond the limit is owed, and steps
without prompts pay for it, PROBE_STEPS of them at most.

Everything here is pure: the times come from the engine's clock, and which tokens share a step changes no bit of what
they are.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

DECODE_SAMPLES = 9
PROBE_STEPS = 16
HASTY_PROBE_STEPS = 4  # when the number of streams has changed
ALIKE_ROWS = 1.25  # numbers of streams within this factor take about as long
FADING = 0.95  # weight of a step's sample one step later
FIRST_TOKENS = 16  # of a prompt beside streams, before anything is known
GROWTH = 2  # chunks at most double, so that a wrong guess is not far off
P99_DEVIATIONS = 3.0  # more than of a normal distribution: pauses are not rare
LEAST_MARGIN, MOST_MARGIN = 0.1, 0.4
OUTLIER = 0.5  # relative errors count up to here: a pause of the machine is no reason to crawl


@dataclass(frozen=True, slots=True)
class Work:
    """What one step computed. attended: positions that its prompt tokens attended to, summed."""

    decodes: int = 0
    prompt_tokens: int = 0
    attended: float = 0.0

    def with_prompt(self, start: int, count: int) -> "Work":
        """The same and a chunk of a prompt."""
        return Work(self.decodes, self.prompt_tokens + count, self.attended + attended(start, count))


def attended(start: int, count: int) -> float:
    """Positions that tokens [start, start + count) attend to, summed."""
    return count * (start + count / 2)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a prompt token, and of each position it attends to."""

    token_s: float
    attended_s: float

    def seconds(self, work: Work) -> float:
        return self.token_s * work.prompt_tokens + self.attended_s * work.attended

    def tokens(self, seconds: float, start: int) -> float:
        """The longest chunk from `start` on that takes no more than `seconds`."""
        linear, square = self.token_s + self.attended_s * start, self.attended_s / 2
        divisor = linear + math.sqrt(linear * linear + 4 * square * seconds)
        return 2 * seconds / divisor if divisor > 0.0 else math.inf


@dataclass(slots=True)
class Fit:
    """Least squares for two costs that are not negative, weighted by 1 / seconds^2: relative errors."""

    tokens2: float = 0.0
    attended2: float = 0.0
    both: float = 0.0
    tokens_s: float = 0.0
    attended_s: float = 0.0

    def add(self, work: Work, extra_s: float, step_s: float) -> None:
        """A step of `step_s` spent `extra_s` on its prompts."""
        x, z, y = work.prompt_tokens / step_s, work.attended / step_s, extra_s / step_s
        self.tokens2 = FADING * self.tokens2 + x * x
        self.attended2 = FADING * self.attended2 + z * z
        self.both = FADING * self.both + x * z
        self.tokens_s = FADING * self.tokens_s + x * y
        self.attended_s = FADING * self.attended_s + z * y

    @property
    def costs(self) -> Costs | None:
        """None while nothing is known."""
        if not self.tokens2:
            return None
        determinant = self.tokens2 * self.attended2 - self.both * self.both
        if determinant > 1e-6 * self.tokens2 * self.attended2:
            token_s = (self.tokens_s * self.attended2 - self.attended_s * self.both) / determinant
            attended_s = (self.attended_s * self.tokens2 - self.tokens_s * self.both) / determinant
            if token_s >= 0.0 and attended_s >= 0.0:
                return Costs(token_s, attended_s)
            if token_s < 0.0:
                return Costs(0.0, max(0.0, self.attended_s / self.attended2))
        return Costs(max(0.0, self.tokens_s / self.tokens2), 0.0)


@dataclass(slots=True)
class Allowance:
    """What is left of a plan's time for prompts. costs None: no limit but `most_tokens`."""

    costs: Costs | None = None
    seconds: float = math.inf
    most_tokens: float = math.inf
    taken: int = 0

    @property
    def is_spent(self) -> bool:
        return self.most_tokens < 1 or (self.taken > 0 and self.seconds <= 0.0)

    def tokens(self, start: int) -> float:
        """How many tokens of a prompt may be computed from `start` on: one at least, if it is the first."""
        if self.is_spent:
            return 0
        within = self.costs.tokens(self.seconds, start) if self.costs else math.inf
        return min(self.most_tokens, max(within, 0 if self.taken else 1))

    def take(self, start: int, count: int) -> None:
        self.taken += count
        self.most_tokens -= count
        if self.costs:
            # One token more than was taken: what is left is worth a token of another prompt, or is nothing.
            self.seconds -= self.costs.seconds(Work().with_prompt(start, count + 1))


@dataclass(slots=True)
class Pace:
    """What one group's steps have told so far."""

    stretch: float
    _decodes: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=DECODE_SAMPLES))
    _fit: Fit = field(default_factory=Fit)
    _chunk: int = FIRST_TOKENS // GROWTH  # prompt tokens of the last step that had streams too
    _error2: float = (LEAST_MARGIN / P99_DEVIATIONS) ** 2
    _steps: int = PROBE_STEPS  # planned since the last one without prompts
    _owed_s: float = 0.0  # to the streams: what prompts took of their time beyond the limit

    def allowance(self, decodes: int) -> Allowance:
        """For a plan with `decodes` streams in it, in a group that has streams."""
        if math.isinf(self.stretch):
            return Allowance()
        self._steps += 1
        if decodes and (self._owed_s > 0.0 or self._must_probe(decodes)):
            self._steps = 0
            return Allowance(most_tokens=0)
        decode_s = self._decode_s(decodes)
        most = max(1, GROWTH * self._chunk)
        costs = self._fit.costs
        if decode_s is None or costs is None:
            return Allowance(most_tokens=most)
        margin = min(MOST_MARGIN, max(LEAST_MARGIN, P99_DEVIATIONS * math.sqrt(self._error2)))
        seconds = max(0.0, self.stretch * (1 - margin) * decode_s - decode_s)
        return Allowance(costs, seconds, most)

    def observe(self, work: Work, step_s: float) -> None:
        """A step has taken `step_s`."""
        if step_s <= 0.0:
            return
        if not work.prompt_tokens:
            self._decodes.append((work.decodes, step_s))
            self._owe(0.0, step_s)
            return
        decode_s = self._decode_s(work.decodes)
        if decode_s is None:
            if work.decodes:
                return
            decode_s = 0.0
        self._chunk = max(work.prompt_tokens, self._chunk // GROWTH)
        if work.decodes and (costs := self._fit.costs) is not None:
            wrong = min(OUTLIER, abs(step_s / (decode_s + costs.seconds(work)) - 1.0))
            self._error2 = FADING * self._error2 + (1 - FADING) * wrong * wrong
            self._owe(costs.seconds(work), decode_s)
        self._fit.add(work, max(0.0, step_s - decode_s), step_s)

    def _owe(self, prompts_s: float, decode_s: float) -> None:
        """A step's prompts took so long by the fit, which pauses of the machine do not move far."""
        if not math.isinf(self.stretch):
            limit_s = (self.stretch - 1.0) * decode_s
            self._owed_s = min(PROBE_STEPS * limit_s, max(0.0, self._owed_s + prompts_s - limit_s))

    def _must_probe(self, decodes: int) -> bool:
        if self._steps >= PROBE_STEPS:
            return True
        return self._steps >= HASTY_PROBE_STEPS and not self._alike(decodes)

    def _decode_s(self, decodes: int) -> float | None:
        known = self._alike(decodes) or [seconds for _, seconds in self._decodes]
        return median(known) if known else None

    def _alike(self, decodes: int) -> list[float]:
        return [seconds for rows, seconds in self._decodes if max(rows, decodes) <= ALIKE_ROWS * min(rows, decodes)]
