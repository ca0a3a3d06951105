"""The engine's own thread: requests and aborts come in through a mailbox, events go out through a callback."""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.types import EngineEvent, EngineRequest, Failed, GroupLoad
from rayline.workers.engine import Engine
from rayline.workers.pipeline import RankStats

log = logging.getLogger(__name__)

IDLE_CHECK_S = 0.2  # how soon the loss of a rank is noticed while nothing runs


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class AskStats:
    answer: Callable[[tuple[RankStats, ...]], object]


class Stop:
    """Last letter in the mailbox."""


Letter = EngineRequest | Abort | AskStats | Stop
Emit = Callable[[list[EngineEvent], GroupLoad], None]
"""Called in the engine's thread after each step that brought events."""


class EngineThread:
    """Runs `engine.step()` as long as there is work. Every accepted request gets exactly one terminal event,
    also when a rank is lost: then all get a Failed, and `on_lost` is called once."""

    def __init__(self, engine: Engine, emit: Emit, on_lost: Callable[[RaylineError], None]):
        self._engine = engine
        self._emit = emit
        self._on_lost = on_lost
        self._mailbox: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._lost: RaylineError | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, letter: Letter) -> None:
        """Hand in a request or an abort, from any thread. What became of it is told by events."""
        self._mailbox.put(letter)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self._lost is None

    def stop(self) -> None:
        """End the thread and the ranks. Call when no stream is left."""
        self._mailbox.put(Stop())
        self._thread.join()

    # ---- in the engine's thread

    def _run(self) -> None:
        try:
            while self._take_letters():
                if events := self._engine.step():
                    self._emit(events, self._engine.load())
                elif not self._engine.has_work:
                    self._engine.pipeline.check()
        except Exception as error:
            self._lose(error)
        finally:
            self._engine.close()

    def _take_letters(self) -> bool:
        """Read all mail; waits a little when there is no work. False when told to stop."""
        events: list[EngineEvent] = []
        wait = not self._engine.has_work
        while True:
            try:
                letter = self._mailbox.get(block=wait, timeout=IDLE_CHECK_S if wait else None)
            except queue.Empty:
                break
            wait = False
            if isinstance(letter, Stop):
                return False
            events += self._read(letter)
        if events:
            self._emit(events, self._engine.load())
        return True

    def _read(self, letter: EngineRequest | Abort | AskStats) -> list[EngineEvent]:
        if isinstance(letter, Abort):
            return self._engine.abort(letter.request_id)
        if isinstance(letter, AskStats):
            if not self._engine.pipeline.in_flight:
                letter.answer(self._engine.pipeline.rank_stats())
            else:
                self._mailbox.put(letter)  # ranks answer between steps only
            return []
        try:
            self._engine.add(letter)
        except RaylineError as error:
            return [Failed(letter.request_id, error)]
        return []

    def _lose(self, error: Exception) -> None:
        """The group cannot go on: end every stream with one Failed, then say so."""
        log.error("the group is lost: %s", error, exc_info=not isinstance(error, RaylineError))
        self._lost = Unavailable(f"the group was lost: {error}", retry_after_s=1.0)
        failed: list[EngineEvent] = [
            Failed(sequence.request.request_id, self._lost) for sequence in self._engine.scheduler.live
        ]
        while True:
            try:
                letter = self._mailbox.get_nowait()
            except queue.Empty:
                break
            if isinstance(letter, EngineRequest):
                failed.append(Failed(letter.request_id, self._lost))
        self._emit(failed, self._engine.load())
        self._on_lost(self._lost)
