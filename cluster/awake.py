"""Time as a process saw it pass, for patience with others."""

from collections.abc import Callable


class AwakeTime:
    """Seconds that passed while this process itself was running.

    Who waits for others looks at the clock in short steps. A step far longer than that means that this process was
    stopped, starved or suspended together with its machine: nobody else could be expected to get on meanwhile, and
    what they sent lies unread. So of any step at most `most_s` counts.
    """

    def __init__(self, clock: Callable[[], float], most_s: float):
        self._clock = clock
        self._most_s = most_s
        self._seconds = 0.0
        self._last_s = clock()

    def look(self) -> float:
        """Take in the time since the last look; returns the seconds since the last `restart`."""
        now = self._clock()
        self._seconds += min(now - self._last_s, self._most_s)
        self._last_s = now
        return self._seconds

    def restart(self) -> None:
        """What was waited for has come: count from 0."""
        self._seconds = 0.0
        self._last_s = self._clock()
