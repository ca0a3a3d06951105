"""Requests with a time limit in the scheduler: ended when it passes, refused when it cannot be met."""

from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import Bench, alone, limits

from rayline.protos.errors import DeadlineExceeded, Overloaded, RaylineError
from rayline.protos.events import Failed, Finished, TokenEvent
from rayline.protos.plan import Plan
from rayline.protos.types import EngineRequest, SamplingParams, TokenRules
from rayline.workers.scheduling.deadlines import SPARE, Deadlines
from rayline.workers.scheduling.pace import Work
from rayline.workers.scheduling.sequence import Sequence
from rayline.workers.scheduling.speed import SURE, Speed, sure_tokens


@dataclass
class TimedBench(Bench):
    """Each step takes `step_s` of its clock, and ends what is late first, as the engine does."""

    step_s: float = 0.01
    deadlines: dict[str, float] = field(default_factory=dict)

    def ask(self, request_id: str, prompt: int = 4, timeout_s: float | None = None, **params: object) -> None:
        sampling = SamplingParams(**({"max_tokens": 4, "ignore_eos": True, "seed": 0} | params))  # type: ignore[arg-type]
        self.submit(EngineRequest(request_id, tuple(range(1, prompt + 1)), sampling, timeout_s=timeout_s))

    def submit(self, request: EngineRequest) -> None:
        self.scheduler.add(request, self.now_s)
        if request.timeout_s is not None:
            self.deadlines[request.request_id] = self.now_s + request.timeout_s

    def commit(self) -> list[object]:  # type: ignore[override]
        self.now_s += self.step_s
        events = self.scheduler.commit(self.ranks.next_result(), self.step_s)
        self.events += events
        return list(events)

    def step(self) -> Plan | None:
        self.events += self.scheduler.expire(self.now_s)
        self.check()
        plan = super().step()
        return plan

    def plan(self) -> Plan | None:
        plan = super().plan()
        late = {name for name, deadline_s in self.deadlines.items() if deadline_s <= self.now_s}
        numbers = {s.number for s in self.scheduler.live if s.request.request_id in late}
        assert plan is None or not numbers & {item.sequence for item in plan.slices}, "a late request is in a plan"
        return plan

    def error(self, request_id: str) -> RaylineError:
        (end,) = self.ends(request_id)
        assert isinstance(end, Failed)
        return end.error


def test_a_running_request_ends_when_its_time_is_up_and_its_blocks_are_free_before_the_next_plan() -> None:
    bench = TimedBench(step_s=1.0)
    bench.ask("late", prompt=10, timeout_s=4.5, max_tokens=40)
    for _ in range(5):
        bench.step()
    assert not bench.ends("late") and bench.pool.available < bench.blocks
    bench.events += bench.scheduler.expire(bench.now_s)
    assert bench.pool.available == bench.blocks
    error = bench.error("late")
    assert isinstance(error, DeadlineExceeded) and error.field == "timeout_s"
    assert "timeout_s = 4.5 have passed" in error.message and "tokens of output" in error.message
    bench.run()
    assert len(bench.ends("late")) == 1


def test_a_waiting_request_ends_too_and_never_runs() -> None:
    bench = TimedBench(limits(max_running=1), step_s=1.0)
    bench.ask("first", max_tokens=20)
    bench.ask("waits", timeout_s=5.0)
    bench.run()
    assert bench.tokens("waits") == [] and "its turn" in bench.error("waits").message
    assert isinstance(bench.finished("first"), Finished)
    assert bench.scheduler.load().waiting_tokens == 0


def test_a_request_that_ends_in_time_knows_nothing_of_its_deadline() -> None:
    bench = TimedBench()
    bench.ask("in time", timeout_s=1.0)
    bench.run()
    assert bench.tokens("in time") == alone((1, 2, 3, 4), bench_params(), 64)
    bench.now_s += 10.0
    assert bench.scheduler.expire(bench.now_s) == []


def bench_params() -> SamplingParams:
    return SamplingParams(max_tokens=4, ignore_eos=True, seed=0)


def test_an_id_that_is_used_again_has_the_new_deadline_alone() -> None:
    bench = TimedBench(step_s=0.1)
    bench.ask("same", timeout_s=5.0)
    bench.run()
    bench.ask("same", timeout_s=100.0, max_tokens=60)
    bench.now_s = 6.0
    assert bench.scheduler.expire(bench.now_s) == []
    bench.run()
    assert [type(end) for end in bench.ends("same")] == [Finished, Finished]


def test_the_first_choice_that_is_late_leaves_the_prompt_to_the_next_one() -> None:
    bench = TimedBench(limits(max_step_tokens=4), step_s=1.0)
    for number, timeout_s in enumerate((1.5, None, None)):
        request = EngineRequest(f"r/{number}", tuple(range(12)), bench_params(), family="r", timeout_s=timeout_s)
        bench.submit(request)
    bench.run()
    assert isinstance(bench.error("r/0"), DeadlineExceeded)
    assert bench.tokens("r/1") == bench.tokens("r/2") == alone(tuple(range(12)), bench_params(), 64)


def test_a_beam_search_ends_with_all_its_beams() -> None:
    bench = TimedBench(step_s=1.0)
    bench.ask("search", timeout_s=3.5, beam_width=3, n=1, max_tokens=20)
    bench.run()
    assert isinstance(bench.error("search"), DeadlineExceeded) and bench.pool.available == bench.blocks


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    deadlines, live = Deadlines(), dict[str, Sequence]()
    for number in range(10_000):
        request = EngineRequest(f"r{number}", (1,), bench_params())
        live = {request.request_id: Sequence(number, request, 8, 0.0, number)}
        deadlines.add(live[request.request_id], 1e9, live)
        assert len(deadlines) <= SPARE + 2 * len(live) + 1
    assert deadlines.due(2e9, live) == ["r9999"] and len(deadlines) == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_mixture_with_deadlines_keeps_all_promises(data: st.DataObject) -> None:
    """One end each; who is late is in no later plan and holds no block; all others get the tokens of a lone run."""
    chosen = limits(
        depth=data.draw(st.integers(1, 3)),
        block_tokens=data.draw(st.integers(1, 5)),
        max_step_tokens=data.draw(st.integers(4, 20)),
        max_running=data.draw(st.integers(2, 5)),
        max_model_len=32,
        prefix_caching=data.draw(st.booleans()),
    )
    fewest = -(-chosen.max_model_len // chosen.block_tokens)
    bench = TimedBench(chosen, blocks=data.draw(st.integers(2 * fewest, 4 * fewest)), step_s=1.0)
    asked = _play(bench, data)
    assert bench.pool.available == bench.blocks and bench.scheduler.load().waiting_tokens == 0
    for request_id, request in asked.items():
        (end,) = bench.ends(request_id)
        got = bench.tokens(request_id)
        assert got == alone(request.prompt_ids, request.params, chosen.max_model_len)[: len(got)]
        if isinstance(end, Failed):
            assert isinstance(end.error, DeadlineExceeded) and request.timeout_s is not None


def _play(bench: TimedBench, data: st.DataObject) -> dict[str, EngineRequest]:
    """Requests, pauses, aborts and steps in any order, then steps to the end; the requests that were accepted."""
    asked: dict[str, EngineRequest] = {}
    for number in range(data.draw(st.integers(1, 25))):
        match data.draw(st.sampled_from(["add", "add", "step", "step", "pause", "abort"])):
            case "add":
                for request in _draw(data, f"r{number}"):
                    with suppress(Overloaded, DeadlineExceeded):
                        bench.submit(request)
                        asked[request.request_id] = request
            case "pause":
                bench.now_s += 3.0
            case "abort" if asked:
                bench.events += bench.scheduler.abort(data.draw(st.sampled_from(sorted(asked))))
            case _:
                bench.step()
        bench.check()
    bench.run()
    return asked


def _draw(data: st.DataObject, name: str) -> list[EngineRequest]:
    """A request, three choices of one, or a beam search."""
    prompt = tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=20)))
    width, count = data.draw(st.sampled_from([(0, 1), (0, 1), (0, 3), (2, 1)]))
    params = SamplingParams(max_tokens=data.draw(st.integers(1, 12)), ignore_eos=not width, seed=0, beam_width=width)
    timeout_s = data.draw(st.sampled_from([None, 0.5, 2.0, 6.0, 15.0]))
    family, tenant = name if count > 1 else "", "ab"[len(prompt) % 2]
    return [
        EngineRequest(f"{name}/{n}", prompt, params, family=family, timeout_s=timeout_s, tenant=tenant)
        for n in range(count)
    ]


@given(st.lists(st.booleans(), min_size=2, max_size=12))
def test_deadlines_change_nobodys_turn(hurried: list[bool]) -> None:
    """Requests start in the order in which they came, whether they are in a hurry or not: nobody starves for it."""
    starts = []
    for timeouts in ([1e6 if one else None for one in hurried], [None] * len(hurried)):
        bench = TimedBench(limits(max_running=2))
        for number, timeout_s in enumerate(timeouts):
            bench.ask(f"r{number}", timeout_s=timeout_s)
        bench.run()
        starts.append([event.request_id for event in bench.events if isinstance(event, TokenEvent)])
    assert starts[0] == starts[1]


# ---- what is refused


def test_of_a_group_that_has_computed_nothing_anything_is_hoped_for() -> None:
    assert Speed().least_s(100_000, 1000, 512) == 0.0


def test_the_least_time_is_that_of_the_fastest_of_the_last_steps() -> None:
    speed = Speed()
    for step_s in (0.5, 0.02, 0.03):
        speed.observe(Work(prompt_tokens=100), step_s)
        speed.observe(Work(decodes=3), step_s)
    assert speed.least_s(100, 1, 512) == pytest.approx(SURE * 0.02)
    assert speed.least_s(100, 11, 512) == pytest.approx(SURE * (0.02 + 10 * 0.02))
    for _ in range(20):
        speed.observe(Work(prompt_tokens=100), 1.0)
    assert speed.least_s(100, 1, 512) == pytest.approx(SURE * 1.0), "a machine that has become slower is believed"


def test_small_chunks_tell_nothing_of_large_ones() -> None:
    speed = Speed()
    speed.observe(Work(prompt_tokens=4), 0.1)
    assert speed.least_s(4, 1, 512) > 0.0
    assert speed.least_s(400, 1, 512) == 0.0
    assert speed.least_s(400, 1, 4) > 0.0, "where chunks are small, small ones count"


@given(st.lists(st.tuples(st.integers(0, 600), st.floats(1e-6, 10.0)), max_size=30), st.integers(1, 5000))
def test_the_bound_never_exceeds_what_like_steps_took(steps: list[tuple[int, float]], tokens: int) -> None:
    speed = Speed()
    for prompt_tokens, step_s in steps:
        speed.observe(Work(1, prompt_tokens), step_s)
    chunk = min(tokens, 512)
    rates = [step_s / n for n, step_s in steps if n and n.bit_length() >= chunk.bit_length()]
    assert speed.least_s(tokens, 1, 512) <= SURE * tokens * max(rates, default=0.0) * (1 + 1e-9)


def test_only_what_cannot_come_sooner_counts_as_output() -> None:
    request = EngineRequest("r", (1, 2, 3), SamplingParams(max_tokens=50, seed=0))
    assert sure_tokens(request, 64) == 1
    ends_late = replace(request, params=SamplingParams(max_tokens=50, ignore_eos=True, seed=0))
    assert sure_tokens(ends_late, 64) == 50
    assert sure_tokens(ends_late, 30) == 27
    assert sure_tokens(replace(ends_late, output_ids=(4,) * 45), 64) == 5
    for early in (
        replace(ends_late, params=replace(ends_late.params, stop=("x",))),
        replace(ends_late, params=replace(ends_late.params, stop_token_ids=(3,))),
        replace(ends_late, rules=TokenRules(grammar="a")),
    ):
        assert sure_tokens(early, 64) == 1
    at_least = replace(request, params=SamplingParams(max_tokens=50, min_tokens=20, seed=0))
    assert sure_tokens(at_least, 64) == 20


def warm(**changes: object) -> TimedBench:
    """A group that has taken a second for each of its last steps."""
    bench = TimedBench(limits(**changes), step_s=1.0)
    bench.ask("before", prompt=15, max_tokens=4)
    bench.run()
    return bench


def test_what_cannot_be_done_in_time_by_anybody_is_refused_at_once() -> None:
    bench = warm()
    with pytest.raises(
        DeadlineExceeded, match=r"timeout_s = 5 is too short: 4 tokens of prompt and 30 of output"
    ) as no:
        bench.ask("hopeless", timeout_s=5.0, max_tokens=30)
    assert no.value.field == "timeout_s" and no.value.retry_after_s is None
    assert not bench.scheduler.has_work
    bench.ask("may stop early", timeout_s=5.0, max_tokens=30, ignore_eos=False)
    bench.ask("has time", timeout_s=50.0, max_tokens=30)


def test_a_cached_prompt_takes_no_time() -> None:
    bench = warm(max_step_tokens=8)
    prompt = 40
    with pytest.raises(DeadlineExceeded):
        bench.ask("cold", prompt=prompt, timeout_s=1.5, max_tokens=1)
    bench.ask("warms the cache", prompt=prompt, max_tokens=1)
    bench.run()
    bench.ask("warm", prompt=prompt, timeout_s=1.5, max_tokens=1)
    bench.run()
    assert len(bench.tokens("warm")) == 1


def test_a_time_that_has_passed_already_is_refused() -> None:
    for timeout_s in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded, match="had passed before"):
            TimedBench().ask("late", timeout_s=timeout_s)


def test_a_queue_that_takes_longer_than_the_request_has_says_when_to_come_again() -> None:
    bench = TimedBench(limits(max_running=1), step_s=0.1)
    for number in range(20):
        bench.ask(f"r{number}", prompt=4, max_tokens=4)
    for _ in range(40):
        bench.step()
    rate = bench.scheduler.load().tokens_per_s
    assert 5.0 < rate < 15.0, "four tokens start every four steps"
    ahead = bench.scheduler.load().waiting_tokens
    assert ahead > 20
    with pytest.raises(Overloaded, match="too short for the queue") as no:
        bench.ask("hurried", timeout_s=2.0)
    assert no.value.field == "timeout_s"
    assert no.value.retry_after_s == pytest.approx((ahead - 2.0 * rate) / rate, rel=0.4)
    bench.scheduler.add(EngineRequest("first", (1,), bench_params(), priority=-1, timeout_s=2.0), bench.now_s)
    bench.scheduler.add(EngineRequest("other", (1,), bench_params(), tenant="b", timeout_s=2.0), bench.now_s)
    bench.ask("patient", timeout_s=500.0)
