"""No fault at all, on machines that are far too busy: whoever gives a group up now is wrong."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from rayline.deploy.chaos.callers import Callers
from rayline.deploy.chaos.case import Scene, StreamResult
from rayline.deploy.chaos.pairs import Target
from rayline.deploy.chaos.targets import changed

LOOPS_PER_CORE = 2
TELL_PERIOD_S = 60.0


@dataclass(frozen=True, slots=True)
class CalmReport:
    """loops: busy processes beside the deployment. hanging: streams that never ended. fenced: processes given up."""

    seconds: float
    loops: int
    streams: tuple[StreamResult, ...]
    hanging: int
    fenced: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        return not self.fenced and not self.hanging and not any(s.losses or s.complaints for s in self.streams)


async def run_calm(scene: Scene, seconds: float, show: Callable[[str], None]) -> CalmReport:
    """Streams for `seconds` beside LOOPS_PER_CORE busy loops for each core of each node."""
    agents = scene.deployment.agents
    before = await asyncio.to_thread(scene.deployment.look)
    loops = 0
    for node in (await asyncio.to_thread(_machines, scene)).values():
        loops += await asyncio.to_thread(
            agents.ask, node, lambda agent: agent.keep_busy.remote(LOOPS_PER_CORE, seconds)
        )
    began, callers = time.monotonic(), Callers(scene, show)
    callers.start()
    while (left_s := began + seconds - time.monotonic()) > 0:
        await asyncio.sleep(min(left_s, TELL_PERIOD_S))
        losses = sum(result.losses for result in callers.results)
        show(f"{time.monotonic() - began:.0f} s, {len(callers.results)} streams, {losses} groups given up under them")
    hanging = await callers.finish()
    after = await asyncio.to_thread(scene.deployment.look)
    gone = changed([v for v in before.victims if v.target is not Target.RAYLET], after.victims)
    fenced = tuple(f"{victim.target}, process {victim.pid}" for victim in gone)
    return CalmReport(time.monotonic() - began, loops, tuple(callers.results), hanging, fenced)


def _machines(scene: Scene) -> dict[str, str]:
    """One node of each machine."""
    agents = scene.deployment.agents
    nodes = [victim.node_id for victim in scene.deployment.look().of(Target.RAYLET)]
    return {agents.ask(node, lambda agent: agent.machine.remote()): node for node in nodes}
