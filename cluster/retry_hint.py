"""When a refused client should come again: pure, and the same for groups and for routers.

The tokens that wait leave a queue at a measured rate. Those who were refused queue too, outside: each is told to come
when its turn would be, so that they do not all come back at once.

    hint = (tokens that must leave before there is room + tokens of those refused before) / rate
"""

from dataclasses import dataclass

UNKNOWN_RATE_S = 1.0  # the hint while nothing was measured
LEAST_S, MOST_S = 0.05, 30.0


@dataclass(slots=True)
class RetryHints:
    """Remembers how many tokens were sent away and, by the rate, have not come back yet."""

    _away_tokens: float = 0.0
    _seen_s: float = 0.0

    def refuse(self, tokens: float, excess_tokens: float, tokens_per_s: float, now_s: float) -> float:
        """Seconds after which a request of `tokens` should be tried again.

        excess_tokens: how many must leave the queue before it has room. tokens_per_s: 0 while it is not known.
        """
        if tokens_per_s <= 0.0:
            return UNKNOWN_RATE_S
        self._away_tokens = max(0.0, self._away_tokens - tokens_per_s * max(0.0, now_s - self._seen_s))
        self._seen_s = now_s
        hint_s = (max(1.0, excess_tokens) + self._away_tokens) / tokens_per_s
        if hint_s < MOST_S:  # who comes later than that is told the same, and is not counted
            self._away_tokens += tokens
        return min(MOST_S, max(LEAST_S, hint_s))


def excess(waiting: int, waiting_tokens: int, max_waiting: int, max_waiting_tokens: int, tokens: int) -> float:
    """Tokens that must leave a queue before `tokens` more have room in it; 0 when there is room."""
    mean = waiting_tokens / waiting if waiting else 0.0
    by_requests = mean * (waiting + 1 - max_waiting)
    by_tokens = waiting_tokens + tokens - max_waiting_tokens if waiting else 0.0
    return max(0.0, by_requests, by_tokens)
