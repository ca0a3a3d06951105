"""The journal's records: what outlives a router, so that another one can go on with its streams.

Group leaders hold the journal (they outlive routers), routers write it. To a leader a stream's record is bytes.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from rayline.protos.events import EngineEvent, Finished, PromptScores, TokenEvent

Act = Literal["look", "write", "claim", "ahead", "end"]


@dataclass(frozen=True, slots=True, order=True)
class Ballot:
    """Whose word counts for a stream: the highest turn's, and of equal turns the greater router's name.

    Each router that takes a stream up adds one to the highest turn it has heard of.
    """

    turn: int
    router: str


@dataclass(frozen=True, slots=True)
class KeptAs:
    """Under which name a leader keeps what an engine's request brings: a choice of a client's stream.

    run: names the stream's first beginning; a request that came again under the id of one long gone has another.
    """

    key: str
    choice: int
    ballot: Ballot
    run: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What engines have said of one choice: tokens with indices in one run, scores of the prompt, its end.

    is_ahead: written by its router before the client saw it, and not by the leader whose engine said it.
    """

    choice: int
    tokens: tuple[TokenEvent, ...] = ()
    scores: tuple[PromptScores, ...] = ()
    finished: Finished | None = None
    is_ahead: bool = False
    run: int = 0

    @property
    def events(self) -> list[EngineEvent]:
        """All of it, in an order in which an engine may say it."""
        end = [] if self.finished is None else [self.finished]
        return [*self.scores, *self.tokens, *end]


@dataclass(frozen=True, slots=True)
class JournalCall:
    """What a router asks of a leader's journal.

    look: what is known of the stream. write: hold this record for me. claim: the stream is mine from now on.
    ahead: hold this trace too. end: I read the stream no more. record and trace belong to write and ahead.
    """

    act: Act
    key: str
    ballot: Ballot
    record: bytes = b""
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class JournalAnswer:
    """accepted: the act was done. ballot: the highest heard of, None where nothing is known of the stream."""

    accepted: bool
    ballot: Ballot | None = None
    record: bytes = b""
    traces: tuple[Trace, ...] = ()


def stream_key(tenant: str, request_id: str) -> str:
    """The journal's name for a tenant's stream. Two tenants may use one request id."""
    return hashlib.sha256(json.dumps([tenant, request_id]).encode()).hexdigest()[:32]
