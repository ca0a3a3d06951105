"""The router's own count of what each group has yet to do for it.

Each request holds a lease, which is given back on every path.
"""

from collections import Counter
from types import TracebackType

from rayline.cluster.retry_hint import RetryHints


class Ledger:
    """Outstanding tokens by group. A group's report is a step old; this count knows of a request at once."""

    def __init__(self) -> None:
        self._tokens: Counter[str] = Counter()
        self._hints: dict[str, RetryHints] = {}

    def hints(self, model: str) -> RetryHints:
        """When those who are refused are to come again, which depends on those refused before."""
        return self._hints.setdefault(model, RetryHints())

    def outstanding_tokens(self, group_id: str) -> int:
        return self._tokens[group_id]

    def lease(self, group_id: str, tokens: int) -> "Lease":
        """Counts `tokens` to the group until they are done or the lease ends."""
        return Lease(self._tokens, group_id, tokens)


class Lease:
    """The share of one request. As a context manager it gives back what is left at the end."""

    def __init__(self, tokens: Counter[str], group_id: str, count: int):
        self._tokens = tokens
        self._group_id = group_id
        self._left = 0
        self._add(count)

    def done(self, count: int) -> None:
        """`count` tokens are computed."""
        self._add(-min(count, self._left))

    def end(self) -> None:
        """Give back what is left."""
        self.done(self._left)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def _add(self, count: int) -> None:
        self._left += count
        self._tokens[self._group_id] += count
        if not self._tokens[self._group_id]:
            del self._tokens[self._group_id]
