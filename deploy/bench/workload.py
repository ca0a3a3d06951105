"""What a benchmark asks for and when: pure functions of their seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Job:
    """One request: random tokens in, exactly `output_tokens` out (end-of-sequence is ignored)."""

    number: int
    prompt_ids: tuple[int, ...]
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Shape:
    """How jobs look: lengths in tokens, and where their random token ids come from."""

    input_tokens: int
    output_tokens: int
    vocab_size: int
    seed: int

    def jobs(self, count: int, repeat: int = 0) -> tuple[Job, ...]:
        """Prompts of independent random tokens: no two, of other repeats too, share a prefix worth caching."""
        source = random.Random(f"{self.seed}/{repeat}")
        return tuple(
            Job(number, tuple(source.randrange(self.vocab_size) for _ in range(self.input_tokens)), self.output_tokens)
            for number in range(count)
        )


def poisson_arrivals(rate_per_s: float, seed: int) -> Iterator[float]:
    """Seconds from the start at which requests are due: a Poisson process, so gaps are exponential."""
    source = random.Random(seed)

    def gaps() -> Iterator[float]:
        while True:
            yield source.expovariate(rate_per_s)

    return accumulate(gaps())
