"""How fast the waiting queue drains: tokens of requests that start, a second, while others wait."""

import math
from dataclasses import dataclass

SPAN_S = 0.25  # shortest stretch that is taken for a sample: a few steps at least
MEMORY_S = 2.0  # a sample's weight has faded to 1/e after so long


@dataclass(slots=True)
class DrainRate:
    """Pure: the caller says what time it is. Only stretches in which somebody always waited are counted: what a group
    takes on when nobody waits says nothing of what it can take on."""

    tokens_per_s: float = 0.0
    _tokens: int = 0
    _since_s: float | None = None

    def started(self, tokens: int) -> None:
        """A request of `tokens` left the queue."""
        self._tokens += tokens

    def look(self, waiting: int, now_s: float) -> None:
        """Call now and then, once a step say: `waiting` requests wait at this moment."""
        since_s = self._since_s
        if since_s is None:
            if waiting:
                self._since_s, self._tokens = now_s, 0
            return
        if now_s - since_s >= SPAN_S:
            self._count(now_s - since_s)
            self._since_s, self._tokens = now_s, 0
        if not waiting:
            self._since_s = None

    def _count(self, span_s: float) -> None:
        rate = self._tokens / span_s
        kept = math.exp(-span_s / MEMORY_S) if self.tokens_per_s else 0.0
        self.tokens_per_s = kept * self.tokens_per_s + (1.0 - kept) * rate
