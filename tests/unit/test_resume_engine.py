"""Resumed streams of the real engine: a router dies, then perhaps the group that ran its stream, and all bits stay."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exact_engine import start
from exact_requests import Limits

from rayline.deploy.model_path import resolve_model
from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolChoice
from rayline.protos.events import ChoiceEnded, Delta, Finished, StreamEvent
from rayline.protos.position import Position, Reading
from rayline.protos.types import SamplingParams, Spec, StructuredOutput
from rayline.router.link import GroupLink
from rayline.router.output_form import ChatFormats
from rayline.router.reasoning import THINK
from rayline.router.service import ServedModel, Service
from rayline.router.tokenizer import Tokenizer
from rayline.router.tools.formats import FORMATS
from rayline.workers.journal import Journal
from rayline.workers.leader import Leader

pytestmark = pytest.mark.usefixtures("patient_routers")

SECRET = "secret"
LIMITS = Limits(16, 64, 16, True, 64, 1)
SCHEMA = (
    '{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a", "b"]}'
)
CALLS = Conversation(
    (ChatMessage("user", "add one and two"),),
    (Tool("add", "", SCHEMA),),
    ToolChoice("required"),
)
CASES: dict[str, dict[str, Any]] = {
    "sampled, with penalties and logprobs": dict(
        temperature=1.1, top_p=0.9, repetition_penalty=1.2, presence_penalty=0.5, frequency_penalty=0.3, logprobs=2
    ),
    "greedy, with a stop string": dict(temperature=0.0, stop=("return",), min_tokens=2),
    "three choices": dict(temperature=1.0, n=3, logprobs=0),
    "the best of three": dict(temperature=1.0, best_of=3),
    "beams": dict(beam_width=3, n=2),
    "a schema": dict(temperature=1.0, structured_output=StructuredOutput("json_schema", SCHEMA)),
    "scores of the prompt": dict(temperature=1.0, prompt_logprobs=2),
    "calls of tools": dict(temperature=1.0, conversation=CALLS),
}


def spec(name: str, case: dict[str, Any]) -> Spec:
    params = {key: value for key, value in case.items() if key != "conversation"}
    prompt = None if "conversation" in case else "def add(a, b):"
    conversation = case.get("conversation")
    return Spec(name, "m", SamplingParams(max_tokens=24, seed=7, **params), prompt=prompt, conversation=conversation)


class Cluster:
    def __init__(self, leaders: list[Leader], tokenizer: Tokenizer):
        self.leaders = leaders
        self._tokenizer = tokenizer
        self._links: dict[str, list[GroupLink]] = {}
        self.services: list[Service] = []

    async def join(self, name: str, group_ids: set[str]) -> Service:
        links = [
            await GroupLink.open(leader.address, SECRET) for leader in self.leaders if leader.info.group_id in group_ids
        ]
        groups = {link.info.group_id: link for link in links}
        chat = ChatFormats(FORMATS["hermes"], THINK)
        self._links[name] = links
        service = Service(
            {"m": ServedModel("m", self._tokenizer, groups, 0, chat)},
            asyncio.get_running_loop().time,
            lambda: 11,
            patience_s=5.0,
            router=name,
            wall_clock=lambda: 0.0,
        )
        self.services.append(service)
        return service

    async def kill(self, name: str) -> None:
        for link in self._links.pop(name):
            link._call.cancel()
            await link.close()


@asynccontextmanager
async def cluster(path: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        leaders = []
        for name in ("g0", "g1"):
            started = await asyncio.to_thread(start, path, LIMITS, 512)
            leader = Leader(started.engine, replace(started.info, group_id=name), SECRET, Journal(2**22, 600.0))
            await leader.start("127.0.0.1")
            stack.push_async_callback(leader.stop, 0)
            leaders.append(leader)
        made = Cluster(leaders, Tokenizer.load(path))
        yield made
        for service in made.services:
            service.close()


async def read(events: AsyncIterator[StreamEvent], count: int | None = None) -> list[StreamEvent]:
    found: list[StreamEvent] = []
    async for event in events:
        found.append(event)
        if len(found) == count:
            break
    return found


def parts(events: list[StreamEvent]) -> dict[int, list[StreamEvent]]:
    """Each choice's events, and under -1 those of the whole stream without names and times."""
    found: dict[int, list[StreamEvent]] = {}
    for event in events:
        if isinstance(event, Delta | ChoiceEnded):
            found.setdefault(event.choice, []).append(event)
        elif isinstance(event, Finished):
            usage = replace(event.usage, cached_tokens=0)
            plain = replace(event, request_id="", queue_s=0.0, overhead=None, usage=usage)
            found.setdefault(-1, []).append(plain)
        else:
            found.setdefault(-1, []).append(replace(event, request_id="") if hasattr(event, "request_id") else event)
    return found


@pytest.mark.parametrize("is_runner_left", [True, False], ids=["its group lives", "its group is lost too"])
async def test_streams_of_the_real_engine_are_whole_wherever_their_router_died(is_runner_left: bool) -> None:
    async with cluster(resolve_model("embedded")) as made:
        both = {"g0", "g1"}
        for number, (what, case) in enumerate(CASES.items()):
            quiet = await made.join(f"quiet{number}", both)
            whole = await read(quiet.generate(spec(f"whole {what}", case)))
            assert isinstance(whole[-1], Finished) and whole[-1].exact
            for cut in (1, 3, len(whole) // 2, len(whole) - 1):
                name = f"{what} {cut}"
                dying = await made.join(f"dying{number}-{cut}", both)
                wanted = spec(name, case)
                seen = await read(dying.generate(wanted), cut)
                (runner,) = {leader.info.group_id for leader in made.leaders if name in str(leader._owners)} or {"g0"}
                await made.kill(f"dying{number}-{cut}")
                left = await made.join(f"left{number}-{cut}", both if is_runner_left else both - {runner})
                again = await read(left.resume(await left.find("", name)))
                reading = Reading(Position(), wanted.params.n)
                for event in seen:
                    reading.take(event)
                late = Reading(reading.position, wanted.params.n)
                joined = [*seen, *(event for event in again if late.take(event) is not None)]
                assert parts(joined) == parts(whole), name
                await made.kill(f"left{number}-{cut}")
