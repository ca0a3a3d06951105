"""Length-prefixed frames on a stream socket between a leader and one worker.

    | length, uint32 little-endian | protobuf message |

End-of-file means the peer is gone: nothing is retried here. Unix sockets on a node, TCP across nodes.
"""

import select
import socket
import struct
from contextlib import suppress
from pathlib import Path

from rayline.protos.errors import Unavailable
from rayline.protos.internal_pb2 import LeaderFrame, WorkerFrame

MAX_FRAME_BYTES = 256 * 2**20
_LENGTH = struct.Struct("<I")


class Channel:
    """One connected socket. `send` and `receive` move whole frames and block."""

    def __init__(self, sock: socket.socket, peer: str):
        self._socket = sock
        self.peer = peer
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: LeaderFrame | WorkerFrame) -> None:
        """Raises Unavailable when the peer is gone."""
        body = frame.SerializeToString()
        try:
            self._socket.sendall(_LENGTH.pack(len(body)) + body)
        except OSError as error:
            raise Unavailable(f"{self.peer} is gone: {error}") from None

    def receive_worker_frame(self) -> WorkerFrame:
        return WorkerFrame.FromString(self._receive())

    def receive_leader_frame(self) -> LeaderFrame:
        return LeaderFrame.FromString(self._receive())

    def has_frame(self, wait_s: float = 0.0) -> bool:
        """Whether a frame, or the peer's end, has arrived already, or comes within `wait_s`."""
        return bool(select.select([self._socket], [], [], wait_s)[0])

    def limit_wait(self, seconds: float | None) -> None:
        """Let later calls fail after `seconds` instead of waiting for ever."""
        self._socket.settimeout(seconds)

    def hang_up(self) -> None:
        """End the connection for both sides, whoever is waiting on it. From any thread; `close` is still to come."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _receive(self) -> bytes:
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            raise Unavailable(f"{self.peer} sent a frame of {length} bytes: at most {MAX_FRAME_BYTES} are taken")
        return self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            try:
                part = self._socket.recv(min(size - len(parts), 2**20))
            except OSError as error:
                raise Unavailable(f"{self.peer} is gone: {error}") from None
            if not part:
                raise Unavailable(f"{self.peer} closed its connection")
            parts += part
        return bytes(parts)


def listen(address: str) -> tuple[socket.socket, str]:
    """Listen on "unix:PATH" or "tcp:HOST:0"; returns the socket and the address to connect to."""
    kind, _, where = address.partition(":")
    if kind == "unix":
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(where)
        Path(where).chmod(0o600)
    else:
        host, _, port = where.rpartition(":")
        server = socket.create_server((host, int(port)))
        address = f"tcp:{host}:{server.getsockname()[1]}"
    server.listen()
    return server, address


def connect(address: str, timeout_s: float) -> Channel:
    """Connect to what `listen` returned. Raises Unavailable."""
    kind, _, where = address.partition(":")
    try:
        if kind == "unix":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout_s)
            sock.connect(where)
        else:
            host, _, port = where.rpartition(":")
            sock = socket.create_connection((host, int(port)), timeout_s)
    except OSError as error:
        raise Unavailable(f"the leader at {address} does not answer: {error}") from None
    sock.settimeout(None)
    return Channel(sock, "the leader")
