"""A leader and the routers' links to it over real loopback gRPC, with simulated ranks behind them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from simulated_group import BLOCKS, SECRET, TimedRanks, answer, engine_over, leading, request
from waiting import until_async

from rayline.protos import internal_pb2 as pb
from rayline.protos.channel_wire import SECRET_KEY, submit_to_pb
from rayline.protos.errors import InvalidRequest, Overloaded, PromptTooLong, Unavailable
from rayline.protos.events import EngineEvent, Failed, Finished, FinishReason, TokenEvent
from rayline.protos.internal_pb2_grpc import (
    GroupChannelServicer,
    GroupChannelStub,
    add_GroupChannelServicer_to_server,
)
from rayline.protos.token_ids import unpacked
from rayline.protos.types import EngineRequest
from rayline.router import link as link_module
from rayline.router.link import GroupLink

TESTS = Path(__file__).parents[1]
WAIT_S = 60.0
LONG = request("long", tokens=50)


@asynccontextmanager
async def linked(address: str) -> AsyncIterator[GroupLink]:
    link = await GroupLink.open(address, SECRET)
    try:
        yield link
    finally:
        await link.close()


async def collect(link: GroupLink, asked: EngineRequest) -> list[EngineEvent]:
    return [event async for event in link.generate(asked)]


def said(events: list[EngineEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent)]


def assert_failed(events: list[EngineEvent], kind: type[Exception]) -> Failed:
    """The stream ended in one Failed of this kind, with nothing but tokens before it."""
    *before, end = events
    assert isinstance(end, Failed) and isinstance(end.error, kind)
    assert all(isinstance(event, TokenEvent) for event in before)
    return end


async def test_tokens_arrive_in_order_and_end_once() -> None:
    async with leading(engine_over(TimedRanks())) as leader, linked(leader.address) as link:
        requests = [request(f"r{n}", (n, 2, 3), tokens=5 + n) for n in range(6)]
        answers = await asyncio.gather(*(collect(link, each) for each in requests))
        for each, events in zip(requests, answers, strict=True):
            *tokens, end = events
            assert said(events) == answer(each)
            assert [event.index for event in tokens if isinstance(event, TokenEvent)] == list(range(len(tokens)))
            assert isinstance(end, Finished) and end.reason is FinishReason.LENGTH
            assert {event.request_id for event in events} == {each.request_id}


async def test_the_link_knows_what_the_group_is() -> None:
    async with leading(engine_over(TimedRanks())) as leader, linked(leader.address) as link:
        assert link.info == leader.info
        assert link.alive and leader.healthy
        assert link.load.free_blocks == link.load.total_blocks == BLOCKS


async def test_one_message_a_step_carries_the_tokens_of_all_streams() -> None:
    ranks = TimedRanks(pauses_at=1)
    async with leading(engine_over(ranks)) as leader, grpc.aio.insecure_channel(leader.address) as channel:
        call = GroupChannelStub(channel).Connect(metadata=((SECRET_KEY, SECRET),))
        for stream in range(1, 5):
            asked = request(f"r{stream}", (stream,), tokens=12)
            await call.write(pb.RouterMessage(submit=submit_to_pb(stream, asked)))
        await until_async(lambda: leader.streams == 4)
        ranks.pauses_at = None
        ended, tokens, messages = 0, 0, []
        while ended < 4:
            message = await call.read()
            assert isinstance(message, pb.LeaderMessage)
            ended += len(message.step.finished)
            tokens += len(message.step.tokens)
            messages.append({token.stream for token in message.step.tokens})
        call.cancel()
    assert tokens == 4 * 12
    assert {1, 2, 3, 4} in messages
    assert sum(map(bool, messages)) <= len(ranks.plans)


@pytest.mark.parametrize("secret", ["", "wrong", SECRET + " "])
async def test_a_wrong_secret_is_refused(secret: str) -> None:
    async with leading(engine_over(TimedRanks())) as leader:
        with pytest.raises(Unavailable, match=r"does not answer: .*(wrong secret|Illegal)"):
            await GroupLink.open(leader.address, secret)


async def test_without_a_secret_nothing_is_submitted() -> None:
    ranks = TimedRanks()
    async with leading(engine_over(ranks)) as leader, grpc.aio.insecure_channel(leader.address) as channel:
        call = GroupChannelStub(channel).Connect()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.write(pb.RouterMessage(submit=submit_to_pb(1, request("r"))))
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ranks.plans == []


async def test_nobody_at_the_address_is_unavailable() -> None:
    async with leading(engine_over(TimedRanks())) as leader:
        address = leader.address
    with pytest.raises(Unavailable, match=f"the group at {address} does not answer"):
        await GroupLink.open(address, SECRET)


async def test_leaving_a_stream_frees_its_blocks_within_one_step() -> None:
    ranks = TimedRanks(pauses_at=1)
    async with leading(engine_over(ranks)) as leader, linked(leader.address) as link:
        events = link.generate(LONG)
        await anext(events)
        assert link.load.free_blocks < BLOCKS
        await events.aclose()
        await until_async(lambda: not leader._thread._mailbox.empty())
        ranks.pauses_at = None
        await until_async(lambda: link.load.free_blocks == BLOCKS)
        assert len(ranks.plans) <= 2
        assert link.load.running == link.load.waiting == 0


async def test_cancelling_the_task_that_waits_aborts_too() -> None:
    ranks = TimedRanks(pauses_at=1)
    async with leading(engine_over(ranks)) as leader, linked(leader.address) as link:
        task = asyncio.create_task(collect(link, LONG))
        await until_async(lambda: link.load.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        ranks.pauses_at = None
        await until_async(lambda: link.load.free_blocks == BLOCKS)
        assert said(await collect(link, request("next"))) == answer(request("next"))


async def test_a_router_that_goes_away_takes_its_requests_along() -> None:
    ranks = TimedRanks(pauses_at=3)
    async with leading(engine_over(ranks)) as leader, linked(leader.address) as stays:
        goes = await GroupLink.open(leader.address, SECRET)
        lost = asyncio.create_task(collect(goes, LONG))
        kept = asyncio.create_task(collect(stays, request("kept", tokens=10)))
        await until_async(lambda: leader.streams == 2 and stays.load.running)
        await goes.close()
        assert_failed(await lost, Unavailable)
        await until_async(lambda: len(leader._connections) == 1)
        ranks.pauses_at = None
        assert said(await kept) == answer(request("kept", tokens=10))
        await until_async(lambda: leader.load.free_blocks == BLOCKS)
        assert len(ranks.plans) < 30, "not because it had all its 50 tokens"
        assert said(await collect(stays, LONG)) == answer(LONG), "its request id is free again"


async def test_a_request_id_that_runs_is_refused_and_the_running_one_goes_on() -> None:
    ranks = TimedRanks(pauses_at=1)
    async with (
        leading(engine_over(ranks)) as leader,
        linked(leader.address) as link,
        linked(leader.address) as other,
    ):
        first = asyncio.create_task(collect(link, LONG))
        await until_async(lambda: link.load.running == 1)
        for again in (link, other):
            end = assert_failed(await collect(again, LONG), InvalidRequest)
            assert end.error.field == "request_id" and "already running" in end.error.message
        ranks.pauses_at = None
        assert said(await first) == answer(LONG)


async def test_two_routers_get_their_own_tokens_and_no_others() -> None:
    async with (
        leading(engine_over(TimedRanks(step_s=0.001))) as leader,
        linked(leader.address) as one,
        linked(leader.address) as two,
    ):
        requests = [(link, request(f"r{n}", (n, 5), tokens=15)) for n, link in enumerate([one, two] * 4)]
        answers = await asyncio.gather(*(collect(link, each) for link, each in requests))
        for (_, each), events in zip(requests, answers, strict=True):
            assert said(events) == answer(each)


async def test_a_router_without_requests_hears_that_the_group_is_idle_again() -> None:
    ranks = TimedRanks(pauses_at=1)
    async with (
        leading(engine_over(ranks)) as leader,
        linked(leader.address) as busy,
        linked(leader.address) as other,
    ):
        events = asyncio.create_task(collect(busy, request("r", tokens=60)))
        await until_async(lambda: other.load.running == 1)
        ranks.pauses_at = None
        await events
        await until_async(lambda: other.load.running == 0)
        assert other.load.outstanding_tokens == 0


@pytest.mark.parametrize(
    ("asked", "kind", "field"),
    [
        (request("bad", (999,)), InvalidRequest, "prompt_ids"),
        (request("bad", ()), InvalidRequest, "prompt_ids"),
        (request("bad", (1,) * 70), PromptTooLong, "prompt"),
        (request("bad", top_p=0.0), InvalidRequest, "top_p"),
    ],
)
async def test_a_bad_request_fails_by_field_and_disturbs_nobody(
    asked: EngineRequest, kind: type[Exception], field: str
) -> None:
    async with leading(engine_over(TimedRanks(step_s=0.001))) as leader, linked(leader.address) as link:
        good = asyncio.create_task(collect(link, LONG))
        end = assert_failed(await collect(link, asked), kind)
        assert end.error.field == field
        assert said(await good) == answer(LONG)


async def test_a_full_group_answers_overloaded_with_a_time_to_retry() -> None:
    ranks = TimedRanks(pauses_at=1)
    async with leading(engine_over(ranks, max_waiting=1, max_running=1)) as leader, linked(leader.address) as link:
        streams = [asyncio.create_task(collect(link, request(f"r{n}", tokens=5))) for n in range(6)]
        await until_async(lambda: leader.streams + sum(stream.done() for stream in streams) == 6)
        ranks.pauses_at = None
        ends = [events[-1] for events in await asyncio.gather(*streams)]
        refused = [end for end in ends if isinstance(end, Failed)]
        assert refused and len(refused) < len(ends)
        assert all(isinstance(end.error, Overloaded) and end.error.retry_after_s for end in refused)


async def test_when_a_rank_is_lost_each_stream_fails_once_and_the_leader_says_so() -> None:
    ranks = TimedRanks(lives=6, pauses_at=1)
    async with leading(engine_over(ranks)) as leader, linked(leader.address) as link:
        streams = [asyncio.create_task(collect(link, request(f"r{n}", tokens=40))) for n in range(4)]
        await until_async(lambda: leader.streams == 4)
        ranks.pauses_at = None
        for events in await asyncio.gather(*streams):
            end = assert_failed(events, Unavailable)
            assert "rank 0 closed its connection" in end.error.message and end.error.retry_after_s
        await asyncio.wait_for(leader.lost.wait(), WAIT_S)
        assert not leader.healthy
        assert_failed(await collect(link, request("late")), Unavailable)


async def test_following_a_request_ends_with_it() -> None:
    ranks = TimedRanks(pauses_at=1)
    async with leading(engine_over(ranks)) as leader, linked(leader.address) as link:
        events = asyncio.create_task(collect(link, LONG))
        await until_async(lambda: link.load.running == 1)
        follower = asyncio.create_task(leader.follow("long"))
        await asyncio.sleep(0)
        assert not follower.done()
        ranks.pauses_at = None
        await events
        await asyncio.wait_for(follower, WAIT_S)
        await asyncio.wait_for(leader.follow("nobody"), WAIT_S)


async def test_statistics_are_told_while_streams_run() -> None:
    ranks = TimedRanks(delay=2, pauses_at=1)
    async with leading(engine_over(ranks)) as leader, linked(leader.address) as link:
        events = asyncio.create_task(collect(link, LONG))
        await until_async(lambda: link.load.running == 1)
        asked = asyncio.create_task(leader.rank_stats())
        await asyncio.sleep(0)
        ranks.pauses_at = None
        stats = await asyncio.wait_for(asked, WAIT_S)
        assert [each.rank for each in stats] == [0]
        assert said(await events) == answer(LONG)


async def test_a_leader_that_stops_ends_open_streams_with_one_failed_each() -> None:
    ranks = TimedRanks(pauses_at=4)
    async with leading(engine_over(ranks)) as leader:
        link = await GroupLink.open(leader.address, SECRET)
        streams = [asyncio.create_task(collect(link, request(f"r{n}", tokens=50))) for n in range(3)]
        await until_async(lambda: leader.streams == 3)
    for events in await asyncio.gather(*streams):
        assert_failed(events, Unavailable)
    assert not link.alive
    assert_failed(await collect(link, request("late")), Unavailable)
    await link.close()


class NewerLeader(GroupChannelServicer):
    """Answers the first request with an end that nobody here has heard of."""

    async def Connect(
        self,
        request_iterator: AsyncIterator[pb.RouterMessage],
        context: "grpc.aio.ServicerContext[pb.RouterMessage, pb.LeaderMessage]",
    ) -> AsyncIterator[pb.LeaderMessage]:
        yield pb.LeaderMessage(welcome=pb.Welcome(group_id="newer"))
        async for message in request_iterator:
            end = pb.Finished(stream=message.submit.stream, reason="vanished")
            yield pb.LeaderMessage(step=pb.Step(finished=[end]))


async def test_a_message_of_another_version_loses_the_group_instead_of_hanging_its_streams() -> None:
    server = grpc.aio.server()
    add_GroupChannelServicer_to_server(NewerLeader(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with linked(f"127.0.0.1:{port}") as link:
        end = assert_failed(await asyncio.wait_for(collect(link, LONG), WAIT_S), Unavailable)
        assert "vanished" in end.error.message
        assert not link.alive
    await server.stop(0)


async def test_a_killed_leader_ends_each_open_stream_with_one_failed() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "typing")])}
    command = [sys.executable, str(TESTS / "simulated_group.py"), "0.1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = (await asyncio.to_thread(process.stdout.readline)).strip()
            async with linked(address) as link:
                streams = [asyncio.create_task(collect(link, request(f"r{n}", tokens=50))) for n in range(3)]
                await until_async(lambda: link.load.running == 3)
                process.send_signal(signal.SIGKILL)
                for events in await asyncio.gather(*streams):
                    assert_failed(events, Unavailable)
                assert not link.alive and not link.silent, "its connection ended: nobody waited to hear of it"
        finally:
            process.kill()


async def test_the_prompt_of_several_choices_crosses_the_wire_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[pb.Submit] = []
    submit = link_module.submit_to_pb

    def spied(stream: int, asked: EngineRequest, repeats_prompt: bool = False) -> pb.Submit:
        sent.append(submit(stream, asked, repeats_prompt))
        return sent[-1]

    monkeypatch.setattr(link_module, "submit_to_pb", spied)
    prompt = tuple(range(2, 22))
    choices = [replace(request(f"r/{n}", prompt, tokens=4), family="r") for n in range(3)]
    other = request("other", (7, 8), tokens=4)
    async with leading(engine_over(TimedRanks())) as leader, linked(leader.address) as link:
        asked_for = (*choices, other, replace(choices[0], request_id="late", family=""))
        answers = await asyncio.gather(*(collect(link, each) for each in asked_for))
    for asked, events in zip(asked_for, answers, strict=True):
        assert said(events) == answer(asked)
    assert [len(unpacked(each.prompt_ids)) for each in sent] == [20, 0, 0, 2, 20]
    assert [each.repeats_prompt for each in sent] == [False, True, True, False, False]
