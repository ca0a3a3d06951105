"""Start-up progress from the leaders, wherever they run, to the terminal of `rayline serve`.

One TCP connection a group, a JSON line an event. Best effort: a group starts as well when nobody listens.
"""

import hmac
import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rayline.protos.errors import RaylineError, error_of

CONNECT_TIMEOUT_S = 2.0
MAX_LINE = 4096  # characters of the secret or the group's name

OnProgress = Callable[[str, int, str, int, int], None]
"""(group, rank, phase, done, total)"""

OnFailure = Callable[[RaylineError], None]


class ProgressListener:
    """Calls back for every event of a group that knows the secret, from its own threads."""

    def __init__(self, host: str, secret: str, on_progress: OnProgress, on_failure: OnFailure):
        self._secret = secret
        self._on_progress = on_progress
        self._on_failure = on_failure
        self._server = socket.create_server((host, 0))
        self.address = f"{host}:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, name="progress", daemon=True).start()

    def close(self) -> None:
        """Take no more events. Closing alone would leave the thread in `accept` and the port open."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._read, args=(sock,), name="progress", daemon=True).start()

    def _read(self, sock: socket.socket) -> None:
        with sock, suppress(OSError, ValueError), sock.makefile("r", encoding="utf-8") as lines:
            sock.settimeout(CONNECT_TIMEOUT_S)
            secret, group = lines.readline(MAX_LINE).strip(), lines.readline(MAX_LINE).strip()
            if not hmac.compare_digest(secret.encode(), self._secret.encode()):
                return
            sock.settimeout(None)
            for line in lines:
                self._show(group, json.loads(line))

    def _show(self, group: str, event: dict[str, Any]) -> None:
        if "failed" in event:
            self._on_failure(error_of(event["failed"], event["message"]))
        else:
            self._on_progress(group, event["rank"], event["phase"], event["done"], event["total"])


class ProgressSender:
    """One group's end. Silent when the listener is gone."""

    def __init__(self, sock: socket.socket | None):
        self._socket = sock

    @classmethod
    def open(cls, address: str, secret: str, group: str) -> Self:
        host, _, port = address.rpartition(":")
        try:
            sock = socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S)
            sock.sendall(f"{secret}\n{group}\n".encode())
        except (OSError, ValueError):
            return cls(None)
        return cls(sock)

    def show(self, rank: int, phase: str, done: int, total: int) -> None:
        self._send({"rank": rank, "phase": phase, "done": done, "total": total})

    def fail(self, error: RaylineError) -> None:
        """Why the group cannot start."""
        self._send({"failed": error.kind, "message": error.message})

    def _send(self, event: dict[str, str | int]) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendall(json.dumps(event).encode() + b"\n")
        except OSError:
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
