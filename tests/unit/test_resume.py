"""Routers that die: another one goes on with their streams. Real leaders, links and routers over loopback gRPC."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fakes import FakeGroup, info, saying, service_of
from simulated_group import SECRET, TimedRanks, engine_over, leading
from small_tokenizers import served
from waiting import until_async

from rayline.protos.errors import RequestIdTaken, StreamNotFound, TakenOver, Unavailable
from rayline.protos.events import Failed, Finished, FinishReason, Started, StreamEvent, Usage
from rayline.protos.journal import Ballot, JournalAnswer, JournalCall, stream_key
from rayline.protos.types import SamplingParams, Spec
from rayline.router.journal import HOLDERS, missing
from rayline.router.link import GroupLink
from rayline.router.service import ServedModel, Service
from rayline.workers.journal import Journal
from rayline.workers.leader import Leader

STEP_S = 0.002


pytestmark = pytest.mark.usefixtures("patient_routers")


@dataclass
class Cluster:
    """Leaders, and routers that are linked to all of them."""

    leaders: dict[str, Leader]
    ranks: dict[str, TimedRanks]
    journals: dict[str, Journal]
    links: dict[str, dict[str, GroupLink]] = field(default_factory=dict)

    async def join(self, name: str) -> Service:
        groups = {group_id: await GroupLink.open(each.address, SECRET) for group_id, each in self.leaders.items()}
        model = ServedModel("tiny", served("byte_level", bos_token="<s>", eos_token="</s>"), groups, 0)
        seeds, clock = iter(range(1000, 2000)), asyncio.get_running_loop().time
        self.links[name] = groups
        return Service({"tiny": model}, clock, lambda: next(seeds), patience_s=5.0, router=name, wall_clock=lambda: 7.0)

    async def kill(self, name: str) -> None:
        """Its connections end; what it wanted to say before it never leaves."""
        for link in self.links.pop(name).values():
            link._call.cancel()
            await link.close()

    async def end_group(self, group_id: str) -> None:
        """A rank is lost, and the group with it."""
        self.ranks[group_id].lost = True
        await until_async(lambda: not any(links[group_id].alive for links in self.links.values()))

    def pause_after(self, results: int | None) -> None:
        """All groups, after so many more results; None: they go on."""
        for ranks in self.ranks.values():
            ranks.pause_after(results)

    def runs(self) -> int:
        return sum(len(leader._owners) for leader in self.leaders.values())

    def holders(self, request_id: str = "r1") -> set[str]:
        key = stream_key("", request_id)
        return {
            group_id
            for group_id, journal in self.journals.items()
            if (stream := journal._streams.get(key)) is not None and stream.record
        }


@asynccontextmanager
async def cluster(
    groups: int = 2, step_s: float = STEP_S, most_bytes: int = 2**20, keep_s: float = 60.0
) -> AsyncIterator[Cluster]:
    made = Cluster({}, {}, {})
    async with AsyncExitStack() as stack:
        for name in (f"g{n}" for n in range(groups)):
            made.ranks[name], made.journals[name] = TimedRanks(step_s), Journal(most_bytes, keep_s)
            engine = engine_over(made.ranks[name])
            made.leaders[name] = await stack.enter_async_context(leading(engine, name, made.journals[name]))
        try:
            yield made
        finally:
            for name in list(made.links):
                await made.kill(name)


def spec(request_id: str = "r1", **params: Any) -> Spec:
    return Spec(request_id, "tiny", SamplingParams(**{"max_tokens": 20} | params), prompt_ids=(1, 2, 3))


async def collect(events: AsyncIterator[StreamEvent], count: int | None = None) -> list[StreamEvent]:
    """The whole stream; or its first events, and then nobody reads on, without a word to anyone."""
    read: list[StreamEvent] = []
    async for event in events:
        read.append(event)
        if len(read) == count:
            break
    return read


def untimed(events: list[StreamEvent]) -> list[StreamEvent]:
    plain = replace(Finished("", FinishReason.STOP, Usage(0, 0)), overhead=None)
    return [
        replace(e, queue_s=0.0, overhead=None, usage=replace(e.usage, cached_tokens=0), preempted=plain.preempted)
        if isinstance(e, Finished)
        else e
        for e in events
    ]


def renamed(events: list[StreamEvent], request_id: str) -> list[StreamEvent]:
    return [replace(e, request_id=request_id) if isinstance(e, Started | Finished) else e for e in events]


async def undisturbed(router: Service, wanted: Spec) -> list[StreamEvent]:
    """What it brings under another name, as it would be told under its own."""
    events = await collect(router.generate(replace(wanted, request_id="undisturbed")))
    return untimed(renamed(events, wanted.request_id))


async def again(router: Service, request_id: str = "r1", tenant: str = "") -> list[StreamEvent]:
    return untimed(await collect(router.resume(await router.find(tenant, request_id))))


@pytest.mark.parametrize("cut", [1, 2, 7, 19])
async def test_another_router_goes_on_with_the_stream_of_one_that_died(cut: int) -> None:
    async with cluster() as made:
        first, second = await made.join("a"), await made.join("b")
        whole = await undisturbed(second, spec())
        seen = await collect(first.generate(spec()), cut)
        assert made.holders() == {"g0", "g1"}, "it was written down before the first event"
        await made.kill("a")
        events = await again(second)
        assert events[:cut] == seen and events == whole
        assert isinstance(events[-1], Finished) and events[-1].usage.output_tokens == 20


async def test_what_was_said_is_not_computed_again() -> None:
    async with cluster(groups=1) as made:
        first, second = await made.join("a"), await made.join("b")
        await collect(first.generate(spec()), 12)
        await made.kill("a")
        await until_async(lambda: made.runs() == 0)
        lives = made.ranks["g0"].lives
        await again(second)
        assert lives - made.ranks["g0"].lives <= 14


async def test_a_stream_that_was_said_to_the_end_is_played_without_an_engine() -> None:
    async with cluster() as made:
        router = await made.join("a")
        whole = untimed(await collect(router.generate(spec())))
        lives = [ranks.lives for ranks in made.ranks.values()]
        assert await again(router) == whole
        assert [ranks.lives for ranks in made.ranks.values()] == lives


async def test_a_leader_is_lost_after_the_router() -> None:
    """The one that ran the stream: another one holds the record, and a third one computes it from the start."""
    async with cluster(groups=3) as made:
        first, second = await made.join("a"), await made.join("b")
        whole = await undisturbed(second, spec())
        made.pause_after(12)
        seen = await collect(first.generate(spec()), 9)
        (runner,) = (name for name, leader in made.leaders.items() if leader._owners)
        await made.kill("a")
        await made.end_group(runner)
        made.pause_after(None)
        events = await again(second)
        assert events == whole and events[:9] == seen


async def test_a_holder_that_is_lost_is_replaced_while_the_stream_runs() -> None:
    async with cluster(groups=3, step_s=0.05) as made:
        first, second = await made.join("a"), await made.join("b")
        events = first.generate(spec(max_tokens=40))
        await collect(events, 2)
        before = made.holders()
        lost = min(before)
        assert len(before) == 2
        await made.end_group(lost)
        await until_async(lambda: len(made.holders() - {lost}) == 2)
        await made.kill("a")
        assert len(await again(second)) == 43
        await events.aclose()


async def test_a_request_that_is_sent_again_is_not_run_twice() -> None:
    async with cluster() as made:
        first, second = await made.join("a"), await made.join("b")
        made.pause_after(5)
        reading = asyncio.create_task(collect(first.generate(spec(max_tokens=50, seed=3))))
        await until_async(lambda: made.runs() == 1 and made.holders())
        again = asyncio.create_task(collect(second.generate(spec(max_tokens=50, seed=3))))
        (older,) = await asyncio.gather(reading, return_exceptions=True)
        made.pause_after(None)
        events = untimed(await again)
        ended = older[-1] if isinstance(older, list) else older
        assert isinstance(ended.error if isinstance(ended, Failed) else ended, TakenOver)
        assert events == await undisturbed(second, spec(max_tokens=50, seed=3))
        lives = [ranks.lives for ranks in made.ranks.values()]
        assert untimed(await collect(first.generate(spec(max_tokens=50, seed=3)))) == events, "nor after its end"
        assert [ranks.lives for ranks in made.ranks.values()] == lives and made.runs() == 0


async def test_of_many_that_take_a_stream_up_at_once_one_reads_on() -> None:
    """Claims are ordered, the same for all leaders: not all can lose."""
    async with cluster() as made:
        made.pause_after(5)
        routers = [await made.join(name) for name in "abcd"]
        await collect(routers[0].generate(spec(max_tokens=50)), 3)
        found = [await router.find("", "r1") for router in routers]
        calls = [asyncio.create_task(collect(router.resume(each))) for router, each in zip(routers, found, strict=True)]
        await until_async(lambda: sum(call.done() for call in calls) == 3)
        made.pause_after(None)
        ends = await asyncio.gather(*calls, return_exceptions=True)
        whole = [each for each in ends if isinstance(each, list) and isinstance(each[-1], Finished)]
        assert len(whole) == 1 and len(whole[0]) == 53
        for each in ends:
            last = each.copy().pop().error if isinstance(each, list) and isinstance(each[-1], Failed) else each
            assert each in whole or isinstance(last, TakenOver)
        await until_async(lambda: made.runs() == 0)


async def test_a_frozen_router_that_wakes_up_finds_its_stream_taken_over() -> None:
    async with cluster() as made:
        first, second = await made.join("a"), await made.join("b")
        made.pause_after(10)
        events = first.generate(spec(max_tokens=50))
        seen = await collect(events, 3)
        taking_over = asyncio.create_task(again(second))
        rest = [event async for event in events]
        made.pause_after(None)
        whole = await taking_over
        assert isinstance(rest[-1], Failed) and isinstance(rest[-1].error, TakenOver)
        assert whole[: len(seen)] == seen and isinstance(whole[-1], Finished)
        assert [*seen, *rest[:-1]] == whole[: len(seen) + len(rest) - 1]


async def test_other_content_under_a_known_name_is_refused() -> None:
    async with cluster() as made:
        router = await made.join("a")
        await collect(router.generate(spec()))
        for other in (spec(max_tokens=21), replace(spec(), prompt_ids=(1, 2)), spec(temperature=0.5)):
            with pytest.raises(RequestIdTaken) as caught:
                await collect(router.generate(other))
            assert caught.value.field == "request_id"
        assert len(await collect(router.generate(replace(spec(), timeout_s=9.0)))) == 23, "patience is no content"


async def test_two_tenants_may_use_one_name_at_once() -> None:
    async with cluster(groups=1) as made:
        router = await made.join("a")
        mine, other = replace(spec(), tenant="mine"), replace(spec(), tenant="other", prompt_ids=(4, 5, 6, 7))
        events = await asyncio.gather(collect(router.generate(mine)), collect(router.generate(other)))
        assert all(isinstance(each[-1], Finished) for each in events) and events[0][0] != events[1][0]
        assert await again(router, tenant="mine") == untimed(events[0])
        assert await again(router, tenant="other") == untimed(events[1])
        with pytest.raises(StreamNotFound):
            await router.find("third", "r1")


async def test_a_name_like_that_of_a_choice_is_just_a_name() -> None:
    async with cluster(groups=1) as made:
        router = await made.join("a")
        several, one = spec("x", n=3), replace(spec("x/1"), prompt_ids=(9, 9))
        events = await asyncio.gather(collect(router.generate(several)), collect(router.generate(one)))
        assert all(isinstance(each[-1], Finished) for each in events)


async def test_without_room_streams_run_but_are_not_kept() -> None:
    async with cluster(most_bytes=0) as made:
        router = await made.join("a")
        assert isinstance((await collect(router.generate(spec())))[-1], Finished)
        with pytest.raises(StreamNotFound):
            await router.find("", "r1")


async def test_streams_are_kept_for_their_time() -> None:
    for keep_s in (0.3, 3.0, 30.0):
        async with cluster(keep_s=keep_s) as made:
            first, second = await made.join("a"), await made.join("b")
            await collect(first.generate(spec()), 5)
            await made.kill("a")
            try:
                await second.find("", "r1")
            except StreamNotFound:
                continue  # on a busy machine that time may be over
            await asyncio.sleep(2 * keep_s)
            with pytest.raises(StreamNotFound):
                await second.find("", "r1")
            return
    pytest.fail("streams are not kept")


async def test_a_router_that_drains_sends_away_who_can_resume_and_waits_for_others() -> None:
    async with cluster() as made:
        first, second = await made.join("a"), await made.join("b")
        made.pause_after(5)
        moving = asyncio.create_task(collect(first.generate(spec("moving", max_tokens=40), can_resume=True)))
        staying = asyncio.create_task(collect(first.generate(spec("staying", max_tokens=40))))
        await until_async(lambda: made.runs() == 2 and made.holders("moving"))
        drained = asyncio.create_task(first.drain(60.0))
        with pytest.raises(Unavailable, match="resume"):
            await moving
        made.pause_after(None)
        assert await drained
        assert isinstance((await staying)[-1], Finished)
        assert len(await again(second, "moving")) == 43


async def test_nothing_is_left_of_streams_in_a_router() -> None:
    async with cluster() as made:
        router = await made.join("a")
        for n in range(5):
            await collect(router.generate(spec(f"r{n}")))
        await until_async(lambda: not router._journal._tasks)
        assert not router._calls and not router._running and not router._journal._pages
        assert all(journal._ended.keys() == journal._streams.keys() for journal in made.journals.values())


async def test_a_leader_is_told_of_the_end_of_a_stream_whose_client_left_before_the_leader_had_answered() -> None:
    async with cluster() as made:
        router = await made.join("a")
        reading: list[asyncio.Task[list[StreamEvent]]] = []

        def leave_when_written(journal: Journal) -> Callable[..., JournalAnswer]:
            take = journal.take

            def taken(call: JournalCall, owner: int, now_s: float) -> JournalAnswer:
                answer = take(call, owner, now_s)
                if call.act == "write":
                    reading[0].cancel()
                return answer

            return taken

        for journal in made.journals.values():
            journal.take = leave_when_written(journal)  # type: ignore[method-assign]
        reading.append(asyncio.create_task(collect(router.generate(spec()))))
        with pytest.raises(asyncio.CancelledError):
            await reading[0]
        await until_async(lambda: all(journal._streams for journal in made.journals.values()))
        await until_async(lambda: not any(s.is_live for j in made.journals.values() for s in j._streams.values()))


async def test_all_leaders_that_heard_the_claim_are_told_of_the_end() -> None:
    async with cluster(groups=3) as made:
        first, second = await made.join("a"), await made.join("b")
        await collect(first.generate(spec()))
        (other,) = made.journals.keys() - made.holders()
        key, now_s = stream_key("", "r1"), asyncio.get_running_loop().time()
        (record,) = {made.journals[holder]._streams[key].record for holder in made.holders()}
        assert made.journals[other].take(JournalCall("write", key, Ballot(1, "a"), record), -1, now_s).accepted
        made.journals[other].lose(-1, now_s)
        assert len(await again(second)) == 23
        await until_async(lambda: not second._journal._tasks)
        await until_async(lambda: not any(s.is_live for j in made.journals.values() for s in j._streams.values()))


async def test_a_stream_that_is_written_ahead_and_taken_over_before_its_first_event_ends() -> None:
    group = FakeGroup(saying("hello"), replace(info(), exact=False), held=Journal(2**20, 60.0))
    router = service_of(group)
    claim = JournalCall("claim", stream_key("", "r1"), Ballot(5, "another"))
    assert group.held.take(claim, -1, asyncio.get_running_loop().time()).accepted
    with pytest.raises(TakenOver):
        async with asyncio.timeout(5.0):
            await collect(router.generate(spec(), is_known=False))  # it has not heard of the claim


def test_records_move_as_little_as_can_be() -> None:
    groups = {f"g{n}" for n in range(8)}
    keys = [stream_key("", str(n)) for n in range(400)]
    before = {key: set(missing(key, (), groups)) for key in keys}
    held = Counter(group for holders in before.values() for group in holders)
    assert all(len(holders) == HOLDERS for holders in before.values())
    assert min(held.values()) > 50, "all groups hold about as many"
    after = {key: set(missing(key, (), groups - {"g3"})) for key in keys}
    assert all(before[key] - {"g3"} <= after[key] for key in keys)
    assert missing(keys[0], before[keys[0]], groups) == []
    assert missing(keys[0], (), {"only"}) == ["only"] and missing(keys[0], (), set()) == []
