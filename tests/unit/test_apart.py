"""A real leader with several routers: all know who is computed alone, and what one of them knows of suspects."""

import asyncio
import threading
from dataclasses import replace

from poison import LATE, DeadlyRanks
from simulated_group import SECRET, engine_over, leading, request
from waiting import until_async

from rayline.protos.blame import Presence, Record, Suspect
from rayline.protos.events import EngineEvent, Failed, Finished
from rayline.protos.plan import StepResult
from rayline.protos.types import EngineRequest
from rayline.router.link import GroupLink

WAIT_S = 120.0


class HeldRanks(DeadlyRanks):
    """Bring no result before `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    @property
    def limit_s(self) -> float:
        return WAIT_S

    def next_result(self) -> StepResult:
        assert self.go.wait(WAIT_S)
        return super().next_result()


async def collect(link: GroupLink, asked: EngineRequest) -> list[EngineEvent]:
    return [event async for event in link.generate(asked)]


async def test_a_loss_while_a_suspect_is_alone_counts_against_no_other_request_of_any_router() -> None:
    ranks = HeldRanks()
    async with leading(engine_over(ranks)) as leader, asyncio.timeout(WAIT_S):
        one, other = [await GroupLink.open(leader.address, SECRET) for _ in range(2)]
        beside = [
            asyncio.create_task(collect(link, request(f"i{n}", tokens=50))) for n, link in enumerate((one, other))
        ]
        suspect = replace(request("S", (LATE, 2, 3), tokens=20), output_ids=(5, 6, 7, 8), apart_at=4)
        alone = asyncio.create_task(collect(one, suspect))
        await until_async(lambda: leader.streams == 3)
        ranks.go.set()
        end = (await alone)[-1]
        assert isinstance(end, Failed) and end.presence is Presence.ALONE
        for events in await asyncio.gather(*beside):
            assert isinstance(events[-1], Failed) and events[-1].presence is Presence.ABSENT
        assert one.apart == other.apart == "S"
        await asyncio.gather(one.close(), other.close())


async def test_routers_hear_when_a_suspect_is_cleared() -> None:
    async with leading(engine_over(DeadlyRanks())) as leader, asyncio.timeout(WAIT_S):
        link = await GroupLink.open(leader.address, SECRET)
        events = await collect(link, replace(request("S", tokens=30), apart_at=0))
        assert isinstance(events[-1], Finished)
        while link.apart:
            await asyncio.sleep(0.01)
        await link.close()


async def test_what_one_router_knows_of_suspects_reaches_the_others_and_those_that_come_later() -> None:
    async with leading(engine_over(DeadlyRanks())) as leader, asyncio.timeout(WAIT_S):
        heard: list[Suspect] = []
        known = Suspect("abc", Record(2, 7, is_guilty=True), 60.0)
        one = await GroupLink.open(leader.address, SECRET)
        other = await GroupLink.open(leader.address, SECRET, heard.extend)
        one.tell([known])
        while not heard:
            await asyncio.sleep(0.01)
        assert heard == [known]
        late: list[Suspect] = []
        third = await GroupLink.open(leader.address, SECRET, late.extend)
        while not late:
            await asyncio.sleep(0.01)
        assert late[0].record == known.record and 0.0 < late[0].left_s <= 60.0
        await asyncio.gather(one.close(), other.close(), third.close())
