"""Long prompts beside running streams: the estimator by example, the whole scheduler on a machine that is simulated."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.deploy.bench.report import percentile
from rayline.protos.events import EngineEvent, TokenEvent
from rayline.protos.plan import Plan, Sampled, StepResult
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.engine import Engine
from rayline.workers.pipeline import RankStats
from rayline.workers.scheduling.blocks import BlockPool
from rayline.workers.scheduling.pace import FIRST_TOKENS, PROBE_STEPS, Allowance, Costs, Fit, Pace, Work, attended
from rayline.workers.scheduling.scheduler import Scheduler, SchedulerLimits
from rayline.workers.scheduling.sequence import Sequence

STRETCH = 2.0


# ---- the parts


@given(st.integers(0, 100_000), st.integers(1, 5_000))
def test_what_a_chunk_attends_to_is_the_sum_over_its_positions(start: int, count: int) -> None:
    exact = sum(range(start, start + count))
    assert attended(start, count) == pytest.approx(exact + count / 2)


@given(st.floats(1e-6, 1e-2), st.floats(0, 1e-6), st.floats(1e-3, 10), st.integers(0, 100_000))
def test_a_chunk_of_so_many_tokens_takes_so_many_seconds(
    token_s: float, attended_s: float, seconds: float, start: int
) -> None:
    costs = Costs(token_s, attended_s)
    tokens = costs.tokens(seconds, start)
    assert token_s * tokens + attended_s * tokens * (start + tokens / 2) == pytest.approx(seconds)


def test_the_fit_finds_both_costs_when_the_context_grows() -> None:
    fit = Fit()
    for step in range(60):
        work = Work(4).with_prompt(64 * step, 64)
        extra = 1e-3 * 64 + 2e-7 * work.attended
        fit.add(work, extra, 0.1 + extra)
    assert fit.costs is not None
    assert fit.costs.token_s == pytest.approx(1e-3)
    assert fit.costs.attended_s == pytest.approx(2e-7)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 500), st.floats(0, 5)), min_size=1, max_size=30))
def test_no_sample_makes_a_cost_negative(samples: list[tuple[int, int, float]]) -> None:
    fit = Fit()
    for start, count, extra_s in samples:
        fit.add(Work(1).with_prompt(start, count), extra_s, extra_s + 0.1)
    assert fit.costs is not None and fit.costs.token_s >= 0.0 and fit.costs.attended_s >= 0.0


def test_a_plan_always_has_a_token_for_a_prompt_and_only_the_first_gets_it() -> None:
    allowance = Allowance(Costs(1.0, 0.0), seconds=0.5)
    assert allowance.tokens(0) == 1
    allowance.take(0, 1)
    assert allowance.is_spent and allowance.tokens(0) == 0


def test_without_a_limit_everything_is_allowed() -> None:
    assert Pace(float("inf")).allowance(3) == Allowance()
    assert Allowance().tokens(10**6) == float("inf")


def test_streams_that_were_never_measured_are_measured_first() -> None:
    pace = Pace(STRETCH)
    assert pace.allowance(2).tokens(0) == 0
    pace.observe(Work(2), 0.1)
    assert pace.allowance(2).tokens(0) == FIRST_TOKENS


def test_a_step_in_so_many_looks_at_the_streams_alone() -> None:
    pace = Pace(STRETCH)
    allowed = []
    for _ in range(10 * PROBE_STEPS):
        tokens = min(64, int(pace.allowance(2).tokens(0)))
        pace.observe(Work(2).with_prompt(0, tokens) if tokens else Work(2), 0.1 + 1e-3 * tokens)
        allowed.append(tokens)
    assert allowed.count(0) == pytest.approx(10, abs=1)


def test_a_pause_of_the_machine_does_not_stop_prompts() -> None:
    pace = Pace(STRETCH)
    for step in range(100):
        tokens = int(pace.allowance(2).tokens(0))
        pace.observe(Work(2).with_prompt(0, tokens) if tokens else Work(2), 5.0 if step == 60 else 0.1 + 1e-3 * tokens)
    assert pace.allowance(2).tokens(0) >= 20


# ---- a scheduler on a machine of known speed


@dataclass
class Machine:
    """A cost model: seconds of a step by its decode rows, its prompt tokens and what those attend to."""

    decode_s: float = 0.1
    row_s: float = 0.002
    token_s: float = 5e-3
    attended_s: float = 2e-7
    noise: float = 0.03
    free_tokens: int = 0  # that cost nothing: the weights are read anyway
    source: random.Random = field(default_factory=lambda: random.Random(1))

    def step_s(self, plan: Plan) -> float:
        chunks = [item for item in plan.slices if item.count > 1 or not item.samples]
        work = Work(decodes=len(plan.slices) - len(chunks))
        for item in chunks:
            work = work.with_prompt(item.start, item.count)
        tokens = max(0, work.prompt_tokens - self.free_tokens)
        exact = self.decode_s + self.row_s * work.decodes + self.token_s * tokens + self.attended_s * work.attended
        return exact * (1 + self.source.gauss(0, self.noise))


class TimedRanks:
    """A Pipeline of stages that take the machine's time. Stages overlap: each holds one plan at a time."""

    def __init__(self, machine: Machine, stages: int):
        self.machine = machine
        self.window = stages + 1 if stages > 1 else 1
        self.free_s = [0.0] * stages
        self.done: deque[tuple[float, StepResult]] = deque()
        self.plans: list[Plan] = []
        self.now_s = 0.0

    @property
    def in_flight(self) -> int:
        return len(self.done)

    def submit(self, plan: Plan) -> None:
        self.plans.append(plan)
        step_s, ready_s = self.machine.step_s(plan) / len(self.free_s), self.now_s
        for stage, free_s in enumerate(self.free_s):
            ready_s = self.free_s[stage] = max(ready_s, free_s) + step_s
        sampled = tuple(Sampled(item.sequence, 1) for item in plan.slices if item.samples)
        self.done.append((ready_s, StepResult(plan.epoch, plan.step, sampled)))

    def next_result(self) -> StepResult:
        done_s, result = self.done.popleft()
        self.now_s = max(self.now_s, done_s)
        return result

    def check(self) -> None:
        """They do not fail."""

    def rank_stats(self) -> tuple[RankStats, ...]:
        return ()

    def close(self) -> None:
        """There is nothing to end."""


@dataclass
class Run:
    """Streams that run, and a long prompt in their midst."""

    machine: Machine
    prompt: int = 6_000
    streams: int = 4
    stages: int = 1
    stretch: float = STRETCH
    before: int = 40

    def __post_init__(self) -> None:
        length, tokens = 16_384, 4_000
        blocks = (self.prompt + self.streams * tokens) // 16 + 40
        self.ranks = TimedRanks(self.machine, self.stages)
        limits = SchedulerLimits(
            16, length, 512, 16, 100, depth=self.stages, prefix_caching=False, decode_stretch=self.stretch
        )
        scheduler = Scheduler(limits, BlockPool(blocks), frozenset())
        self.engine = Engine(scheduler, self.ranks, 50, lambda: self.ranks.now_s)
        self.last_s: dict[str, float] = {}
        self.gaps: list[float] = []
        for number in range(self.streams):
            self.engine.add(self.request(f"s{number}", 4, tokens))

    def request(self, name: str, prompt: int, tokens: int) -> EngineRequest:
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=0)
        return EngineRequest(name, tuple(place % 40 for place in range(prompt)), params)

    def until(self, is_done: Callable[[list[EngineEvent]], bool]) -> list[float]:
        """Step until an event is there; the gaps between tokens of each stream on the way."""
        gaps: list[float] = []
        while True:
            events = self.engine.step()
            for event in events:
                if isinstance(event, TokenEvent):
                    if event.request_id in self.last_s:
                        gaps.append(self.ranks.now_s - self.last_s[event.request_id])
                    self.last_s[event.request_id] = self.ranks.now_s
            if is_done(events):
                return gaps

    def measure(self) -> tuple[list[float], list[float], float]:
        """Gaps before the long prompt, gaps beside it, seconds until its first token."""
        before = self.until(lambda _: len(self.ranks.plans) > self.before)
        began_s = self.ranks.now_s
        self.engine.add(self.request("long", self.prompt, 2))
        beside = self.until(lambda events: any(e.request_id == "long" for e in events))
        return sorted(before[self.streams :]), sorted(beside), self.ranks.now_s - began_s


MACHINES = {
    "small": Machine(),
    "heavy attention": Machine(token_s=2e-3, attended_s=1e-6),
    "free tokens": Machine(free_tokens=24),
    "noisy": Machine(noise=0.08),
    "fast prefill": Machine(token_s=1e-4, attended_s=1e-8),
}


@pytest.mark.parametrize("name", MACHINES)
def test_streams_keep_their_pace_beside_a_long_prompt(name: str) -> None:
    run = Run(MACHINES[name])
    before, beside, _ = run.measure()
    assert len(beside) > 40
    assert percentile(beside, 99) <= STRETCH * percentile(before, 50)


@pytest.mark.parametrize("stages", [2, 3])
def test_streams_keep_their_pace_when_stages_overlap(stages: int) -> None:
    before, beside, _ = Run(Machine(), stages=stages).measure()
    assert percentile(beside, 99) <= STRETCH * percentile(before, 50)


@pytest.mark.parametrize("name", ["small", "heavy attention", "noisy"])
def test_a_long_prompt_gets_a_quarter_of_the_machine(name: str) -> None:
    """Half of the time would be the whole stretch; the margin for the 99th percentile and the probes take theirs."""
    machine = MACHINES[name]
    _, _, took_s = Run(machine).measure()
    alone_s = machine.token_s * 6_000 + machine.attended_s * 6_000**2 / 2
    assert alone_s / took_s >= 0.25


def test_a_token_that_is_dearer_than_a_step_leaves_the_streams_their_pace_in_the_mean() -> None:
    """Far into a long prompt a single token may take longer than all streams together; then it comes now and then."""
    machine = Machine(decode_s=0.02, row_s=0.0, token_s=0.1, attended_s=0.0)
    before, beside, took_s = Run(machine, prompt=200).measure()
    assert percentile(beside, 50) <= 1.2 * percentile(before, 50)
    assert sum(beside) / len(beside) <= 1.1 * STRETCH * percentile(before, 50)
    assert machine.token_s * 200 / took_s >= 0.4, "the prompt has its half of the time"


def test_the_dearest_token_comes_at_last() -> None:
    machine = Machine(decode_s=0.001, row_s=0.0, token_s=0.5, attended_s=0.0)
    run = Run(machine, prompt=30)
    run.measure()
    assert len(run.ranks.plans) <= run.before + (PROBE_STEPS + 2) * 30


def test_without_the_limit_streams_would_wait_many_times_as_long() -> None:
    """So that the tests above can fail."""
    before, beside, _ = Run(Machine(), stretch=float("inf")).measure()
    assert percentile(beside, 99) > 10 * percentile(before, 50)


def test_a_prompt_alone_has_the_whole_step() -> None:
    run = Run(Machine(), streams=0)
    run.engine.add(run.request("long", 4_000, 2))
    run.until(lambda events: bool(events))
    assert max(plan.tokens for plan in run.ranks.plans) == 512
    assert len(run.ranks.plans) == -(-4_000 // 512)


def moved(is_stalled: bool) -> tuple[int, list[float]]:
    """Four streams of another group go on beside four that run: steps until all have, and the gaps of those."""
    run = Run(Machine())
    run.until(lambda _: len(run.ranks.plans) > 60)
    steps = len(run.ranks.plans)
    going = {f"m{number}" for number in range(4)}
    for name in going:
        run.engine.add(replace(run.request(name, 200, 8), output_ids=(1, 2, 3), is_stalled=is_stalled))

    def all_go_on(events: list[EngineEvent]) -> bool:
        going.difference_update(event.request_id for event in events)
        return not going

    gaps = run.until(all_go_on)
    return len(run.ranks.plans) - steps, sorted(gaps)


def test_streams_of_a_lost_group_do_not_wait_for_the_pace_of_others() -> None:
    steps, _ = moved(is_stalled=True)
    assert steps <= 2 + 4 * 203 // 512 + 1, "whole steps, but for the first"


def test_streams_that_are_moved_on_purpose_keep_the_pace_of_others() -> None:
    steps, gaps = moved(is_stalled=False)
    assert steps > 20 and percentile(gaps, 99) <= STRETCH * 0.108 * 1.1


def test_a_stream_that_goes_on_again_stands_still_no_more() -> None:
    request = replace(Run(Machine()).request("r", 4, 8), output_ids=(1, 2), is_stalled=True)
    sequence = Sequence(0, request, 64, 0.0, 0, output_ids=[1, 2])
    assert sequence.is_stalled
    sequence.output_ids.append(3)
    assert not sequence.is_stalled


def test_a_larger_stretch_gives_prompts_more() -> None:
    times = [Run(Machine(), stretch=stretch).measure()[2] for stretch in (1.5, 2.0, 4.0)]
    assert times == sorted(times, reverse=True)


def test_short_prompts_share_what_the_plan_has_left() -> None:
    run = Run(Machine())
    run.until(lambda _: len(run.ranks.plans) > 60)
    for number in range(8):
        run.engine.add(run.request(f"p{number}", 12, 2))
    seen: set[str] = set()

    def all_began(events: list[EngineEvent]) -> bool:
        seen.update(event.request_id for event in events if event.request_id[0] == "p")
        return len(seen) == 8

    gaps = sorted(run.until(all_began))
    assert percentile(gaps, 99) <= 2 * STRETCH * 0.108, "one token each is the least"


@settings(max_examples=12, deadline=None)
@given(
    st.floats(0.01, 0.5),
    st.floats(1e-4, 2e-2),
    st.floats(0, 1e-6),
    st.floats(0, 0.05),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_whatever_the_machine_costs_streams_keep_their_pace(
    decode_s: float, token_s: float, attended_s: float, noise: float, streams: int, stages: int
) -> None:
    """Unless a single token takes longer than what may be spent, which is what is spent then. A tenth is for guesses:
    the first chunks are taken before anything is known of their cost."""
    machine = Machine(decode_s, decode_s / 50, token_s, attended_s, noise)
    before, beside, _ = Run(machine, prompt=2_000, streams=streams, stages=stages).measure()
    least_s = 2 * (token_s + attended_s * 2_000)
    if least_s < 0.3 * decode_s and len(beside) > 100:
        assert percentile(beside, 99) <= STRETCH * percentile(before, 50) * (1.1 + noise)
