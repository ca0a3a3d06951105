"""Who shares a group, and what each has had of it: the virtual token counters of Sheng et al., "Fairness in serving
large language models" (OSDI 2024), with weights.

    service of a tenant    INPUT_COST a prompt token computed + CACHED_COST one found in the prefix cache
                           + OUTPUT_COST a token sampled
    counter                service / weight; the next request to start is one of the tenant with the smallest
    lift                   a tenant that had nothing waiting begins at the smallest counter of those that have, if its
                           own is smaller: time without requests earns nothing

Two tenants that always have something waiting get service in the ratio of their weights: their counters never differ
by more than twice the largest cost that is not charged at once, max(INPUT_COST * longest prompt, OUTPUT_COST * tokens
that fit the group's KV cache) / smallest weight. A machine is never idle for fairness: whoever is alone gets all of it.
"""

from collections import Counter
from collections.abc import Mapping

INPUT_COST = 1.0
CACHED_COST = 0.1  # a table is filled and nothing is computed
OUTPUT_COST = 2.0  # as in the paper: a token by itself uses the machine worse than one of many
MAX_TENANTS = 4096  # that are remembered; names may come from anyone


class TenantCounters:
    """The counters of one group, in INPUT_COST units. Tenants without a weight have 1."""

    def __init__(self, weights: Mapping[str, float] | None = None):
        self._weights = dict(weights or {})
        self._counters: dict[str, float] = {}
        self._waiting: Counter[str] = Counter()
        self._last = 0.0  # counter of the last tenant that had something waiting

    def counter(self, tenant: str) -> float:
        """Service so far over weight. Only differences mean something."""
        return self._counters.get(tenant, 0.0)

    def charge(self, tenant: str, cost: float) -> None:
        self._counters[tenant] = self.counter(tenant) + cost / self._weights.get(tenant, 1.0)

    def enter(self, tenant: str) -> None:
        """One request more of `tenant` waits."""
        if not self._waiting[tenant]:
            floor = min(map(self.counter, +self._waiting), default=self._last)
            self._counters[tenant] = max(self.counter(tenant), floor)
            self._forget_some()
        self._waiting[tenant] += 1

    def leave(self, tenant: str) -> None:
        """One request of `tenant` waits no more."""
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            self._last = self.counter(tenant)

    def _forget_some(self) -> None:
        """The smallest counters of tenants that have nothing waiting: a lift gives them back almost as they were."""
        if len(self._counters) <= MAX_TENANTS:
            return
        idle = sorted((name for name in self._counters if not self._waiting[name]), key=self.counter)
        for name in idle[: len(self._counters) - MAX_TENANTS // 2]:
            del self._counters[name]
