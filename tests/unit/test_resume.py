"""Routers that die: another one goes on with their streams. Real leaders, links and routers over loopback gRPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from simulated_group import SECRET, TimedRanks, engine_over, leading
from small_tokenizers import served

from rayline.protos.events import Delta, Finished, StreamEvent
from rayline.protos.types import SamplingParams, Spec
from rayline.router.link import GroupLink
from rayline.router.service import ServedModel, Service
from rayline.workers.journal import Journal

STEP_S = 0.002


@dataclass
class Cluster:
    """Leaders, and routers that are linked to all of them."""

    addresses: list[str]
    journals: list[Journal]
    routers: dict[str, Service]
    links: dict[str, list[GroupLink]]

    async def join(self, name: str) -> Service:
        links = [await GroupLink.open(address, SECRET) for address in self.addresses]
        groups = {link.info.group_id: link for link in links}
        model = ServedModel("tiny", served("byte_level", bos_token="<s>", eos_token="</s>"), groups, 0)
        seeds = iter(range(1000, 2000))
        service = Service({"tiny": model}, asyncio.get_running_loop().time, lambda: next(seeds), 5.0, name, lambda: 7.0)
        self.routers[name], self.links[name] = service, links
        return service

    async def kill(self, name: str) -> None:
        """Its connections end; what it wanted to say before it never leaves."""
        for link in self.links.pop(name):
            link._call.cancel()
            await link.close()


@asynccontextmanager
async def cluster(groups: int = 2, step_s: float = STEP_S, **limits: Any) -> AsyncIterator[Cluster]:
    journals = [Journal(limits.get("most_bytes", 2**20), limits.get("keep_s", 60.0)) for _ in range(groups)]
    async with AsyncExitStack() as stack:
        leaders = [
            await stack.enter_async_context(leading(engine_over(TimedRanks(step_s)), f"g{n}", journal))
            for n, journal in enumerate(journals)
        ]
        made = Cluster([leader.address for leader in leaders], journals, {}, {})
        try:
            yield made
        finally:
            for name in list(made.links):
                await made.kill(name)


def spec(request_id: str = "r1", **params: Any) -> Spec:
    return Spec(request_id, "tiny", SamplingParams(**{"max_tokens": 20} | params), prompt_ids=(1, 2, 3))


async def collect(events: AsyncIterator[StreamEvent]) -> list[StreamEvent]:
    return [event async for event in events]


def untimed(events: list[StreamEvent]) -> list[StreamEvent]:
    return [replace(e, queue_s=0.0, overhead=None) if isinstance(e, Finished) else e for e in events]


async def test_another_router_goes_on_with_the_stream_of_one_that_died() -> None:
    async with cluster() as made:
        first, second = await made.join("a"), await made.join("b")
        undisturbed = untimed(await collect(second.generate(spec("other"))))
        seen: list[StreamEvent] = []
        async with aclosing(first.generate(spec())) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == 7:
                    break
            await made.kill("a")
        found = await second.find("", "r1")
        again = untimed(await collect(second.resume(found)))
        assert again[:7] == seen
        assert [e.token_ids for e in again if isinstance(e, Delta)] == [
            e.token_ids for e in undisturbed if isinstance(e, Delta)
        ]
        assert isinstance(again[-1], Finished) and again[-1].usage.output_tokens == 20
