"""The directory against real leaders: groups join, lost ones leave, and trouble in looking is survived."""

import asyncio
import logging
import socket
from dataclasses import dataclass, field

import pytest
from simulated_group import SECRET, TimedRanks, answer, engine_over, leading, request
from waiting import until_async

from rayline.protos.errors import Unavailable
from rayline.protos.events import Failed, TokenEvent
from rayline.router import link as link_module
from rayline.router.directory import Directory, GroupAddress, Listing
from rayline.router.group import Group
from rayline.router.link import GroupLink
from rayline.workers.leader import Leader


@dataclass
class Book:
    """What a directory is told when it asks; it raises first what is in `troubles`."""

    addresses: list[GroupAddress] = field(default_factory=list)
    troubles: list[Exception] = field(default_factory=list)
    asked: int = 0
    is_whole: bool = True

    async def describe(self) -> Listing:
        self.asked += 1
        if self.troubles:
            raise self.troubles.pop(0)
        return Listing(tuple(self.addresses), self.is_whole)

    def add(self, leader: Leader) -> None:
        self.addresses.append(GroupAddress(leader.info.group_id, leader.address))


def as_it_is(link: GroupLink) -> Group:
    return link


async def tokens(group: Group) -> list[int]:
    return [event.token_id async for event in group.generate(request("r")) if isinstance(event, TokenEvent)]


async def test_groups_that_are_described_join_and_answer() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as one, leading(engine_over(TimedRanks()), "b") as two:
        book.add(one)
        book.add(two)
        await directory.refresh()
        assert set(directory.groups) == {"a", "b"}
        for group in directory.groups.values():
            assert await tokens(group) == answer(request("r"))
        await directory.close()


async def test_the_view_of_the_groups_is_live() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    groups = directory.groups
    await directory.refresh()
    assert dict(groups) == {}
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        await directory.refresh()
        assert set(groups) == {"a"}
        await directory.close()


async def test_a_group_is_linked_once_however_often_it_is_described() -> None:
    book = Book()
    wrapped: list[GroupLink] = []

    def wrap(link: GroupLink) -> Group:
        wrapped.append(link)
        return link

    directory = Directory(book.describe, SECRET, wrap)
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        for _ in range(3):
            await directory.refresh()
        assert len(wrapped) == 1
        assert directory.groups["a"] is wrapped[0]
        await directory.close()


async def test_a_group_that_does_not_answer_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "WELCOME_TIMEOUT_S", 1000.0)
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        book.addresses += [GroupAddress(f"deaf{n}", f"127.0.0.1:{deaf.getsockname()[1]}") for n in range(3)]
        async with leading(engine_over(TimedRanks()), "well") as leader:
            book.add(leader)
            directory.start()
            await until_async(lambda: directory.groups)
            assert set(directory.groups) == {"well"}
            await directory.close()


async def test_a_lost_group_leaves_and_the_others_stay() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "stays") as stays:
        async with leading(engine_over(TimedRanks()), "goes") as goes:
            book.add(stays)
            book.add(goes)
            await directory.refresh()
        await until_async(lambda: not directory.groups["goes"].alive)
        book.addresses.pop()
        await directory.refresh()
        assert set(directory.groups) == {"stays"}
        assert await tokens(directory.groups["stays"]) == answer(request("r"))
        assert set(directory._addresses) == {"stays"}
        await directory.close()


async def test_a_group_that_lives_but_is_listed_no_more_counts_as_draining() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as one, leading(engine_over(TimedRanks()), "b") as two:
        book.add(one)
        book.add(two)
        await directory.refresh()
        gone = book.addresses.pop(0)
        book.is_whole = False
        for _ in range(3):
            await directory.refresh()
        assert not directory.groups["a"].load.draining, "not all have answered: nothing is known"
        book.is_whole = True
        await directory.refresh()
        assert not directory.groups["a"].load.draining, "it may have been missed once"
        await directory.refresh()
        assert directory.groups["a"].load.draining and not directory.groups["b"].load.draining
        assert await tokens(directory.groups["a"]) == answer(request("r")), "it lives as long as it is needed"
        book.addresses.append(gone)
        await directory.refresh()
        assert not directory.groups["a"].load.draining
        await directory.close()


async def test_a_leader_that_drains_says_so_at_once_and_for_good() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        await directory.refresh()
        group = directory.groups["a"]
        assert not group.load.draining and leader.drain() == 0
        await until_async(lambda: group.load.draining)
        assert await tokens(group) == answer(request("r")) and group.load.draining
        await directory.close()


async def test_an_aborted_stream_brings_what_has_come_and_then_one_end() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    ranks = TimedRanks(pauses_at=4)
    async with leading(engine_over(ranks), "a") as leader:
        book.add(leader)
        await directory.refresh()
        group = directory.groups["a"]
        events = []
        async for event in group.generate(request("r", tokens=40)):
            events.append(event)
            if len(events) == 3:
                group.abort("r")
                group.abort("unknown")
                ranks.pauses_at = None
        assert len(events) >= 4 and all(isinstance(event, TokenEvent) for event in events[:-1])
        last = events[-1]
        assert isinstance(last, Failed) and type(last.error) is Unavailable and last.presence is None
        await until_async(lambda: leader.streams == 0)
        group.abort("r")
        await directory.close()


async def test_a_group_that_comes_back_elsewhere_under_its_name_joins_again() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as first:
        book.add(first)
        await directory.refresh()
    await until_async(lambda: not directory.groups["a"].alive)
    async with leading(engine_over(TimedRanks()), "a") as second:
        book.addresses.clear()
        book.add(second)
        await directory.refresh()
        assert directory.groups["a"].alive
        assert await tokens(directory.groups["a"]) == answer(request("r"))
        await directory.close()


async def test_a_group_that_does_not_answer_keeps_no_other_from_joining(caplog: pytest.LogCaptureFixture) -> None:
    async with leading(engine_over(TimedRanks()), "gone") as gone:
        book = Book([GroupAddress("gone", gone.address)])
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        with caplog.at_level(logging.WARNING):
            await directory.refresh()
        assert set(directory.groups) == {"a"}
        assert "group gone cannot be reached" in caplog.text
        await directory.close()


async def test_a_group_with_another_secret_does_not_join(caplog: pytest.LogCaptureFixture) -> None:
    book = Book()
    directory = Directory(book.describe, "another", as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        await directory.refresh()
        assert dict(directory.groups) == {}
        assert "wrong secret" in caplog.text
        await directory.close()


async def test_looking_goes_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    book = Book(troubles=[RuntimeError("no controller yet"), ConnectionError("still none")])
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        directory.start()
        await until_async(lambda: "a" in directory.groups)
        assert book.asked >= 3
        assert "no controller yet" in caplog.text
        await directory.close()


async def test_groups_come_and_go_while_it_watches() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    directory.start()
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        await until_async(lambda: "a" in directory.groups)
    book.addresses.clear()
    await until_async(lambda: not directory.groups)
    await directory.close()


async def test_after_the_end_nobody_is_asked_any_more() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    directory.start()
    await until_async(lambda: book.asked > 0)
    await directory.close()
    asked = book.asked
    await asyncio.sleep(0.25)
    assert book.asked == asked


async def test_the_end_closes_every_link() -> None:
    book = Book()
    directory = Directory(book.describe, SECRET, as_it_is)
    async with leading(engine_over(TimedRanks()), "a") as leader:
        book.add(leader)
        await directory.refresh()
        group = directory.groups["a"]
        await directory.close()
        assert not group.alive


async def test_ending_before_the_start_is_nothing() -> None:
    await Directory(Book().describe, SECRET, as_it_is).close()
