"""What operators may ask of a deployment through a router."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group by its last report. nodes: of its leader and its ranks."""

    group_id: str
    model: str
    running: int
    waiting: int
    draining: bool
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Drained:
    """A group that has ended, or, where `streams_left` is not 0, was given up as it took too long."""

    group_id: str
    streams: int
    streams_left: int
    seconds: float


class Operations(Protocol):
    """Every method raises ModelNotFound, InvalidRequest or Unavailable when it cannot be done."""

    def groups(self) -> Sequence[GroupState]: ...

    async def drain(self, target: str, timeout_s: float) -> Sequence[Drained]:
        """Move the streams of a group, or of all groups on a node, to others, and end it. They are replaced: a group
        by another one anywhere, those of a node by others on other nodes.

        target: id of a group; id, address or name of a node. timeout_s: streams left then are lost with their group,
        and go on as after any loss.
        """
        ...
