"""Fair shares: the counters by example, and the bound of the paper over a scheduler that is never idle."""

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import Bench, limits

from rayline.protos.events import TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.scheduling import tenants
from rayline.workers.scheduling.tenants import CACHED_COST, INPUT_COST, MAX_TENANTS, OUTPUT_COST, TenantCounters


def test_a_counter_is_service_over_weight() -> None:
    counters = TenantCounters({"half": 0.5, "double": 2.0})
    for tenant in ("half", "double", "plain"):
        counters.charge(tenant, 10.0)
    assert [counters.counter(t) for t in ("half", "double", "plain", "new")] == [20.0, 5.0, 10.0, 0.0]


def test_a_tenant_that_comes_back_gets_nothing_for_the_time_it_was_away() -> None:
    counters = TenantCounters()
    counters.enter("busy")
    counters.enter("busier")
    counters.charge("busy", 100.0)
    counters.charge("busier", 300.0)
    counters.enter("back")
    assert counters.counter("back") == 100.0


def test_a_tenant_keeps_its_debts_while_it_is_away() -> None:
    counters = TenantCounters()
    counters.enter("greedy")
    counters.charge("greedy", 500.0)
    counters.leave("greedy")
    counters.enter("other")
    counters.enter("greedy")
    assert counters.counter("greedy") == 500.0


def test_after_an_idle_time_nobody_starts_below_the_last_one_served() -> None:
    counters = TenantCounters()
    counters.enter("last")
    counters.charge("last", 50.0)
    counters.leave("last")
    counters.enter("new")
    assert counters.counter("new") == 50.0


def test_only_so_many_tenants_are_remembered_and_never_one_forgotten_that_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tenants, "MAX_TENANTS", 8)
    assert MAX_TENANTS > 1000
    counters = TenantCounters()
    counters.enter("waits")
    for number in range(100):
        counters.enter(f"t{number}")
        counters.charge(f"t{number}", float(number))
        counters.leave(f"t{number}")
    assert len(counters._counters) <= 9
    counters.charge("waits", 1.0)
    assert counters.counter("waits") == 1.0
    assert counters.counter("t99") > 0.0, "the debts that matter are kept"


# ---- over a scheduler


def feed(bench: Bench, tenant: str, number: int, prompt: int, output: int) -> None:
    """One request more, with a prompt that nobody else has."""
    ids = tuple((7 * number + 5 * place + ord(tenant[0])) % 48 + 1 for place in range(prompt))
    params = SamplingParams(max_tokens=output, ignore_eos=True, seed=number)
    bench.scheduler.add(EngineRequest(f"{tenant}-{number}", ids, params, tenant=tenant), bench.now_s)


@dataclass
class Meter:
    """Service by tenant in the paper's units: by the plans and the tokens that came back, not by our counters."""

    bench: Bench
    service: Counter[str] = field(default_factory=Counter)
    done: dict[str, int] = field(default_factory=dict)

    def step(self) -> None:
        bench, events = self.bench, len(self.bench.events)
        requests = {s.number: s.request for s in bench.scheduler.live}
        plan = bench.step()
        assert plan is not None, "work-conserving: while anything waits, every step computes"
        for item in plan.slices:
            request, end = requests[item.sequence], item.start + item.count
            start = max(item.start, self.done.get(request.request_id, 0))
            self.done[request.request_id] = max(start, end)
            self.service[request.tenant] += INPUT_COST * max(0, min(end, len(request.prompt_ids)) - start)
        for event in bench.events[events:]:
            if isinstance(event, TokenEvent):
                self.service[event.request_id[0]] += OUTPUT_COST


@settings(max_examples=15, deadline=None)
@given(
    weights=st.tuples(st.sampled_from((0.5, 1.0, 2.0, 4.0)), st.sampled_from((0.5, 1.0, 3.0))),
    prompts=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    outputs=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    blocks=st.integers(16, 24),
    max_running=st.integers(1, 6),
)
def test_two_tenants_that_always_wait_get_shares_by_weight_within_the_bound_of_the_paper(
    weights: tuple[float, float],
    prompts: tuple[int, int],
    outputs: tuple[int, int],
    blocks: int,
    max_running: int,
) -> None:
    limit = limits(max_running=max_running, prefix_caching=False, tenant_weights={"a": weights[0], "b": weights[1]})
    bench = Bench(limit, blocks)
    meter, fed = Meter(bench), {"a": 0, "b": 0}
    most = 2 * max(INPUT_COST * max(prompts), OUTPUT_COST * blocks * limit.block_tokens) / min(weights)
    for _ in range(250):
        for place, tenant in enumerate("ab"):
            waiting = sum(s.request.tenant == tenant and s.started_s is None for s in bench.scheduler.live)
            for _ in range(waiting, 2 * max_running + 1):  # more than two plans can start
                feed(bench, tenant, fed[tenant], prompts[place], outputs[place])
                fed[tenant] += 1
        bench.now_s += 0.01
        meter.step()
        assert abs(meter.service["a"] / weights[0] - meter.service["b"] / weights[1]) <= most


def test_a_long_queue_of_one_tenant_does_not_hold_up_another() -> None:
    bench = Bench(limits(max_running=1))
    for number in range(20):
        feed(bench, "flood", number, 8, 4)
    bench.now_s = 1000.0  # all of the flood has aged by many classes
    feed(bench, "light", 0, 8, 4)
    bench.run()
    order = [event.request_id for event in bench.events if hasattr(event, "usage")]
    assert order.index("light-0") <= 1


def test_who_is_alone_gets_everything() -> None:
    alone, two = Bench(limits(tenant_weights={"a": 0.01})), Bench()
    for bench in (alone, two):
        for number in range(10):
            feed(bench, "a", number, 8, 4)
        bench.run()
    assert len(alone.ranks.plans) == len(two.ranks.plans)


def test_cached_prompt_tokens_cost_little() -> None:
    bench = Bench()
    counters = bench.scheduler._tenants
    params = SamplingParams(max_tokens=1, ignore_eos=True, seed=0)
    prompt = tuple(range(1, 14))
    for number in range(2):
        before = counters.counter("t")
        bench.scheduler.add(EngineRequest(str(number), prompt, params, tenant="t"), bench.now_s)
        bench.run()
        cost = counters.counter("t") - before
        cached = 12 * number
        assert cost == pytest.approx(CACHED_COST * cached + INPUT_COST * (13 - cached) + OUTPUT_COST)


def test_a_tenant_does_not_pay_for_what_a_preemption_makes_the_group_compute_again() -> None:
    bench = Bench(limits(prefix_caching=False), blocks=10)
    params = SamplingParams(max_tokens=24, ignore_eos=True, seed=0)
    for name in ("old", "new"):
        bench.now_s += 1.0
        bench.scheduler.add(EngineRequest(name, (1, 2, 3, 4), params, tenant=name), bench.now_s)
    bench.run()
    assert bench.finished("new").preempted.recomputed_tokens > 0
    costs = [bench.scheduler._tenants.counter(name) for name in ("old", "new")]
    assert costs == [4 * INPUT_COST + 24 * OUTPUT_COST] * 2


def test_every_beam_and_every_choice_is_charged_to_its_tenant() -> None:
    bench = Bench()
    search = SamplingParams(max_tokens=5, beam_width=3, n=1, seed=0, ignore_eos=True)
    bench.scheduler.add(EngineRequest("beams", (1, 2, 3, 4), search, tenant="beams"), 0.0)
    choice = SamplingParams(max_tokens=5, ignore_eos=True, seed=0)
    for number in range(3):
        request = EngineRequest(f"c/{number}", (5, 6, 7, 8), choice, tenant="choices", family="c")
        bench.scheduler.add(request, 0.0)
    bench.run()
    counters = bench.scheduler._tenants
    assert counters.counter("choices") == 4 * INPUT_COST + 15 * OUTPUT_COST, "the prompt once, every token sampled"
    assert counters.counter("beams") == 4 * INPUT_COST + (1 + 3 * 4) * OUTPUT_COST
