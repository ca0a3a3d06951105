"""The router's side of one `grammar_child`: start it, ask it, and start another when a grammar has killed it."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

from rayline.protos.errors import InternalError, InvalidRequest

START_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 30.0  # of a machine so busy that the child's own limit of computing time is not reached
STOP_TIMEOUT_S = 2.0  # it ends when there are no more orders
READ_BYTES = 65536


class GrammarSandbox:
    """One child, started with the first question. One caller at a time."""

    def __init__(self, special_ids: Mapping[str, int], vocab_size: int):
        self._setting = {"special_ids": dict(special_ids), "vocab_size": vocab_size}
        self._child: subprocess.Popen[bytes] | None = None

    def text(self, kind: str, text: str, field: str) -> str:
        """The text for the workers of a structured output, or of a finished grammar (kind "text").

        Raises InvalidRequest for all that is wrong with it, InternalError when no child can be started.
        """
        child = self._running()
        reply = _asked(child, {"kind": kind, "text": text, "field": field}, ANSWER_TIMEOUT_S)
        if reply is None:
            raise InvalidRequest(f"{field} cannot be followed: {self._ended()}", field=field)
        if "error" in reply:
            raise InvalidRequest(reply["error"], field=field)
        return reply["grammar"]

    def close(self) -> None:
        if self._child is not None:
            self._ended()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            command = [sys.executable, "-m", "rayline.router.grammars.child"]
            try:
                self._child = subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
                )
            except OSError as error:
                raise InternalError(f"the process that checks grammars does not start: {error}") from None
            if _asked(self._child, self._setting, START_TIMEOUT_S) is None:
                raise InternalError(f"the process that checks grammars does not start: {self._ended()}")
        return self._child

    def _ended(self) -> str:
        """End the child, if it has not ended by itself; returns why it did."""
        assert self._child is not None
        child, self._child = self._child, None
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # an order that was not read is still in its buffer
                    pipe.close()
        try:
            code = child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            code = -signal.SIGPROF
        if code == -signal.SIGPROF:
            return "it takes too long to compile"
        if code == -signal.SIGSEGV:
            return "it is too deep or too large to compile"
        return "it takes too much memory to compile"


def _asked(child: subprocess.Popen[bytes], order: Mapping[str, object], timeout_s: float) -> dict[str, str] | None:
    """One line out, one line in; None when the child has died or says nothing in time."""
    assert child.stdin is not None and child.stdout is not None
    deadline_s = time.monotonic() + timeout_s
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        try:
            child.stdin.write(json.dumps(order).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            return None
        while not received.endswith(b"\n"):
            if not selector.select(max(0.0, deadline_s - time.monotonic())):
                return None
            piece = os.read(child.stdout.fileno(), READ_BYTES)
            if not piece:
                return None
            received += piece
    reply: dict[str, str] = json.loads(received)
    return reply
