"""A circuit breaker for groups: where they die again and again soon after they joined, new ones get nothing at first.

    node A, model m     join --x  join --x  join --x        join ........ one at a time ...... trusted again
                             short lives                         kept out

Nygard, "Release It!" (2007), has the pattern. A group is known by its node and its model: one that is started anew has
another id, and lives in the same place. Only new groups are kept out, not older ones in the same place.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

SHORT_LIFE_S = 60.0
WINDOW_S = 900.0  # in which short lives are counted
MOST_SHORT_LIVES = 3
FIRST_HOLD_S = 10.0
LONGEST_HOLD_S = 300.0


class Trust(Enum):
    """How many requests a group gets."""

    FULL = auto()
    ON_TRIAL = auto()  # one at a time
    NONE = auto()  # none, while there are others


def hold_s(short_lives_s: Iterable[float], now_s: float) -> float:
    """How long a group that joins now is kept out. short_lives_s: when short lives ended in its place."""
    recent = sum(now_s - ended_s < WINDOW_S for ended_s in short_lives_s)
    if recent < MOST_SHORT_LIVES:
        return 0.0
    return float(min(FIRST_HOLD_S * 2 ** (recent - MOST_SHORT_LIVES), LONGEST_HOLD_S))


def trust(held_s: float, age_s: float) -> Trust:
    """In a group that joined `age_s` ago and is kept out for `held_s`."""
    if not held_s or age_s >= held_s + SHORT_LIFE_S:
        return Trust.FULL
    return Trust.ON_TRIAL if age_s >= held_s else Trust.NONE


@dataclass(frozen=True, slots=True)
class _Life:
    place: str
    joined_s: float
    held_s: float


class Breaker:
    """The lives of one model's groups, by place."""

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self._lives: dict[str, _Life] = {}
        self._short_lives_s: dict[str, list[float]] = {}

    def joined(self, group_id: str, place: str) -> None:
        now_s = self._clock()
        self._lives[group_id] = _Life(place, now_s, hold_s(self._short_lives_s.get(place, ()), now_s))

    def left(self, group_id: str, *, is_explained: bool) -> None:
        """A group is gone. is_explained: it was meant to end, or a request is to blame."""
        life, now_s = self._lives.pop(group_id), self._clock()
        if is_explained or now_s - life.joined_s >= SHORT_LIFE_S:
            return
        before = self._short_lives_s.get(life.place, [])
        self._short_lives_s[life.place] = [at for at in before if now_s - at < WINDOW_S] + [now_s]

    def trust(self, group_id: str) -> Trust:
        life = self._lives.get(group_id)
        return Trust.FULL if life is None else trust(life.held_s, self._clock() - life.joined_s)
