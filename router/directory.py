"""Which groups there are: asks for their addresses again and again, keeps one link to each that lives."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass

from rayline.protos.errors import RaylineError
from rayline.router.breaker import Breaker
from rayline.router.docket import Docket
from rayline.router.group import Group
from rayline.router.link import MOST_UNREAD_TOKENS, GroupLink

log = logging.getLogger(__name__)

PERIOD_S = 1.0
FIRST_PERIOD_S = 0.1  # while there is no group yet, or one is not listed any more


@dataclass(frozen=True, slots=True)
class GroupAddress:
    """Where a group's leader listens."""

    group_id: str
    address: str
    process: str = ""  # name by which whoever started it can end it
    nodes: tuple[str, ...] = ()  # that its processes are on


@dataclass(frozen=True, slots=True)
class Listing:
    """The groups there are to be. is_whole: every one has answered, so one that is missing is to end."""

    groups: tuple[GroupAddress, ...] = ()
    is_whole: bool = False


Describe = Callable[[], Awaitable[Listing]]
Wrap = Callable[[GroupLink], Group]
Fence = Callable[[GroupAddress], Awaitable[None]]
"""Ends the processes of a group that is silent here, unless it is seen to live by another way."""


async def leave_alone(address: GroupAddress) -> None:
    """The Fence of a router that can end nobody's processes."""


class Directory:
    """The live groups of one model, by id. Lost groups leave it; new ones join it within `PERIOD_S`.

    A group that lives but is listed no more, twice in a row, counts as draining: whoever started it is ending it.
    """

    def __init__(
        self,
        describe: Describe,
        secret: str,
        wrap: Wrap,
        fence: Fence = leave_alone,
        docket: Docket | None = None,
        most_unread_tokens: int = MOST_UNREAD_TOKENS,
    ):
        """docket: of the model; what is noted in it goes to other routers by the links. Default: one of its own.
        most_unread_tokens: of a stream; a client that is further behind is given up."""
        self._describe = describe
        self._secret = secret
        self._wrap = wrap
        self._docket = docket or Docket()
        self._breaker = Breaker(time.monotonic)
        self._fence = fence
        self._most_unread_tokens = most_unread_tokens
        self._fencing: set[asyncio.Task[None]] = set()
        self._addresses: dict[str, GroupAddress] = {}
        self._links: dict[str, GroupLink] = {}
        self._groups: dict[str, Group] = {}
        self._missed: Set[str] = frozenset()
        self._task: asyncio.Task[None] | None = None

    @property
    def groups(self) -> Mapping[str, Group]:
        """A live view: what is in it changes as groups come and go."""
        return self._groups

    def nodes(self, group_id: str) -> tuple[str, ...]:
        """The nodes that a group's processes are on."""
        return self._addresses[group_id].nodes

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for link in self._links.values():
            await link.close()

    async def refresh(self) -> None:
        """One look: drop what is lost, link what is new."""
        for group_id, link in list(self._links.items()):
            link.trust = self._breaker.trust(group_id)
            if not link.alive:
                await self._drop(group_id, link)
        listing = await self._describe()
        self._mark_departing(listing)
        async with asyncio.TaskGroup() as joining:  # one that does not answer holds up no other
            for found in listing.groups:
                if found.group_id not in self._links:
                    joining.create_task(self._join(found))

    async def _drop(self, group_id: str, link: GroupLink) -> None:
        del self._links[group_id], self._groups[group_id]
        address = self._addresses.pop(group_id)
        self._docket.disconnect(link.tell)
        self._breaker.left(group_id, is_explained=link.departing or bool(link.apart))
        if link.silent:
            self._begin_fence(address)
        await link.close()

    async def _join(self, found: GroupAddress) -> None:
        try:
            link = await GroupLink.open(found.address, self._secret, self._docket.hear, self._most_unread_tokens)
        except RaylineError as error:
            log.warning("group %s cannot be reached: %s", found.group_id, error.message)
            return
        self._docket.connect(link.tell)
        self._breaker.joined(found.group_id, place=found.address.rpartition(":")[0])
        link.trust = self._breaker.trust(found.group_id)
        self._links[found.group_id] = link
        self._addresses[found.group_id] = found
        self._groups[found.group_id] = self._wrap(link)

    def _mark_departing(self, listing: Listing) -> None:
        """One look may miss a group that was hard to reach for a moment; where not all answered nothing is known."""
        if not listing.is_whole:
            return
        missing = self._links.keys() - {found.group_id for found in listing.groups}
        for group_id, link in self._links.items():
            departing = group_id in missing and (link.departing or group_id in self._missed)
            if departing and not link.departing:
                log.info("group %s is to end: its streams move", group_id)
            link.departing = departing
        self._missed = missing

    def _begin_fence(self, address: GroupAddress) -> None:
        """Beside the look for groups: a group that does not answer must not hold up the others."""
        task = asyncio.create_task(self._end_silent(address))
        self._fencing.add(task)
        task.add_done_callback(self._fencing.discard)

    async def _end_silent(self, address: GroupAddress) -> None:
        try:
            await self._fence(address)
        except Exception:
            log.exception("group %s could not be ended", address.group_id)

    async def _watch(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                log.exception("looking for groups failed; trying again")
            is_calm = self._links and not self._missed
            await asyncio.sleep(PERIOD_S if is_calm else FIRST_PERIOD_S)
