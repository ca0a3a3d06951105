"""What routers have told a leader of suspects, for routers that link it later. Leaders outlive routers."""

from collections.abc import Iterable
from dataclasses import replace

from rayline.protos.blame import INNOCENT, Suspect

MOST_SUSPECTS = 4096


class Suspects:
    """The last word on each fingerprint, the oldest dropped first. `now_s` is the caller's clock."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Suspect, float]] = {}  # and when it is forgotten

    def take(self, told: Iterable[Suspect], now_s: float) -> None:
        for suspect in told:
            self._known.pop(suspect.fingerprint, None)
            if suspect.record != INNOCENT:
                self._known[suspect.fingerprint] = suspect, now_s + suspect.left_s
        while len(self._known) > MOST_SUSPECTS:
            del self._known[next(iter(self._known))]

    def left(self, now_s: float) -> list[Suspect]:
        """All that are remembered still."""
        return [replace(suspect, left_s=end_s - now_s) for suspect, end_s in self._known.values() if end_s > now_s]
