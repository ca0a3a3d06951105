"""How far a stream was read, and what is left of it for whoever goes on.

Each choice's events are a function of its tokens, but how those of several choices come between each other is not: so
a position counts them choice by choice. Events of the whole stream (Started, PromptScored, Finished) come in one order.
"""

from collections import Counter
from dataclasses import dataclass

from rayline.protos.errors import InvalidRequest
from rayline.protos.events import ChoiceEnded, Delta, StreamEvent

MOST_COMMON = 3  # events of the whole stream


@dataclass(frozen=True, slots=True)
class Position:
    """next_index: events read. seen: of each choice, how many of them; () where the order of all says it."""

    next_index: int = 0
    seen: tuple[int, ...] = ()

    def check(self, choices: int) -> None:
        """Raise InvalidRequest unless it can be one in a stream of so many choices."""
        if self.seen:
            if len(self.seen) > choices:
                raise InvalidRequest(f"seen has {len(self.seen)} entries: the stream has {choices}", field="seen")
            if not 0 <= self.next_index - sum(self.seen) <= MOST_COMMON:
                raise InvalidRequest(
                    f"seen = {list(self.seen)} does not fit next_index = {self.next_index}: its sum must be that, or "
                    f"up to {MOST_COMMON} less",
                    field="seen",
                )
        elif choices > 1 and self.next_index > 1:
            raise InvalidRequest(
                f"seen is missing: next_index = {self.next_index} says nothing of each of {choices} choices",
                field="seen",
            )


class Reading:
    """A stream read from its first event on: what is new to a reader who stopped at `start`, and where it is now."""

    def __init__(self, start: Position, choices: int):
        """Raises InvalidRequest where `start` cannot be a position of the stream."""
        start.check(choices)
        self.choices = choices
        by_choice = bool(start.seen)
        self._old_common = start.next_index - sum(start.seen)
        self._old = dict(enumerate(start.seen)) if by_choice else None
        self._next_index = start.next_index
        self._seen: Counter[int] = Counter(dict(enumerate(start.seen)))

    @property
    def position(self) -> Position:
        return Position(self._next_index, tuple(self._seen[choice] for choice in range(self.choices)))

    def take(self, event: StreamEvent) -> int | None:
        """The index of an event that is new; None for one that was read before."""
        choice = event.choice if isinstance(event, Delta | ChoiceEnded) else None
        if self._is_old(choice):
            return None
        if choice is not None:
            self._seen[choice] += 1
        index, self._next_index = self._next_index, self._next_index + 1
        return index

    def _is_old(self, choice: int | None) -> bool:
        if choice is None or self._old is None:
            if self._old_common == 0:
                return False
            self._old_common -= 1
            if choice is not None:
                self._seen[choice] += 1
            return True
        if self._old.get(choice, 0) == 0:
            return False
        self._old[choice] -= 1
        return True
