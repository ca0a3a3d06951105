"""The engine's own thread: requests and aborts come in through a mailbox, events go out through a callback."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from rayline.protos.blame import Presence, presence
from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed
from rayline.protos.group import GroupLoad
from rayline.protos.types import EngineRequest
from rayline.workers.canary import Canary
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
OnApart = Callable[[str], object]
"""Called in the engine's thread before a suspect is computed alone, with its id, and with "" before others are again.
Returns when all who might take others for the reason of a loss have heard of it."""


class EngineThread:
    """Runs `engine.step()` as long as there is work. Every accepted request gets exactly one terminal event,
    also when a rank is lost: then all get a Failed, the ranks are ended, and `on_lost` is called once.

    beat_s: when it last began something new, by `clock`. Each thing ends within the pipeline's `limit_s`.
    """

    def __init__(
        self,
        engine: Engine,
        canary: Canary,
        emit: Emit,
        on_lost: Callable[[RaylineError], None],
        on_apart: OnApart = lambda request_id: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._engine = engine
        self._canary = canary
        self._clock = clock
        self.beat_s = clock()
        self._emit = emit
        self._on_lost = on_lost
        self._on_apart = on_apart
        self._apart = ""
        self._mailbox: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._lost: RaylineError | None = None
        self._fenced = False
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

    def fence(self, error: RaylineError) -> None:
        """Take no more letters, tell no more events and end the ranks by force, though the thread is stuck.

        From any thread. The caller tells those whose requests were running.
        """
        with self._posting:
            self._lost = self._lost or error
            self._fenced = True
        self._engine.fence()

    # ---- in the engine's thread

    def _run(self) -> None:
        try:
            while self._take_letters():
                self.beat_s = self._clock()
                if not self._engine.has_work:
                    self._rest()
                self._tell_apart()
                events = self._engine.step()
                if events:
                    self._canary.worked(self._clock())
                    self._tell(events)
        except Exception as error:
            self._lose(error)
        finally:
            self._engine.close()

    def _rest(self) -> None:
        """Nobody wants anything: see whether the ranks are there, and now and then whether they compute."""
        self._engine.pipeline.check()
        if (request := self._canary.request(self._clock())) is not None:
            self._engine.add(request)

    def _tell_apart(self) -> None:
        """A suspect is next: nothing is in flight, and the ranks show that they live, so that no loss from before is
        taken for one of its own."""
        apart = self._engine.scheduler.apart
        if apart == self._apart or (apart and self._engine.pipeline.in_flight):
            return
        if apart:
            self._engine.pipeline.rank_stats()
        self._on_apart(apart)
        self._apart = apart

    def _presence(self, request_id: str) -> Presence:
        if self._apart or self._engine.scheduler.is_running(request_id):
            return presence(request_id, self._apart)
        return Presence.ABSENT

    def _tell(self, events: list[EngineEvent]) -> None:
        """The canary's events stay here, but routers hear of the load behind them."""
        if events and not self._fenced:
            self._emit(self._canary.take(events), self._engine.load())

    def _take_letters(self) -> bool:
        """Read all mail; waits a little when there is no work. False when told to stop."""
        wait = not self._engine.has_work
        while True:
            try:
                letter = self._mailbox.get(block=wait, timeout=IDLE_CHECK_S if wait else None)
            except queue.Empty:
                return True
            wait = False
            self.beat_s = self._clock()
            if isinstance(letter, Stop):
                return False
            self._read(letter)

    def _read(self, letter: EngineRequest | Abort | AskStats) -> None:
        if isinstance(letter, Abort):
            self._tell(self._engine.abort(letter.request_id))
        elif isinstance(letter, AskStats):
            self._answer_stats(letter)
        elif (end := self._engine.end_of(letter)) is not None:
            self._tell([end])
        else:
            try:
                self._engine.add(letter)
            except RaylineError as error:
                self._tell([Failed(letter.request_id, error)])

    def _answer_stats(self, letter: AskStats) -> None:
        """Ranks answer between steps only: the plans in flight are finished first."""
        try:
            while self._engine.pipeline.in_flight:
                self.beat_s = self._clock()
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
        running = self._engine.scheduler.request_ids
        self._tell([Failed(request_id, lost, self._presence(request_id)) for request_id in running])
        while not self._mailbox.empty():
            self._return_to_sender(self._mailbox.get(), lost)
        self._on_lost(lost)
        self._engine.fence()

    def _return_to_sender(self, letter: Letter, lost: RaylineError) -> None:
        """What comes too late is answered all the same."""
        if isinstance(letter, EngineRequest):
            self._emit([Failed(letter.request_id, lost, Presence.ABSENT)], self._engine.load())
        elif isinstance(letter, AskStats):
            letter.answer(())
