"""A leader that lives is heard of again and again; one that is silent is lost, and never heard of again."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import grpc
import pytest
from simulated_group import SECRET, TimedRanks, answer, engine_over, leading, request
from waiting import until_async

from rayline.protos.channel_wire import SECRET_KEY
from rayline.protos.errors import Unavailable
from rayline.protos.events import EngineEvent, Failed, TokenEvent
from rayline.protos.internal_pb2_grpc import GroupChannelStub
from rayline.router import link as link_module
from rayline.router.directory import Directory, GroupAddress, Listing
from rayline.router.link import SILENCE_S, GroupLink

TESTS = Path(__file__).parents[1]
SLACK_S = 10.0  # for machines that run other things beside; any other limit is longer


@asynccontextmanager
async def process(step_s: float) -> AsyncIterator[tuple["subprocess.Popen[str]", str]]:
    """A leader over simulated ranks in a process of its own, and its address."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "typing")])}
    command = [sys.executable, str(TESTS / "simulated_group.py"), str(step_s)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            yield started, (await asyncio.to_thread(started.stdout.readline)).strip()
        finally:
            started.kill()


async def collect(link: GroupLink, tokens: int, came_s: list[float] | None = None) -> list[EngineEvent]:
    """`came_s` gets the time of each event."""
    events = []
    async for event in link.generate(request("r", tokens=tokens)):
        events.append(event)
        if came_s is not None:
            came_s.append(time.monotonic())
    return events


async def test_every_router_hears_of_an_idle_leader_more_than_once_a_second() -> None:
    async with leading(engine_over(TimedRanks())) as leader, grpc.aio.insecure_channel(leader.address) as channel:
        call = GroupChannelStub(channel).Connect(metadata=((SECRET_KEY, SECRET),))
        came: list[float] = []
        for _ in range(6):
            await call.read()
            came.append(time.monotonic())
        call.cancel()
    gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
    assert median(gaps) < 1.0


class Patient(TimedRanks):
    """Ranks whose steps may take their time."""

    @property
    def limit_s(self) -> float:
        return 60.0


async def test_a_step_longer_than_the_longest_silence_costs_no_stream() -> None:
    async with leading(engine_over(Patient(step_s=SILENCE_S + 0.5))) as leader:
        link = await GroupLink.open(leader.address, SECRET)
        events = await collect(link, 1)
        assert [e.token_id for e in events if isinstance(e, TokenEvent)] == answer(request("r", tokens=1))
        assert link.alive
        await link.close()


async def test_a_frozen_leaders_streams_fail_in_time_and_hear_nothing_of_it_when_it_wakes() -> None:
    async with process(0.1) as (leader, address):
        link, came_s = await GroupLink.open(address, SECRET), list[float]()
        stream = asyncio.create_task(collect(link, 50, came_s))
        await until_async(lambda: len(came_s) > 3)
        leader.send_signal(signal.SIGSTOP)
        *tokens, end = await stream
        seconds = came_s[-1] - came_s[-2]
        assert (
            isinstance(end, Failed) and isinstance(end.error, Unavailable) and "nothing was heard" in end.error.message
        )
        assert 0 < len(tokens) < 50 and all(isinstance(event, TokenEvent) for event in tokens)
        assert SILENCE_S - 0.5 < seconds < SILENCE_S + SLACK_S
        assert link.silent and not link.alive
        leader.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.5)
        assert isinstance((await collect(link, 50))[0], Failed), "it is lost for good; a new link may be made"
        await link.close()
        again = await GroupLink.open(address, SECRET)
        assert len(await collect(again, 5)) == 6
        await again.close()


ROUTER = """
import asyncio, sys
from simulated_group import SECRET, request
from rayline.router.link import GroupLink

async def main() -> None:
    link = await GroupLink.open(sys.argv[1], SECRET)
    print("linked", flush=True)
    events = [event async for event in link.generate(request("frozen", tokens=60))]
    print(type(events[-1]).__name__, flush=True)

asyncio.run(main())
"""


async def test_what_a_frozen_router_submitted_is_aborted_and_costs_no_other_router_anything() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "typing")])}
    ranks = TimedRanks(step_s=0.25)
    async with leading(engine_over(ranks)) as leader:
        link = await GroupLink.open(leader.address, SECRET)
        command = [sys.executable, "-c", ROUTER, leader.address]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as router:
            try:
                assert router.stdout is not None
                assert await asyncio.to_thread(router.stdout.readline) == "linked\n"
                await until_async(lambda: leader.load.running)
                router.send_signal(signal.SIGSTOP)
                assert len(await collect(link, 12)) == 13, "other routers are not held up meanwhile"
                await until_async(lambda: not leader.load.running)
                assert ranks.brought < 60, "not because it had all its tokens"
                assert leader.load.free_blocks == leader.load.total_blocks
                router.send_signal(signal.SIGCONT)
                assert await asyncio.to_thread(router.stdout.readline) == "Failed\n"
            finally:
                router.kill()
        await link.close()


async def test_a_router_that_slept_itself_blames_nobody() -> None:
    async with process(0.01) as (_, address):
        link = await GroupLink.open(address, SECRET)
        came_s = list[float]()
        stream = asyncio.create_task(collect(link, 50, came_s))
        await until_async(lambda: came_s)
        time.sleep(SILENCE_S + 1.0)  # the whole loop, as when the router's process was stopped
        assert len(await stream) == 51
        assert link.alive
        await link.close()


async def test_a_silent_group_is_ended_once_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "IDLE_SILENCE_S", 1.0)
    fenced: list[str] = []

    async def fence(address: GroupAddress) -> None:
        fenced.append(address.process)

    async with process(0.02) as (frozen, address), leading(engine_over(TimedRanks()), "lives") as lives:
        found = [GroupAddress("g0", address, "frozen one"), GroupAddress("lives", lives.address, "other one")]

        async def describe() -> Listing:
            return Listing(tuple(found))

        directory = Directory(describe, SECRET, lambda link: link, fence)
        directory.start()
        await until_async(lambda: len(directory.groups) == 2)
        frozen.send_signal(signal.SIGSTOP)
        found.pop(0)
        began = time.monotonic()
        await until_async(lambda: fenced)
        assert time.monotonic() - began < 1.0 + 1.5 + SLACK_S
        assert set(directory.groups) == {"lives"}
        await asyncio.sleep(0.2)
        assert fenced == ["frozen one"]
        await directory.close()


async def test_a_group_that_hangs_up_is_not_ended_by_its_routers() -> None:
    fenced: list[GroupAddress] = []

    async def fence(address: GroupAddress) -> None:
        fenced.append(address)

    async with process(0.02) as (dies, address):
        found = [GroupAddress("g0", address)]

        async def describe() -> Listing:
            return Listing(tuple(found))

        directory = Directory(describe, SECRET, lambda link: link, fence)
        await directory.refresh()
        dies.kill()
        found.clear()
        while directory.groups:
            await asyncio.sleep(0.02)
            await directory.refresh()
        assert fenced == []
        await directory.close()
