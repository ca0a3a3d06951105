"""The leader's side of the ranks' sockets: who is let in, the dialogue at start-up, steps, and a rank that is lost."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from rayline.cluster.kv_memory import KvPlan
from rayline.cluster.parallel import Parallel, ranks
from rayline.protos import internal_pb2 as pb
from rayline.protos.errors import ModelError, NotEnoughMemory, RaylineError, Unavailable
from rayline.protos.plan import Plan, Sampled, Slice, StepResult
from rayline.protos.plan_wire import plan_of, result_to_pb
from rayline.workers.channel import Channel, connect, listen
from rayline.workers.pipeline import RankStats
from rayline.workers.rank_wire import loaded_to_pb, spec_of, stats_to_pb
from rayline.workers.ranks import Ranks, accept_ranks
from rayline.workers.spec import Loaded, RankSpec

SECRET = "correct horse"


@pytest.fixture
def door() -> Iterator[tuple[socket.socket, str]]:
    server, address = listen("tcp:127.0.0.1:0")
    yield server, address
    server.close()


def healthy() -> None:
    """Every process lives."""


def greet(address: str, rank: int, secret: str = SECRET) -> Channel:
    channel = connect(address, 60.0)
    channel.send(pb.WorkerFrame(hello=pb.Hello(secret=secret, rank=rank)))
    return channel


def is_dropped(channel: Channel) -> bool:
    channel.limit_wait(60.0)
    try:
        channel.receive_leader_frame()
    except Unavailable as error:
        return "timed out" not in error.message
    return False


def close(*channels: Channel) -> None:
    for channel in channels:
        channel.close()


def test_ranks_are_let_in_by_their_number_in_any_order(door: tuple[socket.socket, str]) -> None:
    server, address = door
    callers = [greet(address, rank) for rank in (2, 0, 1)]
    channels = accept_ranks([server], 3, SECRET, 60.0, healthy)
    assert sorted(channels) == [0, 1, 2]
    assert channels[2].peer == "rank 2"
    channels[2].send(pb.LeaderFrame(stop=pb.Stop()))
    assert callers[0].receive_leader_frame().HasField("stop")
    close(*callers, *channels.values())


def test_ranks_come_in_by_any_of_several_doors(door: tuple[socket.socket, str], tmp_path: Path) -> None:
    server, address = door
    other, other_address = listen(f"unix:{tmp_path / 'leader'}")
    callers = [greet(address, 0), greet(other_address, 1)]
    channels = accept_ranks([server, other], 2, SECRET, 60.0, healthy)
    assert sorted(channels) == [0, 1]
    close(*callers, *channels.values())
    other.close()


@pytest.mark.parametrize("secret", ["", "wrong", SECRET + "x", "ünïcode"])
def test_a_caller_with_a_wrong_secret_is_dropped(door: tuple[socket.socket, str], secret: str) -> None:
    server, address = door
    stranger, rank = greet(address, 0, secret), greet(address, 0)
    channels = accept_ranks([server], 1, SECRET, 60.0, healthy)
    assert is_dropped(stranger)
    channels[0].send(pb.LeaderFrame(stop=pb.Stop()))
    assert rank.receive_leader_frame().HasField("stop")
    close(stranger, rank, *channels.values())


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x04\x00\x00\x00\xff\xff\xff\xff", b"\xff" * 64, b"\x00" * 4, b""]
)
def test_a_stranger_that_sends_garbage_is_dropped(door: tuple[socket.socket, str], garbage: bytes) -> None:
    server, address = door
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    with socket.create_connection((host, int(port)), 60.0) as stranger:
        stranger.sendall(garbage)
        stranger.shutdown(socket.SHUT_WR)
        rank = greet(address, 0)
        channels = accept_ranks([server], 1, SECRET, 60.0, healthy)
        assert list(channels) == [0]
        with suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    close(rank, *channels.values())


def test_a_frame_that_is_no_hello_is_dropped(door: tuple[socket.socket, str]) -> None:
    server, address = door
    stranger = connect(address, 5.0)
    stranger.send(pb.WorkerFrame(ready=pb.Ready()))
    rank = greet(address, 0)
    channels = accept_ranks([server], 1, SECRET, 60.0, healthy)
    assert is_dropped(stranger)
    close(stranger, rank, *channels.values())


def test_of_two_ranks_with_one_number_the_first_stays(door: tuple[socket.socket, str]) -> None:
    server, address = door
    first, second, other = greet(address, 0), greet(address, 0), greet(address, 1)
    channels = accept_ranks([server], 2, SECRET, 60.0, healthy)
    assert is_dropped(second)
    channels[0].send(pb.LeaderFrame(stop=pb.Stop()))
    assert first.receive_leader_frame().HasField("stop")
    close(first, second, other, *channels.values())


def test_a_rank_the_group_does_not_have_is_dropped(door: tuple[socket.socket, str]) -> None:
    server, address = door
    stranger, rank = greet(address, 1), greet(address, 0)
    channels = accept_ranks([server], 1, SECRET, 60.0, healthy)
    assert is_dropped(stranger)
    close(stranger, rank, *channels.values())


def test_a_process_that_ends_early_is_reported_at_once(door: tuple[socket.socket, str]) -> None:
    server, address = door
    came = greet(address, 0)
    checks = iter([None, None, Unavailable("rank 1 ended with exit code 1")])

    def alive() -> None:
        if (error := next(checks)) is not None:
            raise error

    began = time.monotonic()
    with pytest.raises(Unavailable, match="rank 1 ended"):
        accept_ranks([server], 2, SECRET, 60.0, alive)
    assert time.monotonic() - began < 30.0
    assert is_dropped(came), "those that had come are let go"
    came.close()


def test_ranks_that_do_not_come_are_given_up_with_their_number(door: tuple[socket.socket, str]) -> None:
    server, address = door
    came = greet(address, 1)
    with pytest.raises(Unavailable, match="1 of 3 ranks came within 1 s"):
        accept_ranks([server], 3, SECRET, 1.0, healthy)
    assert is_dropped(came)
    came.close()


# ---- the dialogue of ranks that were let in

SPEC = RankSpec(Path("/model"), "float32", "cpu", Parallel(), 1, 16, 5)
Role = Callable[[Channel, RankSpec], None]


class Group:
    """Ranks played by threads, each following `role` on its end of a socket pair."""

    def __init__(self, role: Role, tp: int = 2, pp: int = 1):
        self.closed = self.killed = 0
        specs = {place.rank: replace(SPEC, parallel=place) for place in ranks(tp, pp)}
        ends = {rank: socket.socketpair() for rank in specs}
        self.threads = [
            threading.Thread(target=self._play, args=(role, Channel(ends[rank][1], "the leader"), spec), daemon=True)
            for rank, spec in specs.items()
        ]
        self.ranks = Ranks({rank: Channel(end[0], f"rank {rank}") for rank, end in ends.items()}, specs, self)
        for thread in self.threads:
            thread.start()

    def close(self) -> None:
        self.closed += 1

    def kill(self) -> None:
        self.killed += 1

    def _play(self, role: Role, channel: Channel, spec: RankSpec) -> None:
        with suppress(Unavailable):
            role(channel, spec)
        channel.close()

    def end(self) -> None:
        self.ranks.close()
        for thread in self.threads:
            thread.join(60.0)
            assert not thread.is_alive()


def obedient(channel: Channel, spec: RankSpec) -> None:
    """Loads, makes room, answers every plan and every question until told to stop."""
    assert spec_of(channel.receive_leader_frame().load) == spec
    channel.send(pb.WorkerFrame(progress=pb.Progress(phase="read weights", done=1, total=2)))
    rank = spec.parallel.rank
    channel.send(pb.WorkerFrame(loaded=loaded_to_pb(Loaded("host", 100 + rank, 50, 1000, 10))))
    assert channel.receive_leader_frame().allocate.blocks == 9
    channel.send(pb.WorkerFrame(ready=pb.Ready()))
    while (frame := channel.receive_leader_frame()).WhichOneof("frame") != "stop":
        if frame.HasField("stats"):
            channel.send(pb.WorkerFrame(stats=stats_to_pb(RankStats(rank, spec.parallel.stage, 0, 0, 0, 0, 0, 0, 0))))
        elif spec.parallel.reports:
            plan = plan_of(frame.plan)
            sampled = tuple(Sampled(item.sequence, 40 + item.start) for item in plan.slices)
            channel.send(pb.WorkerFrame(result=result_to_pb(StepResult(plan.epoch, plan.step, sampled))))


def failing(error: RaylineError) -> Role:
    def role(channel: Channel, spec: RankSpec) -> None:
        channel.receive_leader_frame()
        if spec.parallel.rank == 1:
            channel.send(pb.WorkerFrame(failed=pb.RankFailed(kind=error.kind, message=error.message)))
        else:
            channel.receive_leader_frame()

    return role


def dying_at_step(step: int, rank: int) -> Role:
    def role(channel: Channel, spec: RankSpec) -> None:
        if spec.parallel.rank != rank:
            return obedient(channel, spec)
        channel.receive_leader_frame()
        channel.send(pb.WorkerFrame(loaded=pb.Loaded()))
        channel.receive_leader_frame()
        channel.send(pb.WorkerFrame(ready=pb.Ready()))
        for _ in range(step):
            channel.receive_leader_frame()
        return None

    return role


def start(group: Group) -> dict[int, Loaded]:
    loaded = group.ranks.load(lambda *_: None)
    group.ranks.allocate(KvPlan(9, 144, 0, 144), lambda *_: None)
    return loaded


def plan(step: int) -> Plan:
    return Plan(5, step, slices=(Slice(3, step, 1, 0, (), True),))


def test_every_rank_gets_its_orders_and_says_what_it_loaded() -> None:
    group = Group(obedient, tp=2, pp=2)
    seen: set[tuple[int, str, int, int]] = set()
    loaded = group.ranks.load(lambda *event: seen.add(event))
    assert {rank: each.weight_bytes for rank, each in loaded.items()} == {0: 100, 1: 101, 2: 102, 3: 103}
    assert seen == {(rank, "read weights", 1, 2) for rank in range(4)}
    group.ranks.allocate(KvPlan(9, 144, 0, 144), lambda *_: None)
    group.end()


def test_results_come_in_the_order_of_the_plans_and_are_counted() -> None:
    group = Group(obedient, tp=1, pp=2)
    start(group)
    for step in range(3):
        group.ranks.submit(plan(step))
    assert group.ranks.in_flight == 3
    answers = [group.ranks.next_result() for _ in range(3)]
    assert [answer.step for answer in answers] == [0, 1, 2]
    assert [answer.sampled[0].token_id for answer in answers] == [40, 41, 42]
    assert group.ranks.in_flight == 0
    group.end()


def test_a_plan_ahead_of_each_stage_is_kept_in_flight() -> None:
    for stages in (1, 2, 3):
        group = Group(obedient, tp=1, pp=stages)
        assert group.ranks.window == 2 * stages
        start(group)
        group.end()


def test_every_rank_tells_its_statistics() -> None:
    group = Group(obedient, tp=2, pp=2)
    start(group)
    stats = group.ranks.rank_stats()
    assert [(each.rank, each.stage) for each in stats] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    group.end()


@pytest.mark.parametrize("error", [ModelError("model.safetensors is truncated"), NotEnoughMemory("too little")])
def test_what_one_rank_fails_with_while_loading_is_raised_here(error: RaylineError) -> None:
    group = Group(failing(error))
    with pytest.raises(type(error), match=error.message):
        group.ranks.load(lambda *_: None)
    group.end()


@pytest.mark.parametrize("rank", [0, 1])
def test_any_rank_that_dies_is_noticed_while_a_result_is_awaited(rank: int) -> None:
    group = Group(dying_at_step(1, rank), tp=2)
    start(group)
    with pytest.raises(Unavailable, match=f"rank {rank} (closed its connection|is gone)"):
        for step in range(100_000):
            group.ranks.submit(plan(step))
            group.ranks.next_result()
    group.end()


def test_a_rank_that_dies_between_steps_is_noticed_by_a_check() -> None:
    die = threading.Event()

    def role(channel: Channel, spec: RankSpec) -> None:
        if spec.parallel.rank == 0:
            return obedient(channel, spec)
        dying_at_step(0, 1)(channel, spec)
        assert die.wait(60.0)
        return None

    group = Group(role, tp=2)
    start(group)
    group.ranks.check()
    die.set()
    group.threads[1].join(60.0)
    with pytest.raises(Unavailable, match="rank 1 closed its connection"):
        group.ranks.check()
    group.end()


def test_a_check_of_healthy_ranks_does_not_wait() -> None:
    group = Group(obedient)
    start(group)
    group.ranks.check()
    group.end()


def test_closing_ends_every_rank_and_then_the_launcher() -> None:
    group = Group(obedient, tp=2)
    start(group)
    group.end()
    assert group.closed == 1
