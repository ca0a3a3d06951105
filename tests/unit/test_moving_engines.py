"""Streams moved between two real groups of the embedded model, after every token: the bits of an undisturbed one."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.deploy.model_path import resolve_model
from rayline.protos.events import ChoiceEnded, Delta, Finished, StreamEvent
from rayline.protos.types import SamplingParams, Spec, StructuredOutput
from rayline.router.link import GroupLink
from rayline.router.service import ServedModel, Service
from rayline.router.tokenizer import Tokenizer
from rayline.workers.group import GroupSpec, start_group
from rayline.workers.journal import Journal
from rayline.workers.leader import Leader

SECRET = "correct horse"
TOKENS = 48
MOVED_AFTER = range(1, 12)  # tokens, so that enough are left on any machine
PROMPT = "def fibonacci(n):\n    "
ENGINE = EngineSection(kv_bytes=2**26, threads=1)

ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.0, "seed": 3, "logprobs": 2, "top_p": 0.9},
    "penalties": {"temperature": 0.8, "seed": 5, "repetition_penalty": 1.3, "presence_penalty": 0.5, "min_tokens": 9},
    "grammar": {
        "temperature": 1.0,
        "seed": 1,
        "structured_output": StructuredOutput("regex", "[a-z]{3,9}( [a-z]+)*"),
    },
    "stop": {"temperature": 1.0, "seed": 7, "stop": ("\n\n\n",)},
    "choices": {"temperature": 1.0, "seed": 9, "n": 3},
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two groups and the service in front of them."""

    service: Service
    links: tuple[GroupLink, ...]
    leaders: tuple[Leader, ...]

    async def read(self, name: str, move_after: int | None = None, **params: Any) -> list[StreamEvent]:
        """A stream; behind its delta number `move_after` its group begins to drain."""
        asked = SamplingParams(max_tokens=TOKENS, ignore_eos=True, **params)
        events, deltas = list[StreamEvent](), 0
        async for event in self.service.generate(Spec(name, "m", asked, prompt=PROMPT)):
            events.append(event)
            deltas += isinstance(event, Delta)
            if isinstance(event, Delta) and deltas == move_after:
                self._drain_busiest()
        for link in self.links:
            link.departing = False
        while any(leader.streams for leader in self.leaders):
            await asyncio.sleep(0.005)
        return events

    def _drain_busiest(self) -> None:
        busy = max(zip(self.leaders, self.links, strict=True), key=lambda pair: pair[0].streams)
        busy[1].departing = True
        self.service.move_streams()


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    path = resolve_model("embedded")
    async with AsyncExitStack() as stack:
        leaders, links = [], []
        for name in ("a", "b"):
            spec = GroupSpec(name, "m", path, "auto", 0, ENGINE, ParallelSection(), max_waiting=100)
            started = await asyncio.to_thread(start_group, spec, None, lambda *_: None)
            leader = Leader(started.engine, started.info, SECRET, Journal(2**20, 1.0))
            await leader.start("127.0.0.1")
            stack.push_async_callback(leader.stop, 0)
            link = await GroupLink.open(leader.address, SECRET)
            stack.push_async_callback(link.close)
            leaders.append(leader)
            links.append(link)
        groups = {link.info.group_id: link for link in links}
        model = ServedModel("m", Tokenizer.load(path), groups, 0)
        service = Service({"m": model}, time.monotonic, lambda: 1, patience_s=30.0)
        stack.callback(service.close)
        yield Pair(service, tuple(links), tuple(leaders))


def by_choice(events: Sequence[StreamEvent], choice: int) -> list[StreamEvent]:
    return [e for e in events if isinstance(e, Delta | ChoiceEnded) and e.choice == choice]


def end(events: Sequence[StreamEvent]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished) and last.overhead is not None
    return last


@pytest.mark.parametrize("kind", ASKED)
async def test_a_stream_moved_after_any_token_has_the_bits_of_an_undisturbed_one(kind: str) -> None:
    params, moved = ASKED[kind], 0
    async with pair() as groups:
        whole = await groups.read("whole", **params)
        assert end(whole).exact
        for token in MOVED_AFTER:
            events = await groups.read(f"moved-{token}", token, **params)
            for choice in range(params.get("n", 1)):
                assert by_choice(events, choice) == by_choice(whole, choice)
            ended = end(events)
            assert ended.exact and ended.overhead is not None
            assert replace(ended.usage, cached_tokens=0) == replace(end(whole).usage, cached_tokens=0)
            moved += ended.overhead.moves
        for leader in groups.leaders:
            leader._engine.scheduler.pool.check([])
    assert moved >= len(MOVED_AFTER) // 2, "most of them had tokens enough left to be moved"


async def test_a_search_that_is_moved_finds_the_same_beams() -> None:
    async with pair() as groups:
        whole = await groups.read("whole", beam_width=3, n=2)
        reading = asyncio.create_task(groups.read("moved", beam_width=3, n=2))
        while not any(leader.streams for leader in groups.leaders):
            await asyncio.sleep(0)
        groups._drain_busiest()
        events = await reading
        for choice in (0, 1):
            assert by_choice(events, choice) == by_choice(whole, choice)
