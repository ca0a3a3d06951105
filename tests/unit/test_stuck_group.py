"""Groups of real rank processes of which one dies, freezes or fails: noticed how soon, and nothing is left behind."""

import asyncio
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from simulated_group import SECRET, TimedRanks, engine_over, leading, request
from waiting import until

from rayline.cluster.config import EngineSection, ParallelSection
from rayline.deploy.model_path import resolve_model
from rayline.protos.errors import InternalError, RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed
from rayline.protos.plan import Plan, Slice, StepResult
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.router.link import GroupLink
from rayline.workers import local_launch
from rayline.workers.deadline import LEAST_LIMIT_S
from rayline.workers.engine import Engine
from rayline.workers.group import GroupSpec, start_group
from rayline.workers.local_launch import LocalLauncher

SLACK_S = 8.0  # for machines that run other things beside; a limit that is none of these is ten seconds at least
TOKENS = 1000


def embedded(tp: int, pp: int) -> GroupSpec:
    """A group of the embedded model in `tp` x `pp` processes of this machine."""
    engine, parallel = EngineSection(threads=1, kv_bytes=2**24), ParallelSection(tp, pp)
    return GroupSpec("g0", "embedded", resolve_model("embedded"), "auto", 0, engine, parallel, 100)


@contextmanager
def group(tp: int, pp: int) -> Iterator[tuple[Engine, tuple[int, ...]]]:
    """The embedded model in `tp` x `pp` processes of this machine: its engine, and their process ids."""
    launcher = LocalLauncher()
    engine = start_group(embedded(tp, pp), launcher, lambda *_: None).engine
    try:
        yield engine, launcher.process_ids
    finally:
        engine.close()


def run(engine: Engine, steps: int, streams: int = 3) -> list[EngineEvent]:
    """Some streams, so far that every rank is at work on them."""
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, seed=3)
    for number in range(streams):
        engine.add(EngineRequest(f"r{number}", tuple(range(5, 25 + number)), params))
    return [event for _ in range(steps) for event in engine.step()]


def loss(engine: Engine) -> tuple[RaylineError, float]:
    """Step until the group is lost: the error, and the seconds until it was raised."""
    began = time.monotonic()
    with pytest.raises(RaylineError) as caught:
        while time.monotonic() - began < 60.0:
            engine.step()
    return caught.value, time.monotonic() - began


def shared_memory() -> set[Path]:
    return {path for path in Path("/dev/shm").glob("rayline-*") if not path.name.startswith("rayline-core-")}


@dataclass(frozen=True)
class Traces:
    """Where groups of this process make their temporary files, and the shared memory that was there before."""

    folder: Path
    before: set[Path]

    def left(self) -> list[Path]:
        """Sockets and folders of groups, and shared memory. Other groups that start have some, but not for long."""
        found = shared_memory() - self.before
        with suppress(AssertionError):
            until(lambda: not found & shared_memory())
        return [*self.folder.iterdir(), *(found & shared_memory())]


@pytest.fixture
def traces(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Traces:
    """The path of a socket must be short."""
    path = tmp_path_factory.mktemp("g")
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return Traces(path, shared_memory())


def stopped(process_id: int) -> None:
    os.kill(process_id, signal.SIGSTOP)


def killed(process_id: int) -> None:
    os.kill(process_id, signal.SIGKILL)


@pytest.mark.parametrize(
    ("tp", "pp", "harm", "rank", "within_s", "said"),
    [
        (2, 1, killed, 0, 0.05, "rank"),
        (2, 1, stopped, 1, LEAST_LIMIT_S + 0.1, "rank 1 is stopped"),
        (1, 2, killed, 1, 0.05, "rank"),
        (1, 2, stopped, 0, LEAST_LIMIT_S + 0.1, "rank 0 is stopped"),
    ],
    ids=["tp2 killed", "tp2 stopped, its peer stuck in an exchange", "pp2 killed", "pp2 stopped, its peer in gloo"],
)
def test_a_lost_rank_is_noticed_in_time_and_its_group_ends_without_a_trace(
    tp: int,
    pp: int,
    harm: Callable[[int], None],
    rank: int,
    within_s: float,
    said: str,
    traces: Traces,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with group(tp, pp) as (engine, process_ids):
        run(engine, 30)
        harm(process_ids[rank])
        error, seconds = loss(engine)
        # A neighbour whose socket broke may tell of it before the leader sees the dead rank's own.
        assert isinstance(error, Unavailable | InternalError) and said in error.message
        assert seconds < within_s + SLACK_S
        assert harm is stopped or "no rank made progress" not in error.message, "nobody waited to notice"
        engine.fence()
        monkeypatch.setattr(local_launch, "STOP_TIMEOUT_S", 1000.0)  # nobody waits for ranks that were killed
        engine.close()
    assert not [pid for pid in process_ids if psutil.pid_exists(pid)], "processes, or their zombies"
    assert traces.left() == []
    print(f"noticed after {seconds:.3f} s: {error.message}")


def test_a_rank_that_fails_says_why_and_its_peers_end_too() -> None:
    with group(2, 1) as (engine, process_ids):
        run(engine, 5)
        engine.pipeline.submit(Plan(0, 10_000, slices=(Slice(987, 0, 1, 0, (0,), True),)))
        error, seconds = loss(engine)
        assert isinstance(error, InternalError) and "KeyError" in error.message
        assert seconds < 1.0 + SLACK_S and "no rank made progress" not in error.message
    assert not [pid for pid in process_ids if psutil.pid_exists(pid)]


# ---- the leader's own thread


class Sticking(TimedRanks):
    """Ranks in the leader's process, whose third result never comes until `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.fenced = 0

    def next_result(self) -> StepResult:
        if len(self.plans) == 3:
            self.go.wait(200.0)
        return super().next_result()

    def fence(self) -> None:
        self.fenced += 1


async def test_an_engine_that_stands_still_fails_its_streams_and_says_nothing_more() -> None:
    ranks = Sticking()
    async with leading(engine_over(ranks)) as leader:
        link = await GroupLink.open(leader.address, SECRET)
        began = time.monotonic()
        events = [event async for event in link.generate(request("r", tokens=20))]
        seconds = time.monotonic() - began
        end = events[-1]
        assert isinstance(end, Failed) and isinstance(end.error, Unavailable)
        assert "its engine stood still" in end.error.message
        assert len(events) == 3 and ranks.limit_s < seconds < ranks.limit_s + 1.5 + 2 * SLACK_S
        assert not leader.healthy and leader.lost.is_set() and ranks.fenced == 1
        ranks.go.set()
        await asyncio.sleep(0.2)
        assert not link.alive
        await link.close()
