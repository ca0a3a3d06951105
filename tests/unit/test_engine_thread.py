"""The engine's thread: each accepted request ends once, whatever is lost when, and every letter is answered."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sized
from functools import partial

import pytest
from simulated_group import TimedRanks, answer, engine_over, request

from rayline.protos.errors import InvalidRequest, Overloaded, RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed, Finished, FinishReason, TokenEvent
from rayline.protos.group import GroupLoad
from rayline.protos.types import EngineRequest
from rayline.workers.canary import Canary
from rayline.workers.engine import Engine
from rayline.workers.engine_thread import Abort, AskStats, EngineThread
from rayline.workers.pipeline import RankStats

WAIT_S = 60.0


class Desk:
    """Runs an engine's thread and keeps what it tells."""

    def __init__(self, engine: Engine):
        self.events: list[EngineEvent] = []
        self.loads: list[GroupLoad] = []
        self.batches: list[list[EngineEvent]] = []
        self.losses: list[RaylineError] = []
        self.stats: list[tuple[RankStats, ...]] = []
        self.told = threading.Condition()
        self.thread = EngineThread(engine, Canary(exact=True), self._emit, self._on_lost)

    def _emit(self, events: list[EngineEvent], load: GroupLoad) -> None:
        with self.told:
            self.events += events
            self.batches.append(events)
            self.loads.append(load)
            self.told.notify_all()

    def _on_lost(self, error: RaylineError) -> None:
        with self.told:
            self.losses.append(error)
            self.told.notify_all()

    def take_stats(self, stats: tuple[RankStats, ...]) -> None:
        with self.told:
            self.stats.append(stats)
            self.told.notify_all()

    def wait(self, done: Callable[[], bool]) -> None:
        with self.told:
            assert self.told.wait_for(done, WAIT_S)

    def ends(self) -> Counter[str]:
        return Counter(event.request_id for event in self.events if not isinstance(event, TokenEvent))

    def end(self, request_id: str) -> Finished | Failed:
        (end,) = [e for e in self.events if not isinstance(e, TokenEvent) and e.request_id == request_id]
        return end

    def tokens(self, request_id: str) -> list[int]:
        return [e.token_id for e in self.events if isinstance(e, TokenEvent) and e.request_id == request_id]

    def run(self, *requests: EngineRequest) -> None:
        """Post requests, start, wait until all have ended, stop."""
        for each in requests:
            self.thread.post(each)
        self.thread.start()
        self.wait(lambda: len(self.ends()) == len({each.request_id for each in requests}))
        self.thread.stop()


def has_more(items: Sized, count: int) -> bool:
    return len(items) > count


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "engine"}


REQUESTS = [request(f"r{number}", (number, 1, 2), tokens=6 + number) for number in range(5)]


def test_requests_are_answered_in_full_and_end_once() -> None:
    desk = Desk(engine_over(TimedRanks()))
    desk.run(*REQUESTS)
    for each in REQUESTS:
        assert desk.tokens(each.request_id) == answer(each)
    assert set(desk.ends().values()) == {1}
    assert desk.losses == []


def test_all_tokens_of_a_step_are_told_together() -> None:
    desk = Desk(engine_over(TimedRanks()))
    desk.run(*REQUESTS)
    assert any(len({event.request_id for event in batch}) == len(REQUESTS) for batch in desk.batches)


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("lives", [0, 1, 2, 5, 9])
def test_when_a_rank_is_lost_every_request_ends_exactly_once(lives: int, delay: int) -> None:
    desk = Desk(engine_over(TimedRanks(lives=lives, delay=delay), depth=delay, max_running=3))
    desk.run(*REQUESTS)
    assert desk.ends() == Counter({each.request_id: 1 for each in REQUESTS})
    for each in REQUESTS:
        end = desk.end(each.request_id)
        said = desk.tokens(each.request_id)
        assert said == answer(each)[: len(said)]
        if isinstance(end, Failed):
            assert isinstance(end.error, Unavailable) and end.error.retry_after_s
            assert "rank 0 closed its connection" in end.error.message
        else:
            assert len(said) == each.params.max_tokens
    assert len(desk.losses) == 1


def test_a_bug_in_a_step_ends_every_request_too(caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(TimedRanks):
        def check(self) -> None:
            if len(self.plans) == 4:
                raise ZeroDivisionError("division by zero")

    desk = Desk(engine_over(Buggy()))
    desk.run(*REQUESTS)
    assert desk.ends() == Counter({each.request_id: 1 for each in REQUESTS})
    assert isinstance(desk.end("r0"), Failed)
    assert "ZeroDivisionError" in caplog.text, "a bug is logged with its traceback"


def test_a_loss_while_nothing_runs_is_noticed_and_told_once() -> None:
    ranks = TimedRanks()
    desk = Desk(engine_over(ranks))
    desk.thread.start()
    assert desk.thread.alive
    ranks.lost = True
    desk.wait(lambda: bool(desk.losses))
    assert not desk.thread.alive
    assert desk.events == []
    desk.thread.stop()
    assert len(desk.losses) == 1


def test_letters_that_come_after_the_loss_are_answered_too() -> None:
    desk = Desk(engine_over(TimedRanks(lives=0)))
    desk.run(request("early"))
    desk.thread.post(request("late"))
    desk.thread.post(AskStats(desk.take_stats))
    desk.thread.post(Abort("late"))
    assert isinstance(desk.end("late"), Failed)
    assert desk.stats == [()]


def test_no_letter_is_lost_between_the_loss_and_the_end_of_the_thread() -> None:
    ranks = TimedRanks(step_s=0.0005, lives=25)
    desk = Desk(engine_over(ranks, max_waiting=10_000))
    desk.thread.start()
    posted = 0
    while not desk.losses or posted % 50:
        desk.thread.post(request(f"r{posted}", tokens=3))
        posted += 1
        time.sleep(0.0002)
    desk.wait(lambda: len(desk.ends()) == posted)
    assert set(desk.ends().values()) == {1}
    desk.thread.stop()


def test_the_ranks_are_closed_once_after_a_stop_and_after_a_loss() -> None:
    for lives in (0, 100):
        ranks = TimedRanks(lives=lives)
        Desk(engine_over(ranks)).run(request("r"))
        assert ranks.closed == 1


def test_a_full_queue_fails_the_request_and_no_other() -> None:
    desk = Desk(engine_over(TimedRanks(), max_waiting=2))
    desk.run(*REQUESTS)
    refused = [each.request_id for each in REQUESTS if isinstance(desk.end(each.request_id), Failed)]
    assert refused == ["r2", "r3", "r4"]
    for request_id in refused:
        end = desk.end(request_id)
        assert isinstance(end, Failed) and isinstance(end.error, Overloaded)


def test_a_request_that_cannot_be_computed_fails_and_no_other() -> None:
    desk = Desk(engine_over(TimedRanks()))
    desk.run(request("good"), request("bad", (999,)))
    end = desk.end("bad")
    assert isinstance(end, Failed) and isinstance(end.error, InvalidRequest)
    assert desk.tokens("good") == answer(request("good"))


def test_an_abort_ends_the_stream_and_frees_its_blocks() -> None:
    desk = Desk(engine_over(TimedRanks(step_s=0.01)))
    desk.thread.start()
    desk.thread.post(request("r", tokens=50))
    desk.wait(lambda: bool(desk.tokens("r")))
    desk.thread.post(Abort("r"))
    desk.wait(lambda: bool(desk.ends()))
    end = desk.end("r")
    assert isinstance(end, Finished) and end.reason is FinishReason.ABORT
    assert desk.loads[-1].free_blocks == desk.loads[-1].total_blocks
    desk.thread.stop()


def test_an_abort_of_an_unknown_request_is_ignored() -> None:
    desk = Desk(engine_over(TimedRanks()))
    desk.thread.post(Abort("nobody"))
    desk.run(request("r"))
    assert desk.ends() == Counter({"r": 1})


@pytest.mark.parametrize("delay", [1, 3])
def test_statistics_are_told_while_streams_run_and_disturb_none(delay: int) -> None:
    desk = Desk(engine_over(TimedRanks(step_s=0.002, delay=delay), depth=delay))
    desk.thread.start()
    for each in REQUESTS:
        desk.thread.post(each)
    for asked in range(3):
        desk.thread.post(AskStats(desk.take_stats))
        desk.wait(partial(has_more, desk.stats, asked))
    desk.wait(lambda: len(desk.ends()) == len(REQUESTS))
    desk.thread.stop()
    assert [stats[0].rank for stats in desk.stats] == [0, 0, 0]
    for each in REQUESTS:
        assert desk.tokens(each.request_id) == answer(each)


def test_a_loss_while_statistics_are_asked_for_ends_everything_once() -> None:
    ranks = TimedRanks(lives=3, delay=3)
    desk = Desk(engine_over(ranks, depth=2))
    for each in REQUESTS:
        desk.thread.post(each)
        desk.thread.post(AskStats(desk.take_stats))
    desk.thread.start()
    desk.wait(lambda: bool(desk.losses))
    desk.thread.stop()
    assert desk.ends() == Counter({each.request_id: 1 for each in REQUESTS})
    assert len(desk.stats) == len(REQUESTS)


def test_stopping_joins_the_thread() -> None:
    before, desk = engine_threads(), Desk(engine_over(TimedRanks()))
    desk.thread.start()
    (its_own,) = engine_threads() - before
    assert desk.thread.alive
    desk.thread.stop()
    assert not its_own.is_alive() and not desk.thread.alive
