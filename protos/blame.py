"""Who may be why groups are lost: what leaders and routers tell each other of it. The rules are the router's."""

from dataclasses import dataclass
from enum import StrEnum

# That clear a request. One comes of the step that computes its prompt; and a leader that dies takes some with it that
# its router has not seen yet, which the request then gains once more.
PROOF_TOKENS = 8


class Presence(StrEnum):
    """Where a request was when its group was lost: whether it may be the reason."""

    ABSENT = "absent"  # nothing of it was being computed
    AMONG = "among"  # it was computed beside others
    ALONE = "alone"  # it was the only one computed, see `EngineRequest.apart_at`


def presence(request_id: str, apart: str) -> Presence:
    """`apart`: id of the request that was computed alone, "" for none."""
    if not apart:
        return Presence.AMONG
    return Presence.ALONE if request_id == apart else Presence.ABSENT


@dataclass(frozen=True, slots=True)
class Record:
    """What is known against a request. losses: of groups in a row between which it gained less than PROOF_TOKENS.

    position: its output tokens at the last of them; of a search, which begins anew in each group, the most.
    is_guilty: it was lost while it was the only one computed.
    """

    losses: int = 0
    position: int = 0
    is_guilty: bool = False


INNOCENT = Record()


@dataclass(frozen=True, slots=True)
class Suspect:
    """The record of all requests with one fingerprint. left_s: how long it is remembered; INNOCENT takes it back."""

    fingerprint: str
    record: Record
    left_s: float
