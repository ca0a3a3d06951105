"""What the router asks of a replica group, however it is reached: in process, by gRPC, or a fake in tests."""

from collections.abc import AsyncIterator
from typing import Protocol

from rayline.protos.events import EngineEvent
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.journal import JournalAnswer, JournalCall
from rayline.protos.types import EngineRequest
from rayline.router.breaker import Trust


class Group(Protocol):
    """One copy of a model that turns token ids into token ids."""

    @property
    def info(self) -> GroupInfo:
        """What the group is; fixed from start to end."""
        ...

    @property
    def load(self) -> GroupLoad:
        """The group's last report."""
        ...

    @property
    def alive(self) -> bool:
        """False once the group is known to be lost; it never comes back as this object."""
        ...

    @property
    def trust(self) -> Trust:
        """How many requests it gets: groups where others have died again and again get few at first."""
        ...

    def generate(self, request: EngineRequest) -> AsyncIterator[EngineEvent]:
        """An async generator: token events in order, then exactly one Finished or Failed.

        Closing the generator before its terminal event, or cancelling the task that waits for it, aborts
        the request at the group; closing it afterwards means nothing. A refusal (Overloaded) and a loss
        (Unavailable) arrive as Failed, or are raised.
        """
        ...

    async def journal(self, call: JournalCall) -> JournalAnswer:
        """Ask the journal that the group's leader holds. Raises Unavailable when the group is lost."""
        ...

    def abort(self, request_id: str) -> None:
        """End a stream at the group while somebody else waits for its events: a Failed(Unavailable) comes behind those
        that have come. Nothing happens where it has ended or is not known."""
        ...
