"""What a rank's process does in which order: plans are launched ahead as far as it may, all else waits its turn."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from rayline.protos import internal_pb2 as pb
from rayline.protos.errors import InternalError
from rayline.protos.plan import Plan, StepResult
from rayline.protos.plan_wire import plan_to_pb
from rayline.workers.pipeline import RankStats
from rayline.workers.rank import Orders


def plan(step: int, epoch: int = 0) -> pb.LeaderFrame:
    return pb.LeaderFrame(plan=plan_to_pb(Plan(epoch, step)))


STATS, STOP = pb.LeaderFrame(stats=pb.StatsRequest()), pb.LeaderFrame(stop=pb.Stop())


@dataclass
class Leader:
    """A channel on which `coming` arrives: each frame once the rank has done `after` things."""

    log: list[str]
    coming: deque[tuple[int, pb.LeaderFrame]]

    def has_frame(self, wait_s: float = 0.0) -> bool:
        if wait_s:
            self.log.append("looks")
        return bool(self.coming) and self.coming[0][0] <= len([entry for entry in self.log if entry != "looks"])

    def receive_leader_frame(self) -> pb.LeaderFrame:
        return self.coming.popleft()[1]

    def send(self, frame: pb.WorkerFrame) -> None:
        self.log.append(f"tells {frame.result.step}" if frame.HasField("result") else "tells stats")


@dataclass
class Steps:
    """On a device that needs `looks` looks for a step."""

    log: list[str]
    looks: int = 0
    running: deque[int] = field(default_factory=deque)
    sampled: set[int] = field(default_factory=set)

    @property
    def in_flight(self) -> int:
        return len(self.running)

    @property
    def is_over(self) -> bool:
        return self.log.count("looks") >= self.looks

    def foresee(self, plan: Plan) -> None:
        """One stage hears of nothing before its turn."""

    def begin(self, plan: Plan) -> None:
        self.sample()
        self.log.append(f"begins {plan.step}")
        self.running.append(plan.step)

    def sample(self) -> None:
        assert len(self.running) <= 1
        if self.running and self.running[-1] not in self.sampled:
            self.sampled.add(self.running[-1])
            self.log.append(f"samples {self.running[-1]}")

    def finish(self) -> StepResult:
        if len(self.running) == 1:
            self.sample()
        return StepResult(0, self.running.popleft())


def followed(frames: Sequence[tuple[int, pb.LeaderFrame]], window: int, looks: int = 0) -> list[str]:
    """All that a rank did until it was told to stop; looks for frames while a step runs are left out."""
    log: list[str] = []
    worker: Any = type("Worker", (), {})()
    worker.steps, worker.launch_window = Steps(log, looks), window
    worker.spec = type("Spec", (), {"epoch": 0})()
    worker.stats = lambda: RankStats(0, 0, 0.0, 0.0, 0, 0, 0, 0, 0)
    leader: Any = Leader(log, deque(frames))
    orders = Orders(leader, worker)
    while orders.follow():
        pass
    return [entry for entry in log if entry != "looks"]


def at_once(*frames: pb.LeaderFrame) -> list[tuple[int, pb.LeaderFrame]]:
    return [(0, frame) for frame in frames]


def test_with_a_window_of_one_each_step_is_told_before_the_next_begins() -> None:
    assert followed(at_once(plan(0), plan(1), STOP), window=1) == [
        "begins 0", "samples 0", "tells 0", "begins 1", "samples 1", "tells 1",
    ]  # fmt: skip


def test_with_a_window_of_two_the_next_step_begins_before_one_is_told() -> None:
    assert followed(at_once(plan(0), plan(1), plan(2), STOP), window=2) == [
        "begins 0", "samples 0", "begins 1", "tells 0", "samples 1", "begins 2", "tells 1", "samples 2", "tells 2",
    ]  # fmt: skip


def test_a_plan_that_comes_while_the_step_runs_begins_beside_it() -> None:
    """The leader plans when it has been told of the step before: the rank samples meanwhile, and looks out for it."""
    late = [(0, plan(0)), (2, plan(1)), (4, plan(2)), (8, STOP)]
    assert followed(late, window=2, looks=1000) == [
        "begins 0", "samples 0", "begins 1", "tells 0", "samples 1", "begins 2", "tells 1", "samples 2", "tells 2",
    ]  # fmt: skip


def test_a_step_that_ends_before_the_next_plan_comes_is_told_at_once() -> None:
    late = [(0, plan(0)), (3, plan(1)), (6, STOP)]
    assert followed(late, window=2, looks=5) == [
        "begins 0", "samples 0", "tells 0", "begins 1", "samples 1", "tells 1",
    ]  # fmt: skip


@pytest.mark.parametrize("window", [1, 2])
def test_statistics_are_told_when_nothing_runs(window: int) -> None:
    log = followed(at_once(plan(0), STATS, plan(1), STOP), window)
    assert log.index("tells 0") < log.index("tells stats") < log.index("begins 1") < log.index("tells 1")


@pytest.mark.parametrize("window", [1, 2])
def test_plans_of_another_epoch_are_refused(window: int) -> None:
    with pytest.raises(InternalError, match="epoch 3 came to epoch 0"):
        followed(at_once(plan(0), plan(1, epoch=3)), window)
