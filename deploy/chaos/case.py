"""One fault under running streams: what each of them became, and how soon all was whole again."""

import asyncio
import itertools
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ray.exceptions import RayError

from rayline.deploy.chaos.deployment import Deployment
from rayline.deploy.chaos.door import Door
from rayline.deploy.chaos.inflict import LULL_S, inflict
from rayline.deploy.chaos.judge import Content, complaints, content_of
from rayline.deploy.chaos.pairs import Fault, Pair
from rayline.deploy.chaos.targets import Victim, bystanders
from rayline.deploy.chaos.transcript import Transcript
from rayline.deploy.chaos.workload import Workload, traffic
from rayline.protos.errors import Overloaded, Unavailable

STREAM_TIMEOUT_S = 180.0
WHOLE_TIMEOUT_S = 300.0
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Case:
    """Break something once a stream of `workload` has `position` tokens."""

    pair: Pair
    workload: str
    position: int


@dataclass(frozen=True, slots=True)
class StreamResult:
    """losses: groups that were lost under it. pause_s: its longest wait for a next event from the fault on, None where
    none was to come. complaints: none for an undisturbed stream. is_refused: it was told at once, and before anything
    else, that nobody can serve it."""

    workload: str
    losses: int
    pause_s: float | None
    complaints: tuple[str, ...]
    is_refused: bool = False


@dataclass(frozen=True, slots=True)
class CaseResult:
    """back_s: from the fault until every process was there and every group known again. trouble: why it was not.
    bystanders: processes that were given up though they had nothing to do with the fault."""

    case: Case
    streams: tuple[StreamResult, ...]
    back_s: float | None
    trouble: str = ""
    bystanders: tuple[str, ...] = ()


@dataclass(slots=True)
class Scene:
    """A deployment with the answers that are known of it. `copies` of each workload run at once, beside `traffic`
    streams of others."""

    deployment: Deployment
    door: Door
    workloads: Sequence[Workload]
    copies: int
    traffic: int
    random: random.Random
    references: Mapping[str, Content] = field(default_factory=dict)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def learn(self) -> None:
        """Ask for each workload twice, undisturbed. Raises Unavailable when the two differ or one fails."""
        await self.deployment.settle(self.door, WHOLE_TIMEOUT_S)
        firsts = await asyncio.gather(*(self.run(workload) for workload in self.workloads))
        self.references = {transcript.workload: content_of(transcript) for transcript in firsts}
        for again in await asyncio.gather(*(self.run(workload) for workload in self.workloads)):
            if found := complaints(again, self.references[again.workload]):
                raise Unavailable(f"{again.workload} is not even equal undisturbed: {'; '.join(found)}")

    def start(self, workload: Workload) -> "tuple[Transcript, asyncio.Task[None]]":
        """A stream that is being read."""
        transcript = Transcript(workload.name, time.monotonic())
        spec = workload.spec(f"chaos-{self.random.getrandbits(32):08x}-{next(self.numbers)}", "")
        return transcript, asyncio.create_task(transcript.follow(self.door.stream, spec, time.monotonic))

    async def run(self, workload: Workload) -> Transcript:
        """A stream that has ended, or hangs: then it has no terminal event."""
        transcript, task = self.start(workload)
        if (await asyncio.wait([task], timeout=STREAM_TIMEOUT_S))[1]:
            task.cancel()
        return transcript

    async def others(self, tokens: int, transcripts: list[Transcript]) -> None:
        """One client after another, without end."""
        while True:
            transcript, task = self.start(traffic(next(self.numbers), tokens))
            transcripts.append(transcript)
            await task

    def judged(self, transcript: Transcript, fault_s: float) -> StreamResult:
        """A stream that has ended, or that still hangs."""
        silent = {workload.name for workload in self.workloads if workload.is_silent}
        pause_s = None if transcript.workload in silent else transcript.pause_s(fault_s)
        if not transcript.events and isinstance(transcript.error, Unavailable | Overloaded):
            return StreamResult(transcript.workload, 0, None, (), is_refused=True)
        found = complaints(transcript, self.references.get(transcript.workload))
        return StreamResult(transcript.workload, transcript.losses, pause_s, found)


async def run_case(scene: Scene, case: Case, tokens: int) -> CaseResult:
    """Start all, break one, see all to their ends."""
    others: list[Transcript] = []
    noise = [asyncio.create_task(scene.others(tokens, others)) for _ in range(scene.traffic)]
    streams = [scene.start(workload) for _ in range(scene.copies) for workload in scene.workloads]
    tasks = [task for _, task in streams]
    try:
        await _until_position(streams, _pacer(scene, case), case.position)
        before = await asyncio.to_thread(scene.deployment.look)
        victim, fault_s = await strike(scene, case.pair)
        recovery = asyncio.create_task(recover(scene, case.pair, victim, fault_s))
        await asyncio.wait(tasks, timeout=STREAM_TIMEOUT_S)
        back_s, trouble = await recovery
        after = await asyncio.to_thread(scene.deployment.look)
    except Unavailable as error:
        return CaseResult(case, (), None, error.message)
    finally:
        for task in (*noise, *tasks):
            task.cancel()
    ended = [transcript for transcript in others if transcript.failure() or transcript.is_over]
    judged = [scene.judged(transcript, fault_s) for transcript in [*(t for t, _ in streams), *ended]]
    gone = bystanders(victim, case.pair.takes_node, before.victims, after.victims)
    return CaseResult(case, tuple(judged), back_s, trouble, tuple(f"{v.target}, process {v.pid}" for v in gone))


async def choose(scene: Scene, pair: Pair) -> Victim:
    """A living process of that kind; never the head's raylet or wire, with which the whole cluster ends."""
    census = await asyncio.to_thread(scene.deployment.look)
    found = [victim for victim in census.of(pair.target) if not (pair.takes_node and victim.is_head)]
    if not found:
        raise Unavailable(f"there is no {pair.target} to break")
    return scene.random.choice(found)


async def strike(scene: Scene, pair: Pair) -> tuple[Victim, float]:
    """Break one process of that kind; returns which and when. Raises Unavailable when none can be reached."""
    victim = await choose(scene, pair)
    fault_s = time.monotonic()
    try:
        await asyncio.to_thread(inflict, pair.fault, victim, scene.deployment.agents, scene.deployment.network)
    except RayError as error:
        raise Unavailable(f"the node of {pair.target} {victim.pid} does not answer: {error}") from None
    return victim, fault_s


async def heal(scene: Scene, pair: Pair, victim: Victim) -> None:
    """What an operator would do: wait for what goes on by itself, put the wire back in."""
    if pair.is_lasting:
        return
    await asyncio.sleep(LULL_S)
    if pair.fault is Fault.CUT and scene.deployment.network is not None:
        scene.deployment.network.join(victim.address)


async def recover(scene: Scene, pair: Pair, victim: Victim, fault_s: float) -> tuple[float | None, str]:
    """How long after the fault the deployment was whole again; None and why, when it was not."""
    await heal(scene, pair, victim)
    healed_s = time.monotonic()
    try:
        gone = (victim,) if pair.is_lasting else ()
        return healed_s - fault_s + await scene.deployment.settle(scene.door, WHOLE_TIMEOUT_S, gone), ""
    except Unavailable as error:
        return None, error.message


async def _until_position(
    streams: "Sequence[tuple[Transcript, asyncio.Task[None]]]", pacer: str, position: int
) -> None:
    """Return when the watched stream has so many tokens, or has ended."""
    transcript, task = next(stream for stream in streams if stream[0].workload == pacer)
    while transcript.tokens < position and not task.done():
        await asyncio.sleep(POLL_S)


def _pacer(scene: Scene, case: Case) -> str:
    """Whose tokens are counted: those of a stream that sends none until its end are like another's in number."""
    watched = next(workload for workload in scene.workloads if workload.name == case.workload)
    return next(w.name for w in scene.workloads if not w.is_silent) if watched.is_silent else watched.name
