"""Frames over real sockets: whole or not at all, whatever the pieces, and a peer that is gone is noticed."""

import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.protos import internal_pb2 as pb
from rayline.protos.errors import Unavailable
from rayline.workers.channel import MAX_FRAME_BYTES, Channel, connect, listen


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    leader, worker = Channel(one, "rank 0"), Channel(other, "the leader")
    yield leader, worker
    leader.close()
    worker.close()


def hello(secret: str = "s", rank: int = 0) -> pb.WorkerFrame:
    return pb.WorkerFrame(hello=pb.Hello(secret=secret, rank=rank))


def test_frames_arrive_whole_and_in_order(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    for rank in range(20):
        worker.send(hello(rank=rank))
    assert [leader.receive_worker_frame().hello.rank for _ in range(20)] == list(range(20))


def test_both_directions_have_their_own_frames(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    leader.send(pb.LeaderFrame(allocate=pb.Allocate(blocks=5)))
    worker.send(hello(rank=3))
    assert worker.receive_leader_frame().allocate.blocks == 5
    assert leader.receive_worker_frame().hello.rank == 3


def test_an_empty_frame_is_a_frame(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    leader.send(pb.LeaderFrame())
    assert worker.receive_leader_frame().WhichOneof("frame") is None


def test_a_frame_larger_than_the_sockets_buffers_arrives(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    secret = "x" * 5_000_000
    sender = threading.Thread(target=worker.send, args=(hello(secret),))
    sender.start()
    assert leader.receive_worker_frame().hello.secret == secret
    sender.join()


@settings(max_examples=30)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.data())
def test_it_does_not_matter_where_the_stream_is_cut(secrets: list[str], data: st.DataObject) -> None:
    one, other = socket.socketpair()
    bodies = [hello(secret).SerializeToString() for secret in secrets]
    stream = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))

    def send() -> None:
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            other.sendall(stream[start:end])

    sender = threading.Thread(target=send)
    sender.start()
    channel = Channel(one, "rank 0")
    assert [channel.receive_worker_frame().hello.secret for _ in secrets] == secrets
    sender.join()
    channel.close()
    other.close()


def test_end_of_file_means_the_peer_is_gone(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    worker.close()
    with pytest.raises(Unavailable, match="rank 0 closed its connection"):
        leader.receive_worker_frame()


def test_end_of_file_inside_a_frame_means_the_same() -> None:
    one, other = socket.socketpair()
    channel = Channel(one, "rank 0")
    other.sendall(struct.pack("<I", 100) + b"half of it")
    other.close()
    with pytest.raises(Unavailable, match="rank 0 closed its connection"):
        channel.receive_worker_frame()
    channel.close()


def test_frames_sent_before_the_end_are_still_read(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    worker.send(hello(rank=9))
    worker.close()
    assert leader.receive_worker_frame().hello.rank == 9
    with pytest.raises(Unavailable):
        leader.receive_worker_frame()


def test_sending_to_a_peer_that_is_gone_says_so(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    worker.close()
    with pytest.raises(Unavailable, match="rank 0 is gone"):
        for _ in range(2):
            leader.send(pb.LeaderFrame(stop=pb.Stop()))


def test_a_frame_that_announces_too_much_is_not_read() -> None:
    one, other = socket.socketpair()
    channel = Channel(one, "rank 0")
    other.sendall(struct.pack("<I", MAX_FRAME_BYTES + 1))
    with pytest.raises(Unavailable, match=f"a frame of {MAX_FRAME_BYTES + 1} bytes: at most {MAX_FRAME_BYTES}"):
        channel.receive_worker_frame()
    channel.close()
    other.close()


def test_a_limited_wait_ends(pair: tuple[Channel, Channel]) -> None:
    leader, worker = pair
    leader.limit_wait(0.05)
    with pytest.raises(Unavailable, match="timed out"):
        leader.receive_worker_frame()
    leader.limit_wait(None)
    worker.send(hello(rank=4))
    assert leader.receive_worker_frame().hello.rank == 4


def test_unix_sockets_connect_and_only_their_owner_may(tmp_path: Path) -> None:
    path = tmp_path / "leader"
    server, address = listen(f"unix:{path}")
    assert address == f"unix:{path}"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    _say_hello(server, address)


def test_tcp_sockets_connect_on_a_port_the_system_chose() -> None:
    server, address = listen("tcp:127.0.0.1:0")
    assert address.startswith("tcp:127.0.0.1:") and not address.endswith(":0")
    _say_hello(server, address)


def test_tcp_frames_are_sent_without_waiting_for_more() -> None:
    server, address = listen("tcp:127.0.0.1:0")
    channel = connect(address, 5.0)
    sock = socket.socket(fileno=os.dup(channel.fileno()))
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    for each in (sock, channel, server):
        each.close()


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_leader_that_does_not_listen_is_unavailable(kind: str, tmp_path: Path) -> None:
    server, address = listen(f"unix:{tmp_path / 'gone'}" if kind == "unix" else "tcp:127.0.0.1:0")
    server.close()
    with pytest.raises(Unavailable, match=f"the leader at {address} does not answer"):
        connect(address, 1.0)


def _say_hello(server: socket.socket, address: str) -> None:
    worker = connect(address, 5.0)
    sock, _ = server.accept()
    leader = Channel(sock, "rank 0")
    worker.send(hello("secret", 2))
    assert leader.receive_worker_frame().hello == pb.Hello(secret="secret", rank=2)
    for each in (worker, leader, server):
        each.close()
