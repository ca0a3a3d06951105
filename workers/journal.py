"""The journal that a leader holds: streams' records and what was said of them, so that any router can go on with one.

Bounded in bytes and in time, and pure: time is a parameter. What a record says is its router's business.

    live     its router is connected and reads it, or an engine here runs it      never dropped
    ended    kept for `keep_s` more; when there is no room, traces go first, then whole streams, oldest first
"""

from dataclasses import dataclass, field

from rayline.protos.events import EngineEvent, Interim
from rayline.protos.journal import Ballot, JournalAnswer, JournalCall, KeptAs, Trace
from rayline.protos.types import EngineRequest
from rayline.workers.trace import KeptTrace

STREAM_BYTES = 512  # of a stream without record and traces


@dataclass(slots=True)
class _Stream:
    """owner: the connection whose router reads it. running: requests of it in the engine here.

    is_cut: its traces were dropped for want of room, so later tokens would have no beginning.
    """

    ballot: Ballot
    run: int = 0
    owner: int | None = None
    record: bytes = b""
    running: int = 0
    ran: dict[int, KeptTrace] = field(default_factory=dict)
    ahead: dict[int, KeptTrace] = field(default_factory=dict)
    is_cut: bool = False

    @property
    def is_live(self) -> bool:
        return self.running > 0 or (self.owner is not None and bool(self.record))

    @property
    def trace_bytes(self) -> int:
        return sum(trace.size_bytes for trace in self.ran.values())

    @property
    def size_bytes(self) -> int:
        return (
            STREAM_BYTES + len(self.record) + self.trace_bytes + sum(trace.size_bytes for trace in self.ahead.values())
        )

    @property
    def traces(self) -> tuple[Trace, ...]:
        ran = (kept.trace(choice, False, self.run) for choice, kept in self.ran.items())
        return (*ran, *(kept.trace(choice, True, self.run) for choice, kept in self.ahead.items()))

    def begin_run(self, run: int) -> None:
        """What was said in another run is none of this one."""
        if run != self.run:
            self.run = run
            self.ran.clear()
            self.ahead.clear()


class Journal:
    """`used_bytes` is about what it takes: at most `most_bytes`, and a little for each request that runs here.

    keep_s: how long streams are kept that nobody reads any more.
    """

    def __init__(self, most_bytes: int, keep_s: float):
        self.most_bytes = most_bytes
        self.keep_s = keep_s
        self.used_bytes = 0
        self._streams: dict[str, _Stream] = {}
        self._ended: dict[str, float] = {}  # until when; oldest first
        self._traced: dict[str, None] = {}  # those of them that have traces to drop

    def __len__(self) -> int:
        return len(self._streams)

    def take(self, call: JournalCall, owner: int, now_s: float) -> JournalAnswer:
        """Do what a router asks. A write or claim is accepted unless a higher ballot was heard of; one that is refused
        with the caller's own ballot found no room.
        """
        self._expire(now_s)
        stream = self._streams.get(call.key)
        match call.act:
            case "look":
                if stream is None:
                    return JournalAnswer(False)
                return JournalAnswer(True, stream.ballot, stream.record, stream.traces)
            case "write" | "claim":
                return self._claim(call, stream, owner, now_s)
            case "ahead":
                return self._hold_ahead(call, stream)
            case "end":
                return self._end(call, stream, now_s)

    def lose(self, owner: int, now_s: float) -> None:
        """A router's connection ended: what it read is kept for whoever goes on with it."""
        for key, stream in self._streams.items():
            if stream.owner == owner:
                stream.owner = None
                self._settle(key, stream, now_s)

    # ---- what the engine here does

    def begin(self, request: EngineRequest, now_s: float) -> Ballot | None:
        """The engine gets a request. Returns the ballot of a later claim, for which it must not run."""
        kept = request.kept
        if kept is None:
            return None
        stream, before = self._streams.get(kept.key), 0
        if stream is None:
            stream = self._streams[kept.key] = _Stream(kept.ballot)
        elif stream.ballot > kept.ballot:
            return stream.ballot
        else:
            before = stream.size_bytes
        stream.ballot = kept.ballot
        stream.begin_run(kept.run)
        stream.is_cut = stream.is_cut and stream.running > 0
        stream.running += 1
        if not stream.is_cut:
            trace = stream.ran.setdefault(kept.choice, KeptTrace())
            trace.begin(request.output_ids, request.params.logprobs is not None)
        self.used_bytes += stream.size_bytes - before
        self._settle(kept.key, stream, now_s)
        if not self._make_room(0):
            self._cut(stream)
        return None

    def say(self, kept: KeptAs, event: EngineEvent, now_s: float) -> None:
        """The engine brought something for a request that was let in by `begin`; its last event ends it here."""
        stream = self._streams[kept.key]
        if not stream.is_cut:
            trace = stream.ran.setdefault(kept.choice, KeptTrace())
            before = trace.size_bytes
            trace.add(event)
            self.used_bytes += trace.size_bytes - before
            if self.used_bytes > self.most_bytes and not self._make_room(0):
                self._cut(stream)
        if not isinstance(event, Interim):
            stream.running -= 1
            self._settle(kept.key, stream, now_s)

    # ---- inside

    def _claim(self, call: JournalCall, stream: _Stream | None, owner: int, now_s: float) -> JournalAnswer:
        if stream is not None and stream.ballot > call.ballot:
            return JournalAnswer(False, stream.ballot)
        if stream is None:
            stream, wanted = _Stream(call.ballot), STREAM_BYTES + len(call.record)
        else:
            wanted = len(call.record) - len(stream.record) if call.record else 0
        self._ended.pop(call.key, None)
        self._traced.pop(call.key, None)
        if not self._make_room(max(0, wanted)):
            if call.key in self._streams:
                self._settle(call.key, stream, now_s)
            return JournalAnswer(False, call.ballot)
        stream.ballot, stream.owner = call.ballot, owner
        stream.record = call.record or stream.record
        self._streams[call.key] = stream
        self.used_bytes += wanted
        self._settle(call.key, stream, now_s)
        return JournalAnswer(True, call.ballot)

    def _end(self, call: JournalCall, stream: _Stream | None, now_s: float) -> JournalAnswer:
        if stream is None:
            return JournalAnswer(False)
        if stream.ballot == call.ballot:
            stream.owner = None
            self._settle(call.key, stream, now_s)
        return JournalAnswer(stream.ballot == call.ballot, stream.ballot)

    def _hold_ahead(self, call: JournalCall, stream: _Stream | None) -> JournalAnswer:
        if stream is None or call.trace is None:
            return JournalAnswer(False)
        if stream.ballot != call.ballot:
            return JournalAnswer(False, stream.ballot)
        before = stream.size_bytes
        stream.begin_run(call.trace.run)
        trace = stream.ahead.setdefault(call.trace.choice, KeptTrace())
        for event in call.trace.events:
            trace.add(event)
        self.used_bytes += stream.size_bytes - before
        return JournalAnswer(self._make_room(0), stream.ballot)

    def _settle(self, key: str, stream: _Stream, now_s: float) -> None:
        """Whether it is kept for a while or for as long as it lives."""
        self._ended.pop(key, None)
        self._traced.pop(key, None)
        if not stream.is_live:
            self._ended[key] = now_s + self.keep_s
            if stream.ran:
                self._traced[key] = None

    def _expire(self, now_s: float) -> None:
        while self._ended and self._ended[key := next(iter(self._ended))] <= now_s:
            self._drop(key)

    def _make_room(self, wanted: int) -> bool:
        """Drop what has ended until there are `wanted` bytes. False when all that is left lives."""
        while self.used_bytes + wanted > self.most_bytes:
            if self._traced:
                self._cut(self._streams[key := next(iter(self._traced))])
                del self._traced[key]
            elif self._ended:
                self._drop(next(iter(self._ended)))
            else:
                return False
        return True

    def _cut(self, stream: _Stream) -> None:
        self.used_bytes -= stream.trace_bytes
        stream.ran.clear()
        stream.is_cut = True

    def _drop(self, key: str) -> None:
        del self._ended[key]
        self._traced.pop(key, None)
        self.used_bytes -= self._streams.pop(key).size_bytes
