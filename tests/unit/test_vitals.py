"""Processes at the other end of a socket: known, ended though they are stopped, told apart by whether they compute."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from waiting import until

from rayline.workers.channel import listen
from rayline.workers.peer import PeerProcess
from rayline.workers.ranks import TICK_S
from rayline.workers.thread_times import ThreadTime, ThreadTimes
from rayline.workers.vitals import JUDGE_S, WORKING_SHARE, Vitals

CONNECT = "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
BUSY = "exec('while True: pass')"
WAITING = "s.recv(1)"
NAPPING = "exec('while True: time.sleep(0.0001)')"  # as ranks do that wait for another one for long

Start = Callable[[str], PeerProcess]


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """start(code) -> the peer that a process running `code` is, seen over its connection."""
    with ExitStack() as stack:
        server, address = listen(f"unix:{tmp_path_factory.mktemp('v') / 's'}")
        stack.callback(server.close)

        def begin(code: str) -> PeerProcess:
            child = subprocess.Popen([sys.executable, "-c", CONNECT + code, address.removeprefix("unix:")])
            stack.callback(child.wait)
            stack.callback(child.kill)
            sock, _ = server.accept()
            stack.callback(sock.close)
            peer = PeerProcess.of(sock.fileno())
            assert peer is not None and peer.pid == child.pid
            stack.callback(peer.close)
            return peer

        yield begin


def is_over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ever_working(peers: Mapping[int, PeerProcess | None], stages: dict[int, int]) -> bool:
    """Within some looks: where other things run, a process may get no core for one."""
    return any(working(peers, stages) for _ in range(20))


def working(peers: Mapping[int, PeerProcess | None], stages: dict[int, int]) -> bool:
    vitals, began_s = Vitals(peers, stages), time.monotonic()
    vitals.begin(0.0)
    while (now_s := time.monotonic() - began_s) < JUDGE_S:
        vitals.working(now_s)
        time.sleep(TICK_S)
    return vitals.working(now_s)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_peer_is_ended_whether_it_runs_or_is_stopped(start: Start, is_stopped: bool) -> None:
    peer = start(WAITING)
    if is_stopped:
        psutil.Process(peer.pid).suspend()
        until(lambda: peer.state() == "stopped")
    peer.kill()
    until(lambda: is_over(peer.pid))
    peer.kill()  # again, which does nothing


def test_peers_elsewhere_and_this_process_itself_are_not_known(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    assert PeerProcess.of(ours.fileno()) is None, "a process must not end itself"
    server = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(server.getsockname())
    far, _ = server.accept()
    assert PeerProcess.of(far.fileno()) is None
    for sock in (ours, theirs, server, near, far):
        sock.close()


def test_a_peer_that_was_let_go_is_not_ended(start: Start) -> None:
    peer = start(WAITING)
    other = PeerProcess(peer.pid, -1)
    other.kill()
    time.sleep(0.05)
    assert not is_over(peer.pid)


def test_ranks_work_if_all_of_some_stage_compute(start: Start) -> None:
    busy = {rank: start(BUSY) for rank in (0, 1)}
    waiting = start(WAITING)
    assert ever_working({**busy}, {0: 0, 1: 0})
    assert ever_working({0: waiting, 1: busy[1]}, {0: 0, 1: 1}), "one stage waits for the other"
    assert not working({0: waiting, 1: busy[1]}, {0: 0, 1: 0}), "one rank holds up the other of its stage"
    assert not working({0: busy[0], 1: None}, {0: 0, 1: 0}), "nobody knows of the other"


class Uncrowded(PeerProcess):
    """As it would look on a machine where it gets a core whenever it wants one."""

    def threads(self) -> ThreadTimes:
        used = psutil.Process(self.pid).cpu_times()
        return {self.pid: ThreadTime(int((used.user + used.system) * 1e9), is_runnable=False)}


def test_a_rank_that_naps_between_looks_at_another_one_does_not_compute(start: Start) -> None:
    """On a crowded machine it may seem to: it waits for a core after each nap."""
    napping, busy = (Uncrowded(peer.pid, -1) for peer in (start(NAPPING), start(BUSY)))
    assert not all(working({0: napping}, {0: 0}) for _ in range(20))
    assert ever_working({0: busy}, {0: 0})


def test_ranks_work_though_others_take_nearly_all_of_their_core(start: Start) -> None:
    crowd, core = [start(BUSY) for _ in range(12)], min(os.sched_getaffinity(0))
    for peer in crowd:
        psutil.Process(peer.pid).cpu_affinity([core])
    used = [psutil.Process(peer.pid).cpu_times().user for peer in crowd[:2]]
    began = time.monotonic()
    assert ever_working({0: crowd[0], 1: crowd[1]}, {0: 0, 1: 0})
    shares = [
        (psutil.Process(peer.pid).cpu_times().user - before) / (time.monotonic() - began)
        for peer, before in zip(crowd, used, strict=False)
    ]
    assert min(shares) < WORKING_SHARE, "what they got alone would not tell"


def test_a_rank_that_waits_for_a_core_all_the_time_works(start: Start) -> None:
    """Linux counts a wait when it ends, so nothing that it counts tells of this one."""
    crowd, starved, core = [start(BUSY) for _ in range(4)], start(BUSY), min(os.sched_getaffinity(0))
    for peer in (*crowd, starved):
        psutil.Process(peer.pid).cpu_affinity([core])
    os.sched_setscheduler(starved.pid, os.SCHED_IDLE, os.sched_param(0))

    def counted_ns() -> int:
        return sum(thread.wanted_ns for thread in starved.threads().values())

    def is_seen_by_its_state_alone() -> bool:
        before = counted_ns()
        return working({0: starved}, {0: 0}) and counted_ns() == before

    assert any(is_seen_by_its_state_alone() for _ in range(20))
    assert starved.state() == "running"


def test_a_process_that_sleeps_is_told_from_one_that_has_ended(start: Start) -> None:
    peer = start(WAITING)
    until(lambda: peer.state() == "sleeping")
    peer.kill()
    until(lambda: peer.state() in ("ended", "zombie"))


def test_a_stopped_rank_does_not_work_however_crowded_its_core_is(start: Start) -> None:
    stopped, busy = start(BUSY), start(BUSY)
    psutil.Process(stopped.pid).suspend()
    until(lambda: Vitals({0: stopped}, {0: 0}).summary() == "rank 0 is stopped")
    assert not any(working({0: stopped, 1: busy}, {0: 0, 1: 0}) for _ in range(3))


def test_a_stopped_rank_is_named_as_such(start: Start) -> None:
    peer = start(BUSY)
    psutil.Process(peer.pid).suspend()
    until(lambda: peer.state() == "stopped")
    assert Vitals({0: None, 1: peer}, {0: 0, 1: 0}).summary() == "rank 0 is out of sight, rank 1 is stopped"


class Scripted(PeerProcess):
    """Of one thread, that nothing is counted for: ready to run, or not, at each look in turn."""

    def __init__(self, is_runnable: list[bool]):
        super().__init__(0, -1)
        self._looks = iter(is_runnable)

    def threads(self) -> ThreadTimes:
        return {1: ThreadTime(0, next(self._looks))}


def judged(*ranks: list[bool]) -> bool:
    """Of ranks of one stage, looked at eleven times in half a second."""
    vitals = Vitals({rank: Scripted(looks) for rank, looks in enumerate(ranks)}, dict.fromkeys(range(len(ranks)), 0))
    vitals.begin(0.0)
    return [vitals.working(look * JUDGE_S / 10) for look in range(1, 11)][-1]


def test_ranks_that_wait_for_a_core_in_turn_work() -> None:
    assert judged([False] + [True] * 10), "it was asleep when the watch began"
    assert judged([True] * 6 + [False] * 5, [False] * 5 + [True] * 6)
    assert not judged([True] * 6 + [False] * 5, [False] * 11), "nothing of the second"
    assert not judged([True, False] * 5 + [True]), "what is ready now and then may have slept between"
