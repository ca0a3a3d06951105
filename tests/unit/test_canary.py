"""The group's own request while nobody asks: due when it should be, seen by nobody, and its failure ends the group."""

import threading

import pytest
from simulated_group import BLOCKS, TimedRanks, answer, engine_over, request

from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.events import EngineEvent, Failed, Finished, FinishReason, TokenEvent, Usage
from rayline.protos.group import GroupLoad
from rayline.protos.plan import Sampled, StepResult
from rayline.workers import canary as module
from rayline.workers.canary import PERIOD_S, PRIORITY, TENANT, Canary
from rayline.workers.engine import Engine
from rayline.workers.engine_thread import EngineThread

OTHERS = TokenEvent("somebody", 0, 5)


def answered(canary: Canary, now_s: float, token_id: int) -> list[EngineEvent]:
    """Let the canary ask at `now_s` and get this token."""
    asked = canary.request(now_s)
    assert asked is not None
    end = Finished(asked.request_id, FinishReason.LENGTH, Usage(1, 1, 0))
    kept = canary.take([OTHERS, TokenEvent(asked.request_id, 0, token_id), end])
    canary.worked(now_s)
    return kept


def test_it_is_due_after_a_while_of_idleness_and_whenever_that_has_passed_again() -> None:
    canary = Canary(exact=True)
    assert canary.request(100.0) is None
    assert canary.request(100.0 + PERIOD_S - 0.01) is None
    answered(canary, 100.0 + PERIOD_S, 7)
    assert canary.request(100.0 + PERIOD_S * 1.9) is None
    assert canary.request(100.0 + PERIOD_S * 2) is not None


def test_any_step_of_a_clients_makes_it_needless() -> None:
    canary = Canary(exact=True)
    assert canary.request(0.0) is None
    canary.worked(PERIOD_S - 0.1)
    assert canary.request(PERIOD_S) is None


def test_it_asks_for_one_token_behind_everybody_and_in_its_own_name() -> None:
    canary = Canary(exact=True)
    canary.request(0.0)
    asked = canary.request(PERIOD_S)
    assert asked is not None
    assert (asked.params.max_tokens, asked.priority, asked.tenant) == (1, PRIORITY, TENANT)
    assert asked.family == asked.request_id != Canary(exact=True)._request_id
    asked.params.check()


def test_its_events_stay_where_they_are_and_others_pass() -> None:
    canary = Canary(exact=True)
    canary.request(0.0)
    assert answered(canary, PERIOD_S, 7) == [OTHERS]
    assert canary.take([OTHERS]) == [OTHERS]


def test_another_answer_than_the_first_one_is_a_group_that_computes_wrongly() -> None:
    canary = Canary(exact=True)
    canary.request(0.0)
    answered(canary, PERIOD_S, 7)
    answered(canary, PERIOD_S * 2, 7)
    with pytest.raises(Unavailable, match="token 8 instead of 7"):
        answered(canary, PERIOD_S * 3, 8)


def test_where_bits_may_differ_only_the_answer_itself_counts() -> None:
    canary = Canary(exact=False)
    canary.request(0.0)
    answered(canary, PERIOD_S, 7)
    answered(canary, PERIOD_S * 2, 8)


def test_its_own_failure_in_a_lost_group_is_told_to_nobody() -> None:
    canary = Canary(exact=True)
    canary.request(0.0)
    asked = canary.request(PERIOD_S)
    assert asked is not None
    assert canary.take([Failed(asked.request_id, Unavailable("lost")), OTHERS]) == [OTHERS]


# ---- in a group


class Idle:
    """An engine's thread that nobody asks for anything."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch, exact: bool = True):
        monkeypatch.setattr(module, "PERIOD_S", 0.1)
        self.events: list[EngineEvent] = []
        self.loads: list[GroupLoad] = []
        self.lost: list[RaylineError] = []
        self.told = threading.Condition()
        self.thread = EngineThread(engine, Canary(exact), self._emit, self._on_lost)
        self.thread.start()

    def _emit(self, events: list[EngineEvent], load: GroupLoad) -> None:
        with self.told:
            self.events += events
            self.loads.append(load)
            self.told.notify_all()

    def _on_lost(self, error: RaylineError) -> None:
        with self.told:
            self.lost.append(error)
            self.told.notify_all()


def test_an_idle_group_asks_itself_and_nobody_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = TimedRanks()
    idle = Idle(engine_over(ranks), monkeypatch)
    with idle.told:
        assert idle.told.wait_for(lambda: len(idle.loads) > 2, 60.0)
    assert idle.events == []
    assert {(load.running, load.waiting, load.free_blocks) for load in idle.loads} == {(0, 0, BLOCKS)}
    asked = request("r", tokens=5)
    idle.thread.post(asked)
    with idle.told:
        assert idle.told.wait_for(lambda: isinstance(idle.events[-1] if idle.events else None, Finished), 60.0)
    assert [event.token_id for event in idle.events if isinstance(event, TokenEvent)] == answer(asked)
    idle.thread.stop()


def test_a_busy_group_does_not_ask_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = TimedRanks(step_s=0.02)
    idle = Idle(engine_over(ranks), monkeypatch)
    idle.thread.post(request("r", tokens=40))
    with idle.told:
        assert idle.told.wait_for(lambda: bool(idle.events) and isinstance(idle.events[-1], Finished), 60.0)
    first = next(n for n, plan in enumerate(ranks.plans) if any(each.prompt_ids == (1, 2, 3) for each in plan.admitted))
    steps = ranks.plans[first : first + 40]
    assert len(steps) == 40 and len({item.sequence for plan in steps for item in plan.slices}) == 1
    idle.thread.stop()


class Decaying(TimedRanks):
    """Ranks whose memory goes bad: from the third result on all tokens are other ones."""

    def next_result(self) -> StepResult:
        result = super().next_result()
        if len(self.plans) < 3:
            return result
        wrong = tuple(Sampled(item.sequence, (item.token_id + 1) % self.vocab_size) for item in result.sampled)
        return StepResult(result.epoch, result.step, wrong)


def test_a_group_that_answers_itself_wrongly_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Idle(engine_over(Decaying()), monkeypatch)
    with idle.told:
        assert idle.told.wait_for(lambda: bool(idle.lost), 60.0)
    assert "computes wrongly" in idle.lost[0].message
    assert not idle.thread.alive
    idle.thread.stop()
    assert idle.events == []
