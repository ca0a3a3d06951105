"""Streams without end, a fault every few seconds, and at the end a look for whatever was left behind."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rayline.deploy.chaos.callers import Callers
from rayline.deploy.chaos.case import Scene, StreamResult, heal, strike
from rayline.deploy.chaos.footprint import Footprint, footprint, leaks
from rayline.deploy.chaos.pairs import Pair
from rayline.protos.errors import Unavailable

SETTLE_TIMEOUT_S = 180.0
REST_S = 3.0  # for what ends behind the last stream


@dataclass(frozen=True, slots=True)
class SoakReport:
    """faults: what was broken, in order. leaked: what stayed. before, after: what was held while nothing ran."""

    seconds: float
    faults: tuple[Pair, ...]
    streams: tuple[StreamResult, ...]
    leaked: tuple[str, ...]
    before: Footprint
    after: Footprint | None
    trouble: str = ""

    @property
    def is_well(self) -> bool:
        return not self.leaked and not self.trouble and not any(stream.complaints for stream in self.streams)


async def run_soak(
    scene: Scene, pairs: Sequence[Pair], seconds: float, every_s: float, show: Callable[[str], None]
) -> SoakReport:
    """Break one of `pairs` every `every_s` seconds, whether the last one has healed or not, for `seconds`."""
    before = await _rest(scene)
    began, faults, callers = time.monotonic(), list[Pair](), Callers(scene, show)
    callers.start()
    healing: set[asyncio.Task[None]] = set()
    while time.monotonic() - began < seconds:
        await asyncio.sleep(every_s)
        pair = scene.random.choice(pairs)
        if (task := await _break(scene, pair, show)) is not None:
            faults.append(pair)
            healing.add(task)
        if scene.deployment.nodes is not None:
            await asyncio.to_thread(scene.deployment.nodes.repair)
    hanging = await callers.finish()
    trouble = f"{hanging} streams never ended" if hanging else ""
    await asyncio.gather(*healing)
    try:
        after = await _rest(scene)
        left = leaks(before, after)
    except Unavailable as error:
        after, left, trouble = None, (), trouble or error.message
    return SoakReport(time.monotonic() - began, tuple(faults), tuple(callers.results), left, before, after, trouble)


async def _break(scene: Scene, pair: Pair, show: Callable[[str], None]) -> "asyncio.Task[None] | None":
    """Break one process; None when there is none of that kind at the moment."""
    try:
        victim, _ = await strike(scene, pair)
    except Unavailable as error:
        show(f"{pair.target} {pair.fault}: not now: {error}")
        return None
    show(f"{pair.target} {pair.fault}: process {victim.pid}")
    return asyncio.create_task(heal(scene, pair, victim))


async def _rest(scene: Scene) -> Footprint:
    """What is held once all is whole and nothing runs any more. Raises Unavailable when that does not come."""
    await scene.deployment.settle(scene.door, SETTLE_TIMEOUT_S)
    await asyncio.sleep(REST_S)
    census = await asyncio.to_thread(scene.deployment.look)
    return await asyncio.to_thread(footprint, census, (await scene.door.models())[0], scene.deployment.agents)
