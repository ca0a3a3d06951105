"""Our client before real routers and leaders: doors that are cut, drained or killed cost a stream no event."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest
from simulated_group import SECRET, TimedRanks, engine_over, leading
from small_tokenizers import served
from waiting import until_async

from rayline.cluster.config import RouterSection, SystemConfig
from rayline.protos import inference_pb2 as pb
from rayline.protos.client import AsyncClient
from rayline.protos.errors import Unavailable
from rayline.protos.resuming import Patience
from rayline.router.doors import Doors
from rayline.router.grpc.api import GrpcDoor, build_grpc_server
from rayline.router.link import GroupLink
from rayline.router.service import ServedModel, Service
from rayline.workers.journal import Journal

pytestmark = pytest.mark.usefixtures("patient_routers")

TOKENS = 20
ONE = pb.SamplingParams(max_tokens=TOKENS, seed=3)
THREE = pb.SamplingParams(max_tokens=TOKENS, seed=3, n=3, logprobs=1)


@dataclass
class Router:
    """A service, its links to all leaders and its door."""

    service: Service
    links: list[GroupLink]
    door: GrpcDoor

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.door.port}"

    async def kill(self) -> None:
        """Clients and leaders see their connections end at once."""
        await self.door.stop(0)
        for link in self.links:
            await link.close()


@asynccontextmanager
async def deployment(routers: int = 2, ranks: Sequence[TimedRanks] = ()) -> AsyncIterator[list[Router]]:
    """Two groups of simulated ranks, and routers that know of each other."""
    async with AsyncExitStack() as stack:
        leaders = [
            await stack.enter_async_context(leading(engine_over(each), f"g{n}", Journal(2**20, 60.0)))
            for n, each in enumerate(ranks or (TimedRanks(0.002), TimedRanks(0.002)))
        ]
        made: list[Router] = []
        for number in range(routers):
            links = [await GroupLink.open(leader.address, SECRET) for leader in leaders]
            groups = {link.info.group_id: link for link in links}
            model = ServedModel("tiny", served("byte_level", bos_token="<s>", eos_token="</s>"), groups, 0)
            clock = asyncio.get_running_loop().time
            service = Service({"tiny": model}, clock, lambda: 42, 5.0, router=f"router {number}")
            config = SystemConfig(router=RouterSection(grpc_port=0))
            made.append(Router(service, links, build_grpc_server(service, config, lambda: doors_of(made))))
            await made[-1].door.start()
        yield made
        for router in made:
            await router.kill()


def pause_after(results: int | None, *ranks: TimedRanks) -> None:
    """After so many more results; None: they go on."""
    for each in ranks:
        each.pause_after(results)


def doors_of(routers: list[Router]) -> list[Doors]:
    return [Doors("127.0.0.1", router.door.port, 1) for router in routers]


def request(params: pb.SamplingParams) -> pb.GenerateRequest:
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=(1, 2, 3)), params=params)


def shown(events: list[pb.StreamResponse]) -> dict[int, list[str]]:
    """What a stream says, choice by choice (-1: of all), without names and durations."""
    said: dict[int, list[str]] = {}
    assert [event.index for event in events] == list(range(len(events)))
    for event in events:
        copy = pb.StreamResponse()
        copy.CopyFrom(event)
        copy.index = 0
        choice = -1
        match event.WhichOneof("event"):
            case "delta":
                choice = event.delta.choice
            case "choice_ended":
                choice = event.choice_ended.choice
            case "started":
                copy.started.request_id, copy.started.created_s = "", 0
            case "finished":
                copy.finished.ClearField("overhead")
                copy.finished.request_id, copy.finished.queue_s, copy.finished.usage.cached_tokens = "", 0.0, 0
        said.setdefault(choice, []).append(str(copy))
    return said


async def undisturbed(routers: list[Router], params: pb.SamplingParams) -> dict[int, list[str]]:
    async with AsyncClient([routers[-1].address]) as client:
        return shown([event async for event in client.stream(request(params))])


@pytest.mark.parametrize("params", [ONE, THREE], ids=["one choice", "three choices"])
@pytest.mark.parametrize("after", [1, 2, 7, 20])
async def test_a_stream_goes_on_at_the_other_router_when_its_own_dies(params: pb.SamplingParams, after: int) -> None:
    async with deployment() as routers:
        whole = await undisturbed(routers, params)
        events: list[pb.StreamResponse] = []
        async with AsyncClient([routers[0].address]) as client, aclosing(client.stream(request(params))) as stream:
            async for event in stream:
                events.append(event)
                if len(events) == after:
                    await routers[0].kill()
        assert shown(events) == whole, "the client was told where the other router is"


async def test_a_router_that_is_ended_sends_streams_away_and_waits_for_those_that_cannot_go() -> None:
    ranks = TimedRanks(), TimedRanks()
    async with deployment(ranks=ranks) as routers:
        whole = await undisturbed(routers, THREE)
        pause_after(5, *ranks)
        async with AsyncClient([routers[0].address]) as client:
            ours = asyncio.create_task(collect(client, THREE))
            await until_async(lambda: any(each.brought == each.pauses_at for each in ranks))
            drained = asyncio.create_task(routers[0].service.drain(60.0))
            await until_async(lambda: routers[1].service.running == 1)
            assert await drained, "nothing is left to wait for"
            assert routers[1].service.running == 1, "before the stream's end"
            pause_after(None, *ranks)
            assert shown(await ours) == whole


async def test_the_last_router_lets_its_streams_finish() -> None:
    ranks = TimedRanks(pauses_at=5), TimedRanks(pauses_at=5)
    async with (
        deployment(routers=1, ranks=ranks) as (router,),
        AsyncClient([router.address], patience=Patience(connect_s=0.0)) as client,
    ):
        ours = asyncio.create_task(collect(client, ONE))
        await until_async(lambda: router.service.running == 1)
        drained = asyncio.create_task(router.service.drain(60.0, is_last=True))
        await asyncio.sleep(0)
        pause_after(None, *ranks)
        assert await drained
        assert (await ours)[-1].HasField("finished")
        with pytest.raises(Unavailable, match="shutting down"):
            await collect(client, ONE)


async def test_a_request_whose_router_dies_before_the_first_event_is_computed_once() -> None:
    ranks = TimedRanks(pauses_at=0), TimedRanks(pauses_at=0)
    async with deployment(ranks=ranks) as routers:
        async with AsyncClient([router.address for router in routers]) as client:
            ours = asyncio.create_task(collect(client, ONE))
            await until_async(lambda: routers[0].service.running == 1)
            await routers[0].kill()
            pause_after(None, *ranks)
            events = await ours
        assert shown(events) == await undisturbed(routers, ONE)


async def collect(client: AsyncClient, params: pb.SamplingParams) -> list[pb.StreamResponse]:
    return [event async for event in client.stream(request(params))]
