"""Which group takes a request: filter, score in [0, 1], pick. Pure: no clock, no randomness, no I/O."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rayline.cluster.retry_hint import excess
from rayline.protos.errors import Overloaded, Unavailable
from rayline.protos.group import GroupLoad
from rayline.router.breaker import Trust
from rayline.router.group import Group
from rayline.router.ledger import Ledger

RETRY_AFTER_S = 1.0  # while there is no group, and nothing that could be measured


@dataclass(frozen=True, slots=True)
class GroupView:
    """One group as the router sees it when it chooses.

    outstanding_tokens: the router's own count of tokens it has sent or asked for and not seen computed;
    `load` is the group's last report, which is a step old but counts other routers' requests too.
    """

    group_id: str
    model: str
    alive: bool
    draining: bool
    load: GroupLoad
    outstanding_tokens: int
    waiting: int
    max_waiting: int
    max_waiting_tokens: int = sys.maxsize
    trust: Trust = Trust.FULL

    @property
    def excess_tokens(self) -> float:
        """Tokens that must leave its queue before any have room in it; 0 when there is room."""
        load = self.load
        return excess(self.waiting, load.waiting_tokens, self.max_waiting, self.max_waiting_tokens, 1)


def view_of(group: Group, ledger: Ledger) -> GroupView:
    """What the policy sees of a group."""
    return GroupView(
        group_id=group.info.group_id,
        model=group.info.model,
        alive=group.alive,
        draining=group.load.draining,
        load=group.load,
        outstanding_tokens=ledger.outstanding_tokens(group.info.group_id),
        waiting=group.load.waiting,
        max_waiting=group.info.max_waiting,
        trust=group.trust,
        max_waiting_tokens=group.info.max_waiting_tokens,
    )


@dataclass(frozen=True, slots=True)
class Choice:
    """The group that takes the request, its score, and a sentence on why."""

    group_id: str
    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A named score in [0, 1] (higher is better) and its weight in the sum."""

    name: str
    weight: float
    score: Callable[[int, GroupView], float]


def tokens_ahead(view: GroupView) -> int:
    """Tokens a new request may have to wait for: the larger of the router's count and the group's report."""
    return max(view.outstanding_tokens, view.load.outstanding_tokens)


def least_outstanding(request_tokens: int, view: GroupView) -> float:
    """Spread by load: score = r / (r + a), r the request's own tokens (at least 1), a the tokens ahead of it.

    1 for an idle group, 1/2 where as much work waits as the request brings, towards 0 beyond.
    """
    own = max(request_tokens, 1)
    return own / (own + tokens_ahead(view))


SCORERS = (Scorer("least_outstanding", 1.0, least_outstanding),)


def choose(request_tokens: int, views: Sequence[GroupView], turn: int, scorers: Sequence[Scorer] = SCORERS) -> Choice:
    """The group for a request of `request_tokens` (prompt + tokens asked for).

    Highest weighted mean score wins; a tie goes to the fewest tokens ahead; groups equal in both take
    turns in the order of their ids, `turn` being the caller's count of choices made. The order of
    `views` does not matter. Raises Unavailable when no group is alive, Overloaded when all are full.
    """
    candidates = open_groups(views)
    weight = sum(scorer.weight for scorer in scorers)
    scores = {
        view.group_id: sum(scorer.weight * scorer.score(request_tokens, view) for scorer in scorers) / weight
        for view in candidates
    }
    rank = {view.group_id: (scores[view.group_id], -tokens_ahead(view)) for view in candidates}
    best = max(rank.values())
    tied = sorted(group_id for group_id in rank if rank[group_id] == best)
    chosen = tied[turn % len(tied)]
    reasons = (
        f"score {scores[chosen]:.3f}, {-best[1]} tokens ahead, best of {len(candidates)} open in {len(views)} groups",
    )
    return Choice(chosen, scores[chosen], reasons)


def open_groups(views: Sequence[GroupView]) -> list[GroupView]:
    """The groups that may take a request. Raises Unavailable or Overloaded when there is none."""
    serving = [view for view in views if view.alive and not view.draining]
    if not serving:
        raise Unavailable(f"none of the {len(views)} groups of this model can serve", retry_after_s=RETRY_AFTER_S)
    free = [view for view in serving if view.waiting < view.max_waiting and not view.excess_tokens]
    if not free:
        waiting = sum(view.waiting for view in serving)
        raise Overloaded(
            f"all {len(serving)} groups are full: {waiting} requests wait, allowed are "
            f"{sum(view.max_waiting for view in serving)}, and {sum(view.load.waiting_tokens for view in serving)} "
            f"tokens, allowed are {sum(view.max_waiting_tokens for view in serving)}",
            retry_after_s=RETRY_AFTER_S,
        )
    return [view for view in free if is_open(view)] or free


def is_open(view: GroupView) -> bool:
    """Whether its breaker lets one more request in. Where none does, all do: better than nothing."""
    return view.trust is Trust.FULL or (view.trust is Trust.ON_TRIAL and not view.outstanding_tokens)


def until_room(views: Sequence[GroupView]) -> tuple[float, float]:
    """Tokens that must leave a queue before some group has room, and the tokens a second that leave all queues."""
    serving = [view for view in views if view.alive and not view.draining]
    missing = min((view.excess_tokens for view in serving), default=0.0)
    return missing, sum(view.load.tokens_per_s for view in serving)
