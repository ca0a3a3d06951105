"""Clients that ask for one stream after another, each of which is judged as it ends."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from rayline.deploy.chaos.case import Scene, StreamResult

END_TIMEOUT_S = 180.0


@dataclass(slots=True)
class Callers:
    """As many as the scene has streams at once. results: of the streams that have ended."""

    scene: Scene
    show: Callable[[str], None]
    results: list[StreamResult] = field(default_factory=list)
    _going: bool = True
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)

    def start(self) -> None:
        count = self.scene.copies * len(self.scene.workloads)
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(count)]

    async def finish(self) -> int:
        """Begin no more streams and wait for those that run; returns how many never ended."""
        self._going = False
        _, hanging = await asyncio.wait(self._tasks, timeout=END_TIMEOUT_S)
        for task in hanging:
            task.cancel()
        return len(hanging)

    async def _call(self, number: int) -> None:
        workloads = self.scene.workloads
        while self._going:
            transcript = await self.scene.run(workloads[number % len(workloads)])
            self.results.append(result := self.scene.judged(transcript, transcript.asked_s))
            if result.complaints:
                self.show(f"  LOST {result.workload}: {'; '.join(result.complaints)}")
            number += 1
