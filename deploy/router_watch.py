"""The routers beside this one: asks for their doors again and again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from rayline.router.doors import Doors

PERIOD_S = 2.0

log = logging.getLogger(__name__)


class RouterWatch:
    """The doors of all routers as they were last known. While one of them does not answer, that is the last answer."""

    def __init__(self, ask: Callable[[], Awaitable[Sequence[Doors]]], own: Doors):
        """`ask` raises what it likes when a router is gone or does not answer."""
        self._ask = ask
        self._known: tuple[Doors, ...] = (own,)
        self._task: asyncio.Task[None] | None = None

    @property
    def doors(self) -> Sequence[Doors]:
        return self._known

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            try:
                self._known = tuple(sorted(set(await self._ask()))) or self._known
            except Exception as error:
                log.debug("looking for routers: %s", error)
            await asyncio.sleep(PERIOD_S)
