"""Streams of a running server, read by threads."""

import threading
import time

import grpc

from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc

MODEL = "rayline-python"
PROMPT = "def fibonacci(n):\n"
TOKENS = 1000


class Stream:
    """A stream read by a thread: its tokens, when each came, how it ended."""

    def __init__(self, stub: pb_grpc.InferenceServiceStub, tokens: int = TOKENS):
        params = pb.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=1.0, seed=11)
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
