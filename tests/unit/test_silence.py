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

import grpc
import pytest
from simulated_group import SECRET, TimedRanks, answer, engine_over, leading, request

from rayline.protos.channel_wire import SECRET_KEY
from rayline.protos.errors import Unavailable
from rayline.protos.events import EngineEvent, Failed, TokenEvent
from rayline.protos.internal_pb2_grpc import GroupChannelStub
from rayline.router import link as link_module
from rayline.router.directory import Directory, GroupAddress, Listing
from rayline.router.link import SILENCE_S, GroupLink
from rayline.workers.leader import ROUTER_SILENCE_S

TESTS = Path(__file__).parents[1]
SLACK_S = 1.5  # for machines that run other things beside


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


async def collect(link: GroupLink, tokens: int) -> list[EngineEvent]:
    return [event async for event in link.generate(request("r", tokens=tokens))]


async def test_every_router_hears_of_an_idle_leader_more_than_once_a_second() -> None:
    async with leading(engine_over(TimedRanks())) as leader, grpc.aio.insecure_channel(leader.address) as channel:
        call = GroupChannelStub(channel).Connect(metadata=((SECRET_KEY, SECRET),))
        came: list[float] = []
        for _ in range(6):
            await call.read()
            came.append(time.monotonic())
        call.cancel()
    gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
    assert max(gaps) < 1.0 + SLACK_S and sum(gaps) < 5 * 0.5 + SLACK_S


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
    async with process(0.02) as (leader, address):
        link = await GroupLink.open(address, SECRET)
        stream = asyncio.create_task(collect(link, 50))
        await asyncio.sleep(0.3)
        leader.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        *tokens, end = await stream
        seconds = time.monotonic() - began
        assert (
            isinstance(end, Failed) and isinstance(end.error, Unavailable) and "nothing was heard" in end.error.message
        )
        assert 0 < len(tokens) < 50 and all(isinstance(event, TokenEvent) for event in tokens)
        assert SILENCE_S - 0.5 < seconds < SILENCE_S + 0.5 + SLACK_S
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
    events = [event async for event in link.generate(request("frozen", tokens=50))]
    print(type(events[-1]).__name__, flush=True)

asyncio.run(main())
"""


async def test_what_a_frozen_router_submitted_is_aborted_and_costs_no_other_router_anything() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "typing")])}
    async with leading(engine_over(TimedRanks(step_s=0.25))) as leader:
        link = await GroupLink.open(leader.address, SECRET)
        command = [sys.executable, "-c", ROUTER, leader.address]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as router:
            try:
                assert router.stdout is not None
                assert await asyncio.to_thread(router.stdout.readline) == "linked\n"
                while not leader.load.running:
                    await asyncio.sleep(0.02)
                router.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                assert len(await collect(link, 12)) == 13, "other routers are not held up meanwhile"
                while leader.load.running:
                    await asyncio.sleep(0.05)
                assert time.monotonic() - began < ROUTER_SILENCE_S + 2 * SLACK_S, "not because it had all its tokens"
                assert leader.load.free_blocks == leader.load.total_blocks
                router.send_signal(signal.SIGCONT)
                assert await asyncio.to_thread(router.stdout.readline) == "Failed\n"
            finally:
                router.kill()
        await link.close()


async def test_a_router_that_slept_itself_blames_nobody() -> None:
    async with process(0.01) as (_, address):
        link = await GroupLink.open(address, SECRET)
        stream = asyncio.create_task(collect(link, 50))
        await asyncio.sleep(0.1)
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
        while len(directory.groups) < 2:
            await asyncio.sleep(0.02)
        frozen.send_signal(signal.SIGSTOP)
        found.pop(0)
        began = time.monotonic()
        while not fenced:
            await asyncio.sleep(0.02)
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
