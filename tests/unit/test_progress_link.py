"""Start-up progress over loopback: events of those who know the secret, and nothing that disturbs either end."""

import queue
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from rayline.deploy import progress_link
from rayline.deploy.progress_link import ProgressListener, ProgressSender
from rayline.protos.errors import ModelError, NotEnoughMemory, RaylineError

SECRET = "correct horse"
WAIT_S = 60.0
Event = tuple[str, int, str, int, int]


@dataclass
class Terminal:
    """A listener and what it was told."""

    events: queue.Queue[Event] = field(default_factory=queue.Queue)
    failures: queue.Queue[RaylineError] = field(default_factory=queue.Queue)

    def __post_init__(self) -> None:
        self.listener = ProgressListener("127.0.0.1", SECRET, lambda *event: self.events.put(event), self.failures.put)

    def connect(self) -> socket.socket:
        host, _, port = self.listener.address.rpartition(":")
        return socket.create_connection((host, int(port)), WAIT_S)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.listener.close()


def is_hung_up(sock: socket.socket) -> bool:
    sock.settimeout(WAIT_S)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_events_arrive_in_order_with_their_group(terminal: Terminal) -> None:
    with ProgressSender.open(terminal.listener.address, SECRET, "g0") as sender:
        for done in range(3):
            sender.show(1, "read weights", done, 2)
    assert [terminal.events.get(timeout=WAIT_S) for _ in range(3)] == [
        ("g0", 1, "read weights", done, 2) for done in range(3)
    ]


def test_groups_are_told_apart(terminal: Terminal) -> None:
    for group in ("g0", "g1"):
        with ProgressSender.open(terminal.listener.address, SECRET, group) as sender:
            sender.show(0, "warm up", 1, 1)
    groups = {terminal.events.get(timeout=WAIT_S)[0] for _ in range(2)}
    assert groups == {"g0", "g1"}


@pytest.mark.parametrize("error", [ModelError("model.safetensors is truncated"), NotEnoughMemory("too little: ünï")])
def test_a_failure_arrives_as_the_error_it_is(terminal: Terminal, error: RaylineError) -> None:
    with ProgressSender.open(terminal.listener.address, SECRET, "g0") as sender:
        sender.fail(error)
    told = terminal.failures.get(timeout=WAIT_S)
    assert type(told) is type(error) and told.message == error.message


@pytest.mark.parametrize("secret", ["", "wrong", SECRET + "x"])
def test_who_does_not_know_the_secret_is_not_heard(terminal: Terminal, secret: str) -> None:
    with terminal.connect() as stranger:
        stranger.sendall(f'{secret}\ng0\n{{"rank": 0, "phase": "x", "done": 1, "total": 1}}\n'.encode())
        assert is_hung_up(stranger)
    assert terminal.events.empty()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\xfd\n\n",
        SECRET.encode() + b"\ng0\nnot json\n",
        SECRET.encode() + b"\ng0\n{\n",
        b"x" * 100_000,
        b"",
    ],
)
def test_garbage_ends_its_connection_and_no_other(terminal: Terminal, garbage: bytes) -> None:
    with ProgressSender.open(terminal.listener.address, SECRET, "g0") as sender, terminal.connect() as stranger:
        with suppress(OSError):  # it may have been hung up on before all is sent
            stranger.sendall(garbage)
            stranger.shutdown(socket.SHUT_WR)
        assert is_hung_up(stranger)
        sender.show(0, "shard", 1, 2)
        assert terminal.events.get(timeout=WAIT_S) == ("g0", 0, "shard", 1, 2)


def test_a_stranger_that_says_nothing_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_link, "CONNECT_TIMEOUT_S", 0.05)
    terminal = Terminal()
    with terminal.connect() as stranger:
        assert is_hung_up(stranger)
    terminal.listener.close()


def test_a_group_may_be_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    for limit_s in (0.05, 0.5, 5.0):  # on a busy machine a group may be too late to say who it is
        monkeypatch.setattr(progress_link, "CONNECT_TIMEOUT_S", limit_s)
        with ProgressSender.open(terminal.listener.address, SECRET, "g0") as sender, suppress(queue.Empty):
            sender.show(0, "read weights", 1, 1)
            assert terminal.events.get(timeout=10 * limit_s)[2] == "read weights"
            time.sleep(3 * limit_s)
            sender.show(0, "warm up", 1, 1)
            assert terminal.events.get(timeout=10 * limit_s)[2] == "warm up"
            break
    else:
        pytest.fail("it was hung up on")
    terminal.listener.close()


def test_a_closed_listener_answers_nobody() -> None:
    terminal = Terminal()
    terminal.listener.close()
    with pytest.raises(OSError):
        terminal.connect()


@pytest.mark.parametrize("address", ["", "nonsense", "127.0.0.1:", "127.0.0.1:1", "127.0.0.1:http"])
def test_a_group_starts_as_well_when_nobody_listens(address: str) -> None:
    with ProgressSender.open(address, SECRET, "g0") as sender:
        sender.show(0, "read weights", 1, 2)
        sender.fail(ModelError("m"))


def test_a_listener_that_goes_away_is_not_missed() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with ProgressSender.open(f"127.0.0.1:{server.getsockname()[1]}", SECRET, "g0") as sender:
        sock, _ = server.accept()
        sock.close()
        server.close()
        for done in range(50):
            sender.show(0, "read weights", done, 50)
