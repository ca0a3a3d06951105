"""All stages of a group in one process, each on a device that computes late, with links that deliver late.

What is sent arrives when the device at the other end cannot go on without it, and not before. Until then the sender's
device may have computed further: a buffer that was written to again brings the wrong numbers, one that was given back
raises. Which rank goes on next is drawn.
"""

import random
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from late_device import Cell, Late, LateDevice
from torch import Tensor

from rayline.kernels import edits
from rayline.kernels.backend import Kernels
from rayline.protos.plan import Plan, StepResult
from rayline.workers import batch, cache, lines, token_feed
from rayline.workers.collectives import Alone
from rayline.workers.devices import Staging
from rayline.workers.lines import Line
from rayline.workers.spec import Loaded, RankSpec
from rayline.workers.stages import Lines, StageLinks
from rayline.workers.step_clock import StepClock
from rayline.workers.worker import Worker

CPU = torch.device("cpu")


class Stuck(Exception):
    """The host of another rank must go on before this device can."""


@dataclass(frozen=True)
class Call:
    """A rank's `number`-th send or receive on a line."""

    line: str
    number: int


@dataclass
class LateLine:
    """What torch.distributed has between two ranks: messages go one after the other once both ends asked for them."""

    name: str
    source: LateDevice
    target: LateDevice
    sends: list[tuple[int, "weakref.ref[Tensor]"]] = field(default_factory=list)  # behind so much of the source's queue
    rooms: list["weakref.ref[Tensor]"] = field(default_factory=list)
    delivered: int = 0

    def deliver(self, number: int) -> None:
        while self.delivered <= number:
            if self.delivered >= min(len(self.sends), len(self.rooms)):
                raise Stuck
            at, sent = self.sends[self.delivered]
            self.source.run(at)
            tensor, room = sent(), self.rooms[self.delivered]()
            assert tensor is not None, f"{self.name} {self.delivered} was given back before it was sent"
            assert room is not None, f"room of {self.name} {self.delivered} was given back before it was filled"
            assert isinstance(tensor, Late) and isinstance(room, Late) and tensor.number is not None
            assert (tensor.shape, tensor.dtype) == (room.shape, room.dtype)
            room.cell.number = tensor.number.clone()
            self.delivered += 1


@dataclass(frozen=True)
class LateWork:
    line: LateLine
    number: int

    def is_completed(self) -> bool:
        return self.line.delivered > self.number

    def wait(self) -> None:
        """The device waits, with all that is launched from now on."""
        self.line.target.launch(lambda: self.line.deliver(self.number))


@dataclass(frozen=True, slots=True)
class LateStaging(Staging):
    """Room on a late device. broken: told of memory that was given back while the device still had to read it."""

    late: LateDevice = field(default_factory=LateDevice)
    broken: list[str] = field(default_factory=list)

    @property
    def is_of_device(self) -> bool:
        return True

    def room(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        room = self.late.room(shape, dtype)
        weakref.finalize(room, self._given_back, room.cell)
        return room

    def _given_back(self, cell: Cell) -> None:
        if self.late.done < cell.used:
            self.broken.append(f"memory that operation {cell.used} reads was given back after {self.late.done}")


class LateStages:
    """The pipeline of a group with a rank a stage. Each rank does what its plans ask as workers/rank.py has it.

    calls: of each rank all sends and receives, in its own order.
    """

    def __init__(self, specs: Sequence[RankSpec], kernels: Kernels, launch_window: int, seed: int) -> None:
        size = len(specs)
        self.devices = [LateDevice() for _ in specs]
        self.broken: list[str] = []
        self.calls: list[list[Call]] = [[] for _ in specs]
        self.window = 2 * size
        self.in_flight = 0
        self._launch_window = launch_window
        self._draw = random.Random(seed)
        self._plans: list[deque[Plan]] = [deque() for _ in specs]
        self._at = 0
        hidden = [LateLine(f"hidden {at}", *self.devices[at : at + 2]) for at in range(size - 1)]
        tokens = LateLine("tokens", self.devices[-1], self.devices[0])
        self.workers = []
        for stage, (spec, device) in enumerate(zip(specs, self.devices, strict=True)):
            staging = LateStaging(CPU, late=device, broken=self.broken)
            neighbours = [None, *hidden, None][stage : stage + 2]
            ends = (*neighbours, tokens if stage in (0, size - 1) else None)
            links = StageLinks(Lines(*(None if end is None else Line(_group(end), 0, staging) for end in ends)))
            self.workers.append(Worker(spec, kernels, Alone(), links if size > 1 else None))

    def load(self) -> list[Loaded]:
        return [worker.load(lambda *_: None) for worker in self.workers]

    def allocate(self, blocks: int) -> None:
        for worker, device in zip(self.workers, self.devices, strict=True):
            worker.allocate(blocks, lambda *_: None)
            for layer in worker.steps._stage.cache.layers:
                for name in ("keys", "values"):
                    object.__setattr__(layer, name, device.own(getattr(layer, name)))
            worker.steps._mark = device.mark
            worker.steps.clock = StepClock()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Messages, and whatever a rank copies to its device, go the late way."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lines, "dist", self)
            for module in (batch, cache, edits, token_feed):
                patch.setattr(module, "to_device", lambda tensor, _: self.devices[self._at].own(tensor))
            yield

    # ---- torch.distributed

    def isend(self, tensor: Tensor, peer: int, group: LateLine) -> LateWork:
        group.sends.append((len(group.source.queue), weakref.ref(tensor)))
        return self._called(group, len(group.sends) - 1)

    def irecv(self, room: Tensor, peer: int, group: LateLine) -> LateWork:
        group.rooms.append(weakref.ref(room))
        return self._called(group, len(group.rooms) - 1)

    def _called(self, line: LateLine, number: int) -> LateWork:
        self.calls[self._at].append(Call(line.name, number))
        return LateWork(line, number)

    # ---- what the engine asks

    def submit(self, plan: Plan) -> None:
        self.in_flight += 1
        for at, plans in enumerate(self._plans):
            self._at = at
            self.workers[at].steps.foresee(plan)
            plans.append(plan)

    def next_result(self) -> StepResult:
        """Ranks go on in any order until the last one has a result. Raises Stuck when none can."""
        while True:
            order = self._draw.sample(range(len(self.workers)), len(self.workers))
            for at in order:
                went_on, result = self._go_on(at)
                if result is not None:
                    self.in_flight -= 1
                    return result
                if went_on:
                    break
            else:
                raise Stuck("every rank waits for another one")

    def _go_on(self, at: int) -> tuple[bool, StepResult | None]:
        """Whether a rank could do its next thing, and its result."""
        self._at = at
        steps, plans = self.workers[at].steps, self._plans[at]
        if plans and steps.in_flight < self._launch_window:
            steps.begin(plans.popleft())
            return True, None
        if not steps.in_flight:
            return False, None
        if steps.in_flight == 1:
            steps.sample()
        ended: Any = steps._running[0].ended
        try:
            self.devices[at].run(ended.at)
        except Stuck:
            return False, None
        return True, steps.finish()


def _group(line: LateLine) -> Any:
    return line


def passes(calls: Sequence[Sequence[Call]]) -> bool:
    """Whether all messages come through if each call waits for the other end before its rank goes on."""
    waiting = [deque(each) for each in calls]
    while any(waiting):
        heads = [each[0] for each in waiting if each]
        met = {head for head in heads if heads.count(head) == 2}
        if not met:
            return False
        for each in waiting:
            if each and each[0] in met:
                each.popleft()
    return True
