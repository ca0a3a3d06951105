"""The ranks of a group as the leader drives them: one socket each, plans out to all, results in from one.

A rank that is lost, or that makes no progress within the deadline of a step, raises Unavailable wherever it is noticed.
"""

import hmac
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Protocol

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but not in its __all__

from rayline.cluster.awake import AwakeTime
from rayline.cluster.kv_memory import KvPlan
from rayline.protos import internal_pb2 as pb
from rayline.protos.errors import Unavailable, error_of
from rayline.protos.plan import Plan, StepResult
from rayline.protos.plan_wire import plan_to_pb, result_of
from rayline.workers.channel import Channel
from rayline.workers.deadline import InFlight, StepTimes
from rayline.workers.peer import PeerProcess
from rayline.workers.pipeline import RankStats
from rayline.workers.rank_wire import loaded_of, spec_to_pb, stats_of
from rayline.workers.spec import Loaded, RankSpec
from rayline.workers.vitals import Vitals

HELLO_TIMEOUT_S = 5.0
FRAME_LIMIT_S = 120.0  # for one frame to pass, once begun; ranks read between steps only
START_LIMIT_S = 600.0  # a rank that loads tells of it far more often; compiling is silent
TICK_S = 0.05
LONGEST_TICK_S = 0.2  # of which the rest is not held against the ranks
WATCH_S = 1.0  # before the limit: what ranks do is of interest to nobody earlier
WORKING_LIMITS = 4.0  # how many times its limit a step gets while the ranks are seen to compute
LOOKAHEAD = 1  # plans made ahead for each one that runs, so that no rank waits for the leader

OnRankProgress = Callable[[int, str, int, int], None]
"""(rank, phase, done, total)"""


class Processes(Protocol):
    """Whoever started the ranks' processes."""

    def close(self) -> None:
        """Wait for them to end and clear up. Ranks that were told to stop end by themselves."""
        ...

    def kill(self) -> None:
        """End them by force, without waiting. May be called from any thread, at any time, more than once."""
        ...


class Ranks:
    """The pipeline of a group of several processes. One thread drives it; `fence` alone may come from others."""

    def __init__(
        self,
        channels: Mapping[int, Channel],
        specs: Mapping[int, RankSpec],
        processes: Processes,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._channels = dict(channels)
        self._specs = dict(specs)
        self._processes = processes
        self._clock = clock
        any_spec = next(iter(self._specs.values()))
        self._epoch = any_spec.epoch
        self._in_flight = InFlight(StepTimes(any_spec.parallel.pp_size))
        self._fenced = False
        peers = {rank: PeerProcess.of(channel.fileno()) for rank, channel in self._channels.items()}
        self._vitals = Vitals(peers, {rank: spec.parallel.stage for rank, spec in self._specs.items()})
        self._reporter = next(rank for rank, spec in self._specs.items() if spec.parallel.reports)
        self._selector = selectors.DefaultSelector()
        for rank, channel in self._channels.items():
            self._selector.register(channel, selectors.EVENT_READ, rank)

    # ---- start-up

    def load(self, on_progress: OnRankProgress) -> dict[int, Loaded]:
        """Have every rank read its weights. Raises what the first failing rank raised."""
        for rank, channel in self._channels.items():
            channel.send(pb.LeaderFrame(load=spec_to_pb(self._specs[rank])))
        loaded: dict[int, Loaded] = {}
        while len(loaded) < len(self._channels):
            rank, frame = self._next_frame(START_LIMIT_S)
            if frame.WhichOneof("frame") == "progress":
                on_progress(rank, frame.progress.phase, frame.progress.done, frame.progress.total)
            else:
                loaded[rank] = loaded_of(frame.loaded)
        return loaded

    def allocate(self, kv: KvPlan, on_progress: OnRankProgress) -> None:
        """Have every rank make room for the KV cache and compile what runs over it."""
        for channel in self._channels.values():
            channel.send(pb.LeaderFrame(allocate=pb.Allocate(blocks=kv.blocks)))
        ready: set[int] = set()
        while len(ready) < len(self._channels):
            rank, frame = self._next_frame(START_LIMIT_S)
            if frame.WhichOneof("frame") == "progress":
                on_progress(rank, frame.progress.phase, frame.progress.done, frame.progress.total)
            else:
                ready.add(rank)

    # ---- steps

    @property
    def window(self) -> int:
        return self._specs[self._reporter].parallel.pp_size * (1 + LOOKAHEAD)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def limit_s(self) -> float:
        """With what ranks that are seen to compute are granted on top."""
        return self._in_flight.limit_s * WORKING_LIMITS

    def submit(self, plan: Plan) -> None:
        frame = pb.LeaderFrame(plan=plan_to_pb(plan))
        for channel in self._channels.values():
            try:
                channel.send(frame)
            except Unavailable:
                self._raise_reason()
                raise
        self._in_flight.submitted(plan, self._clock())

    def next_result(self) -> StepResult:
        while True:
            _, frame = self._next_frame()
            if frame.WhichOneof("frame") == "result" and frame.result.epoch == self._epoch:
                self._in_flight.answered(self._clock(), frame.result.busy_s)
                return result_of(frame.result)

    def check(self) -> None:
        for key, _ in self._selector.select(timeout=0):
            self._receive(key.data)  # between steps nothing but bad news can come

    def rank_stats(self) -> tuple[RankStats, ...]:
        for channel in self._channels.values():
            channel.send(pb.LeaderFrame(stats=pb.StatsRequest()))
        stats: dict[int, RankStats] = {}
        while len(stats) < len(self._channels):
            rank, frame = self._next_frame()
            stats[rank] = stats_of(frame.stats)
        return tuple(stats[rank] for rank in sorted(stats))

    # ---- the end

    def fence(self) -> None:
        self._fenced = True
        self._vitals.kill()
        for channel in self._channels.values():
            channel.hang_up()
        self._processes.kill()

    def close(self) -> None:
        for channel in self._channels.values():
            try:
                if not self._fenced:
                    channel.send(pb.LeaderFrame(stop=pb.Stop()))
            except Unavailable:
                continue
            finally:
                channel.close()
        self._selector.close()
        self._vitals.close()
        self._processes.close()

    # ---- frames

    def _next_frame(self, limit_s: float | None = None) -> tuple[int, pb.WorkerFrame]:
        """The next frame of any rank. A lost rank is noticed at once, whichever rank was waited for.

        Raises Unavailable when none comes within `limit_s`; without one, within the oldest plan's own limit.
        """
        ready = self._selector.select(TICK_S) or self._wait(limit_s)
        rank: int = ready[0][0].data
        return rank, self._receive(rank)

    def _wait(self, limit_s: float | None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait on, with an eye on the clock and on what the ranks' processes do."""
        waited, is_watching = AwakeTime(self._clock, LONGEST_TICK_S), False
        while not (ready := self._selector.select(TICK_S)):
            awake_s = waited.look()
            limit = self._in_flight.limit_s if limit_s is None else limit_s
            if not is_watching:
                if is_watching := awake_s > limit - TICK_S - WATCH_S:
                    self._vitals.begin(awake_s)
                continue
            is_working = self._vitals.working(awake_s) and awake_s < limit * WORKING_LIMITS
            if awake_s > limit - TICK_S and not is_working:
                raise Unavailable(f"no rank made progress for {awake_s:.1f} s: {self._vitals.summary()}")
        return ready

    def _raise_reason(self) -> None:
        """A rank that fails says why before it hangs up: raise that, if it is there."""
        for rank, channel in self._channels.items():
            with suppress(Unavailable):
                while channel.has_frame():
                    self._receive(rank)

    def _receive(self, rank: int) -> pb.WorkerFrame:
        frame = self._channels[rank].receive_worker_frame()
        if frame.WhichOneof("frame") == "failed":
            raise error_of(frame.failed.kind, frame.failed.message)
        return frame


def open_store(host: str) -> TCPStore:
    """torch.distributed's meeting point, held by the leader on a port the system chose."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False)


def accept_ranks(
    servers: Iterable[socket.socket], expected: int, secret: str, deadline_s: float, alive: Callable[[], None]
) -> dict[int, Channel]:
    """Wait until `expected` ranks have said hello with the right secret; strangers are dropped.

    `alive` raises when a rank's process ended early. Raises Unavailable after `deadline_s`.
    """
    channels: dict[int, Channel] = {}
    end = time.monotonic() + deadline_s
    try:
        with selectors.DefaultSelector() as selector:
            for server in servers:
                selector.register(server, selectors.EVENT_READ, server)
            while len(channels) < expected:
                alive()
                if time.monotonic() > end:
                    raise Unavailable(f"{len(channels)} of {expected} ranks came within {deadline_s:.0f} s")
                for key, _ in selector.select(timeout=0.2):
                    _let_in(_greet(key.data, secret), expected, channels)
    except BaseException:
        for channel in channels.values():
            channel.close()
        raise
    return channels


def _let_in(hello: tuple[int, Channel] | None, expected: int, channels: dict[int, Channel]) -> None:
    if hello is None:
        return
    rank, channel = hello
    if rank < expected and rank not in channels:
        channels[rank] = channel
    else:
        channel.close()


def _greet(server: socket.socket, secret: str) -> tuple[int, Channel] | None:
    sock, _ = server.accept()
    channel = Channel(sock, "a rank that is connecting")
    channel.limit_wait(HELLO_TIMEOUT_S)
    try:
        hello = channel.receive_worker_frame().hello
    except Exception:
        channel.close()
        return None
    if not hmac.compare_digest(hello.secret.encode(), secret.encode()):
        channel.close()
        return None
    channel.limit_wait(FRAME_LIMIT_S)
    channel.peer = f"rank {hello.rank}"
    return hello.rank, channel
