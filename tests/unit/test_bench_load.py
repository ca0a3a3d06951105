"""Loads: what is asked, when, and of whom."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from poison import in_no_time
from scipy import stats

from rayline.deploy.bench.engine_load import EngineLoad, measure_batch, request_of
from rayline.deploy.bench.load import Piece, TargetModel, closed_loop, open_loop
from rayline.deploy.bench.memory import PeakMemory, memory_of
from rayline.deploy.bench.server_load import LoadPlan, checked_vocab_size, refuse_all_failed
from rayline.deploy.bench.timeline import Timeline
from rayline.deploy.bench.workload import Job, Shape, poisson_arrivals
from rayline.protos.errors import ConfigError, Overloaded, RaylineError
from rayline.protos.events import EngineEvent, Failed, Finished, FinishReason, Overhead, TokenEvent, Usage
from rayline.protos.types import EngineRequest, SamplingParams

SHAPE = Shape(input_tokens=6, output_tokens=3, vocab_size=50, seed=4)


class SlowTarget:
    """Answers each job with its tokens, a pause before each; every `fails`th job fails."""

    def __init__(self, pause_s: float = 0.002, fails: int = 0):
        self._pause_s = pause_s
        self._fails = fails
        self._at_once = 0
        self.most_at_once = 0
        self.seen: list[int] = []

    async def run(self, job: Job) -> AsyncIterator[Piece]:
        self.seen.append(job.number)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            for _ in range(job.output_tokens):
                await asyncio.sleep(self._pause_s)
                yield Piece(1)
                if self._fails and job.number % self._fails == 0:
                    raise Overloaded("the queue is full")
            yield Piece(0, Overhead(total_s=1.0))
        finally:
            self._at_once -= 1


class CountingEngine:
    """Gives every running request a token each step and tells its own time: one second a step."""

    def __init__(self, refuses: frozenset[str] = frozenset(), breaks: frozenset[str] = frozenset()):
        self._left: dict[str, int] = {}
        self._refuses = refuses
        self._breaks = breaks
        self.now_s = 0.0
        self.most_at_once = 0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def add(self, request: EngineRequest) -> None:
        if request.request_id in self._refuses:
            raise Overloaded("the queue is full")
        assert request.params.max_tokens is not None
        self._left[request.request_id] = request.params.max_tokens
        self.most_at_once = max(self.most_at_once, len(self._left))

    @property
    def has_work(self) -> bool:
        return bool(self._left)

    def step(self) -> list[EngineEvent]:
        self.now_s += 1.0
        events: list[EngineEvent] = []
        for request_id in list(self._left):
            if request_id in self._breaks:
                del self._left[request_id]
                events.append(Failed(request_id, Overloaded("lost")))
                continue
            events.append(TokenEvent(request_id, 0, 1))
            self._left[request_id] -= 1
            if not self._left[request_id]:
                del self._left[request_id]
                events.append(Finished(request_id, FinishReason.LENGTH, Usage(1, 1)))
        return events


def test_jobs_repeat_with_their_seed_and_share_no_prompt() -> None:
    jobs = SHAPE.jobs(40)
    assert jobs == SHAPE.jobs(40)
    assert all(len(job.prompt_ids) == 6 and job.output_tokens == 3 for job in jobs)
    assert all(0 <= token < 50 for job in jobs for token in job.prompt_ids)
    prompts = {job.prompt_ids for job in (*jobs, *SHAPE.jobs(40, repeat=1), *Shape(6, 3, 50, seed=5).jobs(40))}
    assert len(prompts) == 120


def test_arrivals_are_a_poisson_process() -> None:
    times = list(itertools.islice(poisson_arrivals(20.0, seed=9), 20_000))
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    assert min(gaps) > 0
    assert stats.kstest(gaps, stats.expon(scale=1 / 20.0).cdf).pvalue > 1e-3
    in_each_second = [sum(second <= t < second + 1 for t in times[:2000]) for second in range(80)]
    assert stats.kstest(in_each_second, stats.poisson(20).cdf).statistic < 0.2
    assert times[:50] == list(itertools.islice(poisson_arrivals(20.0, seed=9), 50))


async def test_a_closed_loop_never_runs_more_than_its_callers() -> None:
    target = SlowTarget()
    timelines = await closed_loop(target, SHAPE.jobs(20), 3)
    assert target.most_at_once == 3
    assert sorted(target.seen) == list(range(20))
    assert len(timelines) == 20
    assert all(t.ok and t.output_tokens == 3 and t.prompt_tokens == 6 for t in timelines)
    assert all(t.due_s <= t.sent_s <= t.arrivals[0].at_s <= t.ended_s for t in timelines)
    assert all(t.overhead == Overhead(total_s=1.0) for t in timelines)


def test_an_open_loop_sends_on_time_however_many_are_running() -> None:
    target = SlowTarget(pause_s=0.05)
    arrivals_s = [0.01 * n for n in range(10)]

    async def run() -> list[Timeline]:
        return await open_loop(target, SHAPE.jobs(10), arrivals_s, asyncio.get_running_loop().time)

    timelines = in_no_time(run())
    assert target.most_at_once == 10
    due = [t.due_s - timelines[0].due_s for t in timelines]
    assert due == pytest.approx(arrivals_s)
    assert [t.sent_s for t in timelines] == pytest.approx([t.due_s for t in timelines])


async def test_a_request_that_fails_is_noted_and_the_load_goes_on() -> None:
    timelines = await closed_loop(SlowTarget(fails=4), SHAPE.jobs(8), 2)
    failed = [t for t in timelines if not t.ok]
    assert len(failed) == 2
    assert {t.error for t in failed} == {"Overloaded: the queue is full"}


async def test_a_plan_warms_up_with_other_prompts_and_then_runs_its_load() -> None:
    target = SlowTarget()
    plan = LoadPlan(SHAPE, requests=5, concurrency=2, rate_per_s=None, warm_up=2)
    assert len(await plan.run_on(target)) == 5
    assert target.seen[:2] == [0, 1]
    assert len(target.seen) == 7
    open_plan = LoadPlan(SHAPE, requests=5, concurrency=1, rate_per_s=1000.0, warm_up=0)
    assert len(await open_plan.run_on(target)) == 5


async def test_a_warm_up_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(Overloaded):
        await LoadPlan(SHAPE, 5, 2, None, warm_up=1).run_on(SlowTarget(fails=1))


def test_a_bare_engine_runs_the_same_closed_loop() -> None:
    engine = CountingEngine()
    timelines = EngineLoad(engine, 0.0, engine.clock, engine.sleep).closed_loop(SHAPE.jobs(5), 2)
    assert engine.most_at_once == 2
    assert [t.e2e_s for t in timelines] == [3.0] * 5
    assert [t.due_s for t in timelines] == [0.0, 0.0, 3.0, 3.0, 6.0]
    assert all(t.ttft_s == 1.0 and t.tpot_s == 1.0 for t in timelines)


def test_a_bare_engine_runs_the_same_open_loop() -> None:
    engine = CountingEngine()
    timelines = EngineLoad(engine, 0.0, engine.clock, engine.sleep).open_loop(SHAPE.jobs(3), [0.5, 1.0, 20.0])
    assert [t.due_s for t in timelines] == [0.5, 1.0, 20.0]
    assert [t.ended_s for t in timelines] == [3.5, 4.5, 23.0]
    assert engine.most_at_once == 2


def test_a_bare_engine_that_refuses_or_loses_a_request_goes_on_with_the_others() -> None:
    engine = CountingEngine(refuses=frozenset({"bench-1"}), breaks=frozenset({"bench-2"}))
    timelines = EngineLoad(engine, 0.0, engine.clock, engine.sleep).closed_loop(SHAPE.jobs(4), 2)
    errors = sorted(t.error or "" for t in timelines)
    assert errors == ["", "", "Overloaded: lost", "Overloaded: the queue is full"]


def test_a_batch_is_timed_in_two_parts() -> None:
    engine = CountingEngine()
    run = measure_batch(engine, SHAPE.jobs(4), SamplingParams(temperature=0.0), engine.clock)
    assert run.prompt_tokens == 24
    assert run.prefill_s == 1.0
    assert (run.decode_tokens, run.decode_steps, run.decode_s) == (8, 2, 2.0)


def test_a_batch_that_loses_a_request_is_no_measurement() -> None:
    with pytest.raises(Overloaded, match="lost"):
        engine = CountingEngine(breaks=frozenset({"bench-2"}))
        measure_batch(engine, SHAPE.jobs(4), SamplingParams(temperature=0.0), engine.clock)


def test_a_job_asks_for_exactly_its_tokens() -> None:
    request = request_of(SHAPE.jobs(3)[2], SamplingParams(temperature=0.5, top_p=0.8))
    request.params.check()
    assert request.params.max_tokens == 3
    assert request.params.ignore_eos
    assert request.params.seed == 2
    assert (request.params.temperature, request.params.top_p) == (0.5, 0.8)


def test_lengths_that_do_not_fit_the_model_are_refused_before_the_load() -> None:
    model = TargetModel("small", max_model_len=100, vocab_size=30)
    assert checked_vocab_size(model, None, 60, 40) == 30
    assert checked_vocab_size(model, 7, 60, 40) == 7
    with pytest.raises(ConfigError, match="input_tokens"):
        checked_vocab_size(model, None, 61, 40)
    assert checked_vocab_size(TargetModel("silent", 0, 0), None, 60, 40) == 256


def test_a_run_without_one_success_is_an_error() -> None:
    lost = Timeline(0.0, 0.0, (), 1.0, 4, "Unavailable: nobody there")
    with pytest.raises(RaylineError, match="all 2 requests failed, the first with Unavailable: nobody there"):
        refuse_all_failed([lost, lost])


def test_peak_memory_includes_child_processes() -> None:
    hog = "import sys; block = bytearray(b'x') * 60_000_000; print('ready', flush=True); sys.stdin.read()"
    before = memory_of(os.getpid())
    with PeakMemory(os.getpid(), period_s=0.02) as memory:
        child = subprocess.Popen([sys.executable, "-c", hog], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with child:
            assert child.stdout is not None
            child.stdout.readline()
            during = memory_of(os.getpid())
            child.communicate()
    assert during.pss_bytes > before.pss_bytes + 50_000_000
    assert memory.peak.rss_bytes >= 60_000_000
    assert memory_of(child.pid).rss_bytes == 0
