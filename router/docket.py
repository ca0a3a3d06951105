"""What a router remembers of requests that were lost with their groups: who runs apart, who is refused.

A client that gives up and asks again does not begin anew: records are kept by fingerprint.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rayline.protos.blame import INNOCENT, PROOF_TOKENS, Presence, Record, Suspect
from rayline.protos.errors import Quarantined
from rayline.protos.types import EngineRequest
from rayline.router.blame import after_loss, fingerprint
from rayline.router.group import Group

log = logging.getLogger("rayline.router")

MOST_RECORDS = 4096


@dataclass(frozen=True, slots=True)
class BlameLimits:
    """poison_losses: in a row that make a request a suspect. quarantine_s: how long records are kept."""

    poison_losses: int = 2
    quarantine_s: float = 600.0


Tell = Callable[[Sequence[Suspect]], None]


class Docket:
    """Records by fingerprint, the oldest dropped first. Lives on one event loop.

    Other routers of the model have dockets of their own. What one notes goes to all, by way of the groups.
    """

    def __init__(self, limits: BlameLimits = BlameLimits(), clock: Callable[[], float] = time.monotonic):
        self.limits = limits
        self._clock = clock
        self._records: dict[str, tuple[Record, float]] = {}  # and when each ends; in order of their last change
        self._outlets: set[Tell] = set()
        self.trials: dict[str, Case] = {}  # by fingerprint, the one that is to be computed alone
        self.places: dict[str, str] = {}  # by fingerprint, the group of the last that had a record

    def case(self, request: EngineRequest) -> "Case":
        """One choice or search that begins. Raises Quarantined when one like it was found guilty."""
        known = self.record(fingerprint(request)) if self._records else INNOCENT
        case = Case(self, request, known)
        if case.refusal is not None:
            raise case.refusal
        return case

    def record(self, key: str) -> Record:
        """What is known of all requests with this fingerprint."""
        record, end_s = self._records.get(key, (INNOCENT, 0.0))
        return record if self._clock() < end_s else INNOCENT

    def note(self, key: str, record: Record) -> None:
        """Replaces what was known, but nothing takes back a finding of guilt."""
        if record == self.record(key):
            return
        suspect = Suspect(key, record, self.limits.quarantine_s)
        if self._keep(suspect):
            for tell in self._outlets:
                tell([suspect])

    def hear(self, suspects: Sequence[Suspect]) -> None:
        """What other routers noted."""
        for suspect in suspects:
            self._keep(suspect)

    def connect(self, tell: Tell) -> None:
        """A way to other routers: it brings them all that is known, and what is noted from now on."""
        self._outlets.add(tell)
        now_s = self._clock()
        if known := [Suspect(key, record, end_s - now_s) for key, (record, end_s) in self._records.items()]:
            tell([suspect for suspect in known if suspect.left_s > 0.0])

    def disconnect(self, tell: Tell) -> None:
        self._outlets.discard(tell)

    def _keep(self, suspect: Suspect) -> bool:
        """Whether it says anything new."""
        if self.record(suspect.fingerprint).is_guilty:
            return False
        self._records.pop(suspect.fingerprint, None)
        if suspect.record != INNOCENT:
            self._records[suspect.fingerprint] = suspect.record, self._clock() + suspect.left_s
        while len(self._records) > MOST_RECORDS:
            oldest = next(iter(self._records))
            self.places.pop(oldest, None)
            del self._records[oldest]
        return True


class Case:
    """One choice, or one search, on its way through groups that may be lost."""

    def __init__(self, docket: Docket, request: EngineRequest, known: Record):
        """known: what others like it left behind. Where they were lost at the start it begins with their record."""
        self._docket = docket
        self._request = request
        self._known = known
        self._record = known if known.position < PROOF_TOKENS else INNOCENT
        self._was_apart = False

    @property
    def is_suspect(self) -> bool:
        return self._record.losses >= self._docket.limits.poison_losses

    @property
    def refusal(self) -> Quarantined | None:
        """What it is failed with: it was found guilty, or it is a suspect and one like it was."""
        is_guilty = self._known.is_guilty or self._record.is_guilty
        if not is_guilty and not (self.is_suspect and self._docket.record(self._fingerprint).is_guilty):
            return None
        return Quarantined(
            "this request, or one like it, killed every group that ran it, the last one while nothing else was "
            f"computed there: it is refused for {self._docket.limits.quarantine_s:.0f} s. fingerprint "
            f"{self._fingerprint}"
        )

    @property
    def must_wait(self) -> bool:
        """It is a suspect, and so is one like it that is computed alone somewhere: one death tells of all."""
        return self.is_suspect and self._docket.trials.get(self._fingerprint, self) is not self

    def gathered(self, groups: Sequence[Group]) -> Sequence[Group]:
        """Those of `groups` where it may go: where others like it are, so that they kill one group and not several."""
        if self._record == INNOCENT:
            return groups
        place = self._docket.places.get(self._fingerprint)
        return [group for group in groups if group.info.group_id == place] or groups

    def run(self, request: EngineRequest, group_id: str) -> EngineRequest:
        """`request` as its next group gets it: a suspect apart from all others, its siblings too, where it was lost."""
        self._was_apart = self.is_suspect
        if self._record != INNOCENT:
            self._docket.places[self._fingerprint] = group_id
        if not self._was_apart:
            return request
        self._docket.trials[self._fingerprint] = self
        return replace(request, apart_at=self._record.position, family="")

    def gained(self, position: int) -> None:
        """It has `position` output tokens now."""
        if self._was_apart and position - self._record.position >= PROOF_TOKENS:
            self.close()

    def close(self) -> None:
        """It is computed alone no more."""
        if self._was_apart and self._docket.trials.get(self._fingerprint) is self:
            del self._docket.trials[self._fingerprint]

    def lost(self, presence: Presence, position: int) -> None:
        """Its group was lost when it had `position` output tokens."""
        self.close()
        before = self._record
        if before == INNOCENT and abs(position - self._known.position) < PROOF_TOKENS:
            before = self._known  # where others like it were lost
        self._record = after_loss(before, presence, position, self._was_apart)
        if self._record == before:
            return
        self._docket.note(self._fingerprint, self._record)
        if self._record.is_guilty:
            log.error(
                "request %s is quarantined: after %d losses it killed one more group, where nothing else was computed. "
                "fingerprint %s, %d prompt tokens, %d output tokens",
                self._request.request_id,
                self._record.losses,
                self._fingerprint,
                len(self._request.prompt_ids),
                position,
            )

    def ended(self) -> None:
        """It ended by itself: nothing is held against others like it."""
        if self._record != INNOCENT or self._known != INNOCENT:
            self._docket.places.pop(self._fingerprint, None)
            self._docket.note(self._fingerprint, INNOCENT)

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._request)
