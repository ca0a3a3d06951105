"""The engine's own thread: requests and aborts come in through a mailbox, events go out through a callback."""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed
from rayline.protos.group import GroupLoad
from rayline.protos.types import EngineRequest
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
"""Called after each step or letter that brought events: in the engine's thread, once that has ended in the poster's."""


class EngineThread:
    """Runs `engine.step()` as long as there is work. Every accepted request gets exactly one terminal event,
    also when a rank is lost: then all get a Failed, and `on_lost` is called once."""

    def __init__(self, engine: Engine, emit: Emit, on_lost: Callable[[RaylineError], None]):
        self._engine = engine
        self._emit = emit
        self._on_lost = on_lost
        self._mailbox: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._lost: RaylineError | None = None
        self._posting = threading.Lock()  # between "is it lost?" and "it is in the mailbox" nothing may be lost
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, letter: Letter) -> None:
        """Hand in a request or an abort, from any thread. What became of it is told by events."""
        with self._posting:
            if self._lost is None:
                self._mailbox.put(letter)
                return
        self._return_to_sender(letter, self._lost)

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
                events = self._engine.step()
                self._tell(events)
                if not events and not self._engine.has_work:
                    self._engine.pipeline.check()
        except Exception as error:
            self._lose(error)
        finally:
            self._engine.close()

    def _tell(self, events: list[EngineEvent]) -> None:
        if events:
            self._emit(events, self._engine.load())

    def _take_letters(self) -> bool:
        """Read all mail; waits a little when there is no work. False when told to stop."""
        wait = not self._engine.has_work
        while True:
            try:
                letter = self._mailbox.get(block=wait, timeout=IDLE_CHECK_S if wait else None)
            except queue.Empty:
                return True
            wait = False
            if isinstance(letter, Stop):
                return False
            self._read(letter)

    def _read(self, letter: EngineRequest | Abort | AskStats) -> None:
        if isinstance(letter, Abort):
            self._tell(self._engine.abort(letter.request_id))
        elif isinstance(letter, AskStats):
            self._answer_stats(letter)
        else:
            try:
                self._engine.add(letter)
            except RaylineError as error:
                self._tell([Failed(letter.request_id, error)])

    def _answer_stats(self, letter: AskStats) -> None:
        """Ranks answer between steps only: the plans in flight are finished first."""
        try:
            while self._engine.pipeline.in_flight:
                self._tell(self._engine.take_result())
            letter.answer(self._engine.pipeline.rank_stats())
        except RaylineError:
            letter.answer(())
            raise

    def _lose(self, error: Exception) -> None:
        """The group cannot go on: end every stream with one Failed, then say so."""
        log.error("the group is lost: %s", error, exc_info=not isinstance(error, RaylineError))
        lost = Unavailable(f"the group was lost: {error}", retry_after_s=1.0)
        with self._posting:
            self._lost = lost
        self._tell([Failed(request_id, lost) for request_id in self._engine.scheduler.request_ids])
        while not self._mailbox.empty():
            self._return_to_sender(self._mailbox.get(), lost)
        self._on_lost(lost)

    def _return_to_sender(self, letter: Letter, lost: RaylineError) -> None:
        """What comes too late is answered all the same."""
        if isinstance(letter, EngineRequest):
            self._tell([Failed(letter.request_id, lost)])
        elif isinstance(letter, AskStats):
            letter.answer(())
