"""The router's side of the journal: writes its streams down, finds those of others.

Two leaders hold each record, chosen by rendezvous hashing of the stream's key, so that any router knows where to write
without asking. It is asked for everywhere: groups come and go. While a stream runs, a holder that is lost is replaced.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayline.protos.errors import RaylineError, TakenOver
from rayline.protos.journal import Act, Ballot, JournalAnswer, JournalCall, Trace
from rayline.router.group import Group
from rayline.router.stream_record import StreamRecord

HOLDERS = 2
ANSWER_S = 1.0  # a leader that has not answered by then is passed over
GRACE_S = 0.2  # for the others, once one has said what was wanted
WATCH_PERIOD_S = 0.25  # how often lost holders are looked for

log = logging.getLogger("rayline.router")


@dataclass(frozen=True, slots=True)
class Found:
    """What the leaders know of a stream. turn: the highest that was claimed."""

    record: StreamRecord
    turn: int
    traces: tuple[Trace, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """found: None where no leader has a record. is_sure: all leaders have answered."""

    found: Found | None
    turn: int
    is_sure: bool


def ranked(key: str, group_ids: Iterable[str]) -> list[str]:
    """Who should hold a record, first to last: the same for every router, and nearly the same when groups come and go
    (rendezvous hashing: Thaler and Ravishankar, 1998).
    """
    return sorted(group_ids, key=lambda group_id: hashlib.sha256(f"{key} {group_id}".encode()).digest())


def missing(key: str, holders: Collection[str], live: Collection[str]) -> list[str]:
    """The groups that should hold a record too, so that `HOLDERS` live ones do where there are so many."""
    lacking = HOLDERS - sum(group_id in live for group_id in holders)
    if lacking <= 0:
        return []
    return [group_id for group_id in ranked(key, live) if group_id not in holders][:lacking]


class Page:
    """One stream's place in the journal, as long as this router reads it.

    ballot: the router's claim. Made by `RouterJournal.page`; `end` must follow.
    """

    def __init__(self, key: str, ballot: Ballot, journal: "RouterJournal"):
        self.key = key
        self.ballot = ballot
        self._journal = journal
        self._record = b""
        self._holders: set[str] = set()
        self._told: set[str] = set()  # where it may count as read here, whether that was answered or not
        self._whole: Callable[[], Sequence[Trace]] | None = None

    async def write(self, record: StreamRecord) -> None:
        """Returns when it is held, so that any other router can go on from here.

        Raises TakenOver when a later call has claimed the stream. Where no leader takes it (there is no room, or there
        are none) the stream runs all the same, but cannot be resumed.
        """
        self._record = record.to_bytes()
        live = self._journal.live()
        await self._hold([*(self._holders & live.keys()), *missing(self.key, self._holders, live)])

    async def claim(self) -> None:
        """Tell all leaders that it is read here: older calls end. Raises TakenOver as `write` does."""
        live = self._journal.live()
        self._told |= live.keys()
        self._heed(await self._journal.ask(live, self._call("claim"), lambda answer: answer.accepted))

    async def begin_ahead(self, whole: Callable[[], Sequence[Trace]]) -> None:
        """From now on `ahead` tells what is new. `whole` gives all there is, for each new holder."""
        self._whole = whole
        await self._write_whole(self._holders)

    async def ahead(self, trace: Trace) -> None:
        """Returns when the holders have it too. Raises TakenOver as `write` does."""
        await self._write_ahead(self._holders, trace)

    async def rehold(self) -> None:
        """Write it to others in the place of holders that were lost."""
        if self._record and (wanted := missing(self.key, self._holders, self._journal.live())):
            await self._hold(wanted)

    def lacks(self, live: Collection[str]) -> bool:
        """Whether holders were lost that others can stand in for. live: the groups that are left."""
        return bool(self._record and missing(self.key, self._holders, live))

    def end(self) -> None:
        """It is read no more: kept for a while, for whoever comes back to it."""
        live = self._journal.live()
        told = {group_id: live[group_id] for group_id in self._told & live.keys()}
        self._journal.close(self, told, self._call("end"))

    def _call(self, act: Act) -> JournalCall:
        return JournalCall(act, self.key, self.ballot, self._record if act == "write" else b"")

    async def _hold(self, wanted: Collection[str]) -> None:
        live = self._journal.live()
        groups = {group_id: live[group_id] for group_id in wanted if group_id in live}
        self._told |= groups.keys()
        answers = await self._journal.ask(groups, self._call("write"), lambda answer: answer.accepted)
        self._heed(answers)
        accepted = {group_id for group_id, answer in answers.items() if answer.accepted}
        self._holders |= accepted
        await self._write_whole(accepted)
        if not self._holders & live.keys():
            log.warning("no journal takes stream %s: it cannot be resumed", self.key)

    async def _write_whole(self, holders: Collection[str]) -> None:
        """Calls go out in the order in which they are made: what is new comes behind."""
        if self._whole is not None:
            await asyncio.gather(*(self._write_ahead(holders, trace) for trace in self._whole()))

    async def _write_ahead(self, holders: Collection[str], trace: Trace) -> None:
        live = self._journal.live()
        groups = {group_id: live[group_id] for group_id in holders if group_id in live}
        call = JournalCall("ahead", self.key, self.ballot, trace=trace)
        answers = await self._journal.ask(groups, call, lambda answer: answer.accepted)
        self._heed(answers)
        self._holders.difference_update(g for g, answer in answers.items() if not answer.accepted)

    def _heed(self, answers: Mapping[str, JournalAnswer]) -> None:
        if any(answer.ballot is not None and answer.ballot > self.ballot for answer in answers.values()):
            raise TakenOver("the stream is read through a later call")


class RouterJournal:
    """`groups` gives all groups of the deployment by id; `router` names this router, as no other one is named."""

    def __init__(self, groups: Callable[[], Mapping[str, Group]], router: str):
        self._groups = groups
        self.router = router
        self._pages: set[Page] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watch: asyncio.Task[None] | None = None

    def live(self) -> dict[str, Group]:
        return {group_id: group for group_id, group in self._groups().items() if group.alive}

    def page(self, key: str, turn: int) -> Page:
        """A place for a stream that is read here from now on. `turn`: one more than the highest that was heard of."""
        page = Page(key, Ballot(turn, self.router), self)
        self._pages.add(page)
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._replace_lost())
        return page

    def close(self, page: Page, groups: Mapping[str, Group], call: JournalCall) -> None:
        """Nobody waits for what the groups answer."""
        self._pages.discard(page)
        for group in groups.values():
            self._beside(_answer(group, call))

    async def look(self, key: str) -> Look:
        """What is known of a stream, by all leaders that answer in time."""
        live = self.live()
        call = JournalCall("look", key, Ballot(0, self.router))
        answers = await self.ask(live, call, lambda answer: bool(answer.record))
        known = [answer for answer in answers.values() if answer.ballot is not None]
        turn = max((answer.ballot.turn for answer in known if answer.ballot is not None), default=0)
        held = [answer for answer in known if answer.record]
        is_sure = answers.keys() == live.keys()
        if not held:
            return Look(None, turn, is_sure)
        newest = max(held, key=lambda answer: answer.ballot or Ballot(0, ""))
        record = StreamRecord.from_bytes(newest.record)
        traces = tuple(trace for answer in known for trace in answer.traces if trace.run == record.seed)
        return Look(Found(record, turn, traces), turn, is_sure)

    async def ask(
        self, groups: Mapping[str, Group], call: JournalCall, is_enough: Callable[[JournalAnswer], bool]
    ) -> dict[str, JournalAnswer]:
        """The answers by group, of those that answer within `ANSWER_S`, or within `GRACE_S` of one that is enough."""
        tasks = {asyncio.create_task(_answer(group, call)): group_id for group_id, group in groups.items()}
        answers: dict[str, JournalAnswer] = {}
        loop = asyncio.get_running_loop()
        until_s, waiting = loop.time() + ANSWER_S, set(tasks)
        try:
            while waiting and (left_s := until_s - loop.time()) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (answer := task.result()) is None:
                        continue
                    answers[tasks[task]] = answer
                    if is_enough(answer):
                        until_s = min(until_s, loop.time() + GRACE_S)
        finally:
            for task in waiting:
                task.cancel()
        return answers

    def _beside(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _replace_lost(self) -> None:
        """Runs while anything is read here."""
        while self._pages:
            await asyncio.sleep(WATCH_PERIOD_S)
            live = self.live()
            await asyncio.gather(*(_reheld(page) for page in self._pages if page.lacks(live)))


async def _answer(group: Group, call: JournalCall) -> JournalAnswer | None:
    """None from a group that is lost."""
    try:
        return await group.journal(call)
    except RaylineError as error:
        log.debug("group %s: journal: %s", group.info.group_id, error.message)
        return None


async def _reheld(page: Page) -> None:
    try:
        await page.rehold()
    except TakenOver:
        log.debug("stream %s is read elsewhere now", page.key)
