"""When one request's output arrived. All times are seconds of one clock."""

from dataclasses import dataclass
from itertools import pairwise

from rayline.protos.events import Overhead


@dataclass(frozen=True, slots=True)
class Arrival:
    """Output tokens that became visible together."""

    at_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """One request as its caller saw it.

        due_s      sent_s        arrivals[0]   arrivals[1]      ended_s
          |----------|-----------------|-------------|-------------|
             late          TTFT              ITL

    due_s is when the load asked for it: in an open loop, waiting for the sender counts as waiting.
    `error` is the failure's text, and then the arrivals may be incomplete.
    """

    due_s: float
    sent_s: float
    arrivals: tuple[Arrival, ...]
    ended_s: float
    prompt_tokens: int
    error: str | None = None
    overhead: Overhead | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and bool(self.arrivals)

    @property
    def output_tokens(self) -> int:
        return sum(arrival.tokens for arrival in self.arrivals)

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.arrivals[0].at_s - self.due_s

    @property
    def e2e_s(self) -> float:
        """From the request being due to its end."""
        return self.ended_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after those that came first; None when all came at once."""
        later = self.output_tokens - self.arrivals[0].tokens
        return (self.arrivals[-1].at_s - self.arrivals[0].at_s) / later if later else None

    @property
    def itls_s(self) -> tuple[float, ...]:
        """Inter-token latencies: the gaps between arrivals."""
        times = [arrival.at_s for arrival in self.arrivals]
        return tuple(b - a for a, b in pairwise(times))
