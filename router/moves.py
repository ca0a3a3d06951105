"""Which streams go on in another group on purpose, and in which one. Pure: no clock, no randomness, no I/O.

`leave` empties groups that are to end, a few streams at a time; `rebalance` takes one long stream from a group that
has far more to do than another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

MOVING_TOKENS = 8192  # that the streams under way may hold together: what other groups compute again at one time
MOST_MOVING = 8  # streams under way at one time
SETTLED_S = 5.0  # in its group before a stream is moved for balance: reports of the load are to be true again
MUCH_FULLER = 2.0  # times what the other group has to do
UNEVEN = 1.5  # the difference, in streams like the one that is moved: above 1 nothing is ever moved back
LEAST_LEFT_TOKENS = 64  # a stream with less to come is not worth it
COMPUTED_AGAIN = 0.125  # of the time that an output token takes, for each token computed again
NEAR_TOKENS = 2  # behind the old group, at most, where the new one takes over at once


@dataclass(frozen=True, slots=True)
class Place:
    """A group as a stream's next place.

    bits: what decides a stream's bits there; None where they depend on other things too. tokens_ahead: what it has to
    do, of that own_tokens for this router. room_tokens: what its free blocks hold.
    """

    group_id: str
    bits: tuple[str, str] | None
    is_open: bool
    is_leaving: bool
    tokens_ahead: int
    own_tokens: int
    waiting: int
    room_tokens: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A stream where it stands. held_tokens: prompt and output so far, which another group computes before it can go
    on; left_tokens: what may still come; settled_s: how long it has been in its group."""

    lane: int
    group_id: str
    held_tokens: int
    left_tokens: int
    settled_s: float
    is_moving: bool = False
    is_search: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """Stream `lane` is to go on in group `target`."""

    lane: int
    target: str


def leave(places: Sequence[Place], standings: Sequence[Standing]) -> list[Move]:
    """Streams of leaving groups that may start out now, and where to: never a crowd at once.

    Those with most to come go first: the others may end by themselves meanwhile. Streams whose bits would change, or
    that have to be interrupted for the move, only go where they are computed at once.
    """
    by_id = {place.group_id: place for place in places}
    under_way = [standing for standing in standings if standing.is_moving]
    moving, tokens = len(under_way), sum(standing.held_tokens for standing in under_way)
    found = []
    for standing in sorted(standings, key=lambda s: (-s.left_tokens, s.lane)):
        here = by_id.get(standing.group_id)
        if standing.is_moving or here is None or not here.is_leaving:
            continue
        if moving >= MOST_MOVING or (moving and tokens + standing.held_tokens > MOVING_TOKENS):
            continue
        if (target := _onward(here, standing, by_id)) is None:
            continue
        found.append(Move(standing.lane, target.group_id))
        moving, tokens = moving + 1, tokens + standing.held_tokens
        by_id[target.group_id] = _fuller(target, standing)
    return found


def rebalance(places: Sequence[Place], standings: Sequence[Standing]) -> Move | None:
    """The one stream whose move makes the groups most even, if any is worth it; none while another is under way.

    With d the difference in tokens ahead and m the stream's tokens in the new group (those computed again count for
    the time they take), it moves only if d >= 1.5 m. So it never makes the new group much fuller than the old one
    becomes, the sum of squares of what the groups have to do falls with every move, and no stream is moved back.
    Several routers see the same difference: each takes its own share of it.
    """
    if any(standing.is_moving for standing in standings):
        return None
    by_id = {place.group_id: place for place in places}
    best: tuple[float, Move] | None = None
    for standing in standings:
        here = by_id.get(standing.group_id)
        if here is None or here.is_leaving or not _is_worth_it(standing):
            continue
        for there in places:
            if there is here or not _may_even_out(here, there, standing):
                continue
            cost = standing.left_tokens + COMPUTED_AGAIN * standing.held_tokens
            share = min(1.0, here.own_tokens / max(1, here.tokens_ahead))
            gap = here.tokens_ahead - there.tokens_ahead
            if share * gap < UNEVEN * cost:
                continue
            left = abs(gap - standing.left_tokens - cost)
            if best is None or (left, standing.lane, there.group_id) < (best[0], best[1].lane, best[1].target):
                best = (left, Move(standing.lane, there.group_id))
    return best[1] if best else None


def is_near(behind_tokens: int, before_tokens: int | None) -> bool:
    """Whether a group that has computed a stream up to `behind_tokens` before its end takes over now, or is given the
    tokens that came meanwhile first (it has the others in its cache). `before_tokens`: the same in the last round."""
    return behind_tokens <= NEAR_TOKENS or (before_tokens is not None and 2 * behind_tokens > before_tokens)


def _onward(here: Place, standing: Standing, places: Mapping[str, Place]) -> Place | None:
    """The place for a stream that has to leave: of the same bits if there is one, and then the emptiest."""
    fits = [place for place in places.values() if _takes(here, place, standing)]
    return min(fits, key=lambda p: (p.bits != here.bits, p.waiting > 0, p.tokens_ahead, p.group_id), default=None)


def _takes(here: Place, there: Place, standing: Standing) -> bool:
    if there.group_id == here.group_id or not there.is_open or there.is_leaving:
        return False
    at_once = there.waiting == 0 and there.room_tokens > standing.held_tokens
    return at_once or (here.bits is not None and there.bits == here.bits)


def _fuller(place: Place, standing: Standing) -> Place:
    """The place once the stream is there, so that the next one may find another one better."""
    tokens = standing.held_tokens + standing.left_tokens
    return replace(
        place,
        tokens_ahead=place.tokens_ahead + tokens,
        own_tokens=place.own_tokens + tokens,
        room_tokens=place.room_tokens - standing.held_tokens,
    )


def _is_worth_it(standing: Standing) -> bool:
    """Of a search nothing can be taken along."""
    again = COMPUTED_AGAIN * standing.held_tokens
    enough = standing.left_tokens >= max(LEAST_LEFT_TOKENS, 2 * again)
    return enough and standing.settled_s >= SETTLED_S and not standing.is_search


def _may_even_out(here: Place, there: Place, standing: Standing) -> bool:
    if not there.is_open or there.is_leaving or here.bits is None or there.bits != here.bits:
        return False
    if there.waiting or there.room_tokens < standing.held_tokens + standing.left_tokens:
        return False
    return here.tokens_ahead >= MUCH_FULLER * there.tokens_ahead
