"""A stream as far as its client has read it: what to call next, which events are new, when to give up.

No clock, no network: both clients (`client.py`) ask it what to do.

    started  delta 0  delta 1  delta 0 | connection lost             index counts events, `seen` those of each choice
                                       Resume(next_index=4, seen=[2, 1])  ->  delta 1  delta 0  ...  finished
"""

import random
import uuid
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeAlias

from rayline.protos import inference_pb2 as pb
from rayline.protos.errors import (
    DeadlineExceeded,
    InternalError,
    Overloaded,
    RaylineError,
    StreamNotFound,
    Unavailable,
)

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
MAX_SEED = 2**63 - 1

Request: TypeAlias = pb.GenerateRequest | pb.ChatRequest
Call: TypeAlias = pb.GenerateRequest | pb.ChatRequest | pb.ResumeRequest


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client goes on trying, in seconds; each router is asked once at least.

    connect_s: from the first call that failed to the first event. resume_s: from a lost connection to the next event.
    """

    connect_s: float = 5.0
    resume_s: float = 60.0


def signed(request: Request) -> Request:
    """A copy with a request id, by which routers know it again, and a seed, by which it can be computed again."""
    copy = deepcopy(request)
    copy.request_id = request.request_id or uuid.uuid4().hex
    if not copy.params.HasField("seed"):
        copy.params.seed = random.SystemRandom().randint(0, MAX_SEED)
    return copy


class ResumingStream:
    """One stream. `ended` is set with its terminal event."""

    def __init__(self, request: Request, patience: Patience, now_s: float):
        """`request` has an id and a seed. Times are seconds from any start."""
        self.ended = False
        self._request = request
        self._patience = patience
        self._until_s = now_s + request.timeout_s if request.HasField("timeout_s") else None
        self._started: pb.Started | None = None
        self._is_scored = False
        self._next_index = 0
        self._seen = [0] * max(1, request.params.n)
        self._again: list[int] | None = None
        self._lost_s: float | None = None
        self._tries = 0

    def call(self) -> Call:
        """What to send now: the request, or where to go on."""
        if not self._next_index or self._again is not None:
            return self._request
        return pb.ResumeRequest(
            request_id=self._request.request_id,
            next_index=self._next_index,
            seen=self._seen,
            tenant=self._request.tenant,
        )

    def left_s(self, now_s: float) -> float | None:
        """Seconds for the next call; None: as long as it takes. Raises DeadlineExceeded when they are over."""
        if self._until_s is None:
            return None
        if now_s >= self._until_s:
            raise DeadlineExceeded(f"no end within timeout_s = {self._request.timeout_s:g}", field="timeout_s")
        return self._until_s - now_s

    def take(self, event: pb.StreamResponse) -> bool:
        """Whether this event is new. One of a stream that runs again gets the index it has for the client.

        Raises InternalError when events are missing before it, and Unavailable when a stream that runs again is not
        the one that was lost.
        """
        if self._again is not None:
            if self._was_seen(event, self._again):
                return False
            event.index = self._next_index
        if event.index < self._next_index:
            return False
        if event.index > self._next_index:
            raise InternalError(f"event {self._next_index} of the stream is missing: {event.index} came instead")
        self._count(event)
        return True

    def lost(self, error: RaylineError, routers: int, now_s: float, draw: float) -> float:
        """A call ended in `error`: seconds until the next one. Raises the error when another call would not help.

        routers: how many there are to ask. draw: from [0, 1), so that not all clients come back at one instant.
        """
        if isinstance(error, StreamNotFound) and self._is_repeatable:
            self._again = list(self._seen)
        elif self._again is not None:
            self._again = None  # it was accepted again, or will be found missing again
        if not self._passes(error):
            raise error
        if self._lost_s is None:
            self._lost_s = now_s
        patience_s = self._patience.resume_s if self._next_index else self._patience.connect_s
        if self._tries + 1 >= routers and now_s - self._lost_s >= patience_s:
            raise error
        self._tries += 1
        if self._tries <= routers:
            return 0.0
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._tries - routers, 10))
        return max(pause_s, min(error.retry_after_s or 0.0, LONGEST_PAUSE_S)) * (0.5 + draw / 2)

    def _passes(self, error: RaylineError) -> bool:
        """Whether the same call may succeed later or elsewhere. A full server is waited for once it has accepted."""
        if isinstance(error, StreamNotFound):
            return self._again is not None
        return isinstance(error, Unavailable) or (isinstance(error, Overloaded) and self._next_index > 0)

    @property
    def _is_repeatable(self) -> bool:
        """Nobody remembers the stream, but its bits depend on the request alone."""
        return self._started is not None and self._started.exact and self._again is None

    def _was_seen(self, event: pb.StreamResponse, again: list[int]) -> bool:
        """Whether this event of a stream that runs from its start was shown before. again: how many of each choice."""
        match event.WhichOneof("event"):
            case "started":
                if self._started is None or event.started.numerics != self._started.numerics:
                    raise Unavailable(f"nobody remembers the stream, and {event.started.numerics} computes other bits")
                return True
            case "prompt_scored":
                return self._is_scored
            case "delta" | "choice_ended":
                choice = _choice(event)
                if choice < len(again) and again[choice]:
                    again[choice] -= 1
                    return True
        return False

    def _count(self, event: pb.StreamResponse) -> None:
        self._next_index += 1
        self._lost_s, self._tries = None, 0
        match event.WhichOneof("event"):
            case "started":
                self._started = event.started
            case "prompt_scored":
                self._is_scored = True
            case "delta" | "choice_ended":
                choice = _choice(event)
                self._seen += [0] * (choice + 1 - len(self._seen))  # a server of another mind about n
                self._seen[choice] += 1
            case "finished" | "failed":
                self.ended = True


def _choice(event: pb.StreamResponse) -> int:
    return int(event.delta.choice if event.HasField("delta") else event.choice_ended.choice)
