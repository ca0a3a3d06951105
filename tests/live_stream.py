"""Streams of a running server, read by threads, and what is waited for meanwhile."""

import threading
import time
from collections.abc import Callable

import grpc

from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc

MODEL = "rayline-python"
PROMPT = "def fibonacci(n):\n"
TOKENS = 1000


class Stream:
    """A stream read by a thread: its tokens, when each came, how it ended."""

    def __init__(self, stub: pb_grpc.InferenceServiceStub):
        params = pb.SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=1.0, seed=11)
        self._call = stub.Generate(pb.GenerateRequest(model=MODEL, text=PROMPT, params=params))
        self.token_ids: list[int] = []
        self.kinds: list[str | None] = []
        self.longest_gap_s = 0.0
        self.last_s = time.monotonic()
        self.moves = 0
        self.code: grpc.StatusCode | None = None
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self.longest_gap_s = max(self.longest_gap_s, self.since_s())
                self.last_s = time.monotonic()
                self.kinds.append(event.WhichOneof("event"))
                self.token_ids += event.delta.token_ids
                self.moves += event.finished.overhead.moves
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            self.code = error.code()

    def since_s(self) -> float:
        """Seconds since its last event."""
        return time.monotonic() - self.last_s

    def join(self) -> None:
        self._thread.join(120.0)
        assert not self._thread.is_alive(), "the stream hangs"


def until(condition: Callable[[], bool], limit_s: float) -> float:
    """Wait for `condition`; returns the seconds it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, f"not within {limit_s:.0f} s"
        time.sleep(0.02)
    return time.monotonic() - began
