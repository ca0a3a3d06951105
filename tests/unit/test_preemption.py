"""Bounded preemption: whoever lost its blocks too often runs to its end, everybody ends, nobody starves."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import Bench, alone, limits

from rayline.protos.events import Finished, TokenEvent
from rayline.protos.group import PreemptionReason
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.scheduling.reservations import most_blocks


def request(name: str, prompt: int = 4, tokens: int = 24, priority: int = 0, **more: Any) -> EngineRequest:
    params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=0, beam_width=more.pop("width", 0))
    ids = tuple((sum(map(ord, name)) + 3 * place) % 48 + 1 for place in range(prompt))
    return EngineRequest(name, ids, params, priority=priority, **more)


def bench_with(*requests: EngineRequest, blocks: int, **changes: Any) -> Bench:
    bench = Bench(limits(**({"prefix_caching": False} | changes)), blocks)
    for each in requests:
        bench.now_s += 1.0
        bench.scheduler.add(each, bench.now_s)
    return bench


def times(bench: Bench) -> dict[str, int]:
    return {event.request_id: event.preempted.times for event in bench.events if isinstance(event, Finished)}


def crowd(count: int, **changes: Any) -> Bench:
    """Requests that all start at once and cannot all grow: the later ones lose their blocks again and again."""
    return bench_with(*(request(f"r{n}", tokens=40) for n in range(count)), blocks=16, max_step_tokens=32, **changes)


@pytest.mark.parametrize("most", [0, 1, 2, 100])
def test_a_request_is_preempted_so_often_and_no_more(most: int) -> None:
    bench = crowd(8, max_preemptions=most)
    bench.run()
    assert max(times(bench).values()) <= most
    assert len(times(bench)) == 8


def test_without_the_bound_some_would_be_preempted_more_often() -> None:
    """So that the test above can fail."""
    bench = crowd(8, max_preemptions=100)
    bench.run()
    assert max(times(bench).values()) > 2


def test_a_request_that_may_not_be_preempted_waits_until_all_its_blocks_are_there() -> None:
    bench = bench_with(request("first", tokens=20), request("second", tokens=20), blocks=10, max_preemptions=0)
    bench.step()
    assert bench.scheduler.load().running == 1, "a second one would need 6 blocks, and 4 are left"
    assert bench.scheduler.load().free_blocks == 4
    bench.run()
    assert bench.scheduler.stats.preemptions == 0
    assert bench.pool.available == bench.pool.total


def test_who_lost_its_blocks_often_enough_keeps_them_though_an_earlier_request_wants_them() -> None:
    bench = bench_with(request("early", tokens=24), request("sheltered", tokens=12), blocks=8, max_preemptions=1)
    bench.scheduler._roster.firsts["sheltered"].preemptions = 1
    bench.run()
    assert bench.scheduler.stats.preemptions == 0
    ends = [event.request_id for event in bench.events if isinstance(event, Finished)]
    assert ends == ["sheltered", "early"]


def test_reserved_blocks_are_given_to_nobody_else() -> None:
    bench = bench_with(request("kept", tokens=20), request("free", prompt=8, tokens=12), blocks=10, max_preemptions=0)
    bench.run()
    ends = [event.request_id for event in bench.events if isinstance(event, Finished)]
    assert ends == ["kept", "free"]


def test_an_end_and_an_abort_give_back_what_was_reserved() -> None:
    bench = bench_with(request("gone", tokens=40), blocks=16, max_preemptions=0)
    bench.step()
    assert bench.pool.available == 16 - 11
    bench.scheduler.abort("gone")
    assert (bench.pool.available, bench.pool.reserved) == (16, 0)


def test_the_result_tells_how_often_and_how_much_was_computed_again() -> None:
    bench = bench_with(request("old"), request("new"), blocks=10)
    bench.run()
    old, new = bench.finished("old").preempted, bench.finished("new").preempted
    assert (old.times, old.recomputed_tokens) == (0, 0)
    computed = sum(item.count for plan in bench.ranks.plans for item in plan.slices)
    assert new.times >= 1
    assert new.recomputed_tokens == computed - 2 * (4 + 24 - 1)
    assert bench.scheduler.stats.recomputed_tokens == new.recomputed_tokens


def test_what_the_prefix_cache_kept_is_not_counted_as_computed_again() -> None:
    bench = bench_with(request("old"), request("new"), blocks=10, prefix_caching=True)
    bench.run()
    computed = sum(item.count for plan in bench.ranks.plans for item in plan.slices)
    assert bench.finished("new").preempted.recomputed_tokens == computed - 2 * (4 + 24 - 1)


def test_the_load_of_a_group_counts_preemptions_by_reason() -> None:
    bench = crowd(8)
    bench.run()
    load = bench.scheduler.load()
    by_reason = dict(zip(PreemptionReason, load.preemptions, strict=True))
    assert by_reason[PreemptionReason.GROWTH] == sum(times(bench).values()) > 0
    assert load.recomputed_tokens == bench.scheduler.stats.recomputed_tokens > 0


def test_a_search_is_preempted_whole_and_counts_once() -> None:
    bench = bench_with(
        request("search", tokens=20, width=3), request("urgent", tokens=40, priority=-1), blocks=18, max_preemptions=1
    )
    bench.run()
    assert times(bench)["search"] == 1
    assert bench.scheduler.stats.preemptions_by[PreemptionReason.GROWTH] == 1


# ---- properties


@st.composite
def crowds(draw: st.DrawFn, beams: bool) -> list[EngineRequest]:
    count = draw(st.integers(1, 10))
    return [
        request(
            f"r{n}",
            prompt=draw(st.integers(1, 12)),
            tokens=draw(st.integers(1, 24)),
            priority=draw(st.sampled_from((-100, -1, 0, 0, 0, 7, 100))),
            tenant=draw(st.sampled_from("abc")),
            width=draw(st.sampled_from((0, 0, 2, 3))) if beams else 0,
        )
        for n in range(count)
    ]


def ended(
    requests: list[EngineRequest],
    aborted: set[int],
    blocks: int,
    most: int,
    depth: int = 1,
    aging_s: float = 0.5,
    prefix_caching: bool = True,
) -> Bench:
    """Requests that come one a step, some aborted later, in a pool that holds little more than one of them."""
    changes = dict(depth=depth, max_preemptions=most, priority_aging_s=aging_s, prefix_caching=prefix_caching)
    bench = bench_with(blocks=blocks, **changes)
    for number, each in enumerate(requests):
        bench.now_s += 1.0
        bench.scheduler.add(each, bench.now_s)
        bench.step()
        if number in aborted:
            bench.events += bench.scheduler.abort(requests[number // 2].request_id)
            bench.check()
    bench.run()
    return bench


@settings(max_examples=60, deadline=None)
@given(
    requests=crowds(beams=False),
    aborted=st.sets(st.integers(0, 9), max_size=3),
    blocks=st.integers(9, 16),
    most=st.integers(0, 3),
    depth=st.integers(1, 3),
    aging_s=st.sampled_from((0.0, 0.5, 5.0)),
    prefix_caching=st.booleans(),
)
def test_everything_ends_within_the_bound_with_its_own_tokens(
    requests: list[EngineRequest],
    aborted: set[int],
    blocks: int,
    most: int,
    depth: int,
    aging_s: float,
    prefix_caching: bool,
) -> None:
    """Every plan computes a token at least, and no token more than 1 + max_preemptions times. So all first tokens, and
    all ends, have come after as many plans as these requests have tokens, times 1 + max_preemptions."""
    bench = ended(requests, aborted, blocks, most, depth, aging_s, prefix_caching)
    lengths = [len(r.prompt_ids) + (r.params.max_tokens or 0) - 1 for r in requests]
    assert len(bench.ranks.plans) <= (1 + most) * sum(lengths)
    for each in requests:
        end = bench.finished(each.request_id)
        assert end.preempted.times <= most
        assert end.preempted.recomputed_tokens <= most * (len(each.prompt_ids) + (each.params.max_tokens or 0))
        whole = alone(each.prompt_ids, each.params, 64)
        assert bench.tokens(each.request_id) == whole[: end.usage.output_tokens]
        assert end.reason == "abort" or len(whole) == end.usage.output_tokens
    assert bench.pool.available == bench.pool.total


@settings(max_examples=60, deadline=None)
@given(
    requests=crowds(beams=True),
    aborted=st.sets(st.integers(0, 9), max_size=3),
    spare=st.integers(0, 6),
    most=st.integers(0, 2),
    aging_s=st.sampled_from((0.0, 0.5)),
    prefix_caching=st.booleans(),
)
def test_searches_and_samples_of_all_tenants_end_in_the_smallest_pools(
    requests: list[EngineRequest], aborted: set[int], spare: int, most: int, aging_s: float, prefix_caching: bool
) -> None:
    needs = [most_blocks(len(r.prompt_ids), len(r.prompt_ids) + (r.params.max_tokens or 0), r.params.beam_width, 4)
             for r in requests]  # fmt: skip
    bench = ended(requests, aborted, max(9, *needs) + spare, most, 1, aging_s, prefix_caching)
    assert len(times(bench)) == len(requests)
    assert max(times(bench).values()) <= most
    assert bench.pool.available == bench.pool.total


@settings(max_examples=10, deadline=None)
@given(
    priority=st.integers(-100, 100),
    tenants=st.integers(1, 3),
    newcomer=st.sampled_from((-100, 0)),
    most=st.integers(0, 3),
)
def test_nobody_starves_however_many_more_important_requests_keep_coming(
    priority: int, tenants: int, newcomer: int, most: int
) -> None:
    """A request of priority p is in the first class after (p + 100) * aging_s seconds. From then on each other tenant
    gets at most twice the bound of the counters before it, and each plan serves a token at least."""
    aging_s, step_s, blocks = 0.05, 0.1, 12
    bench = bench_with(blocks=blocks, max_preemptions=most, priority_aging_s=aging_s, max_running=4)
    arrived_s = bench.now_s
    bench.scheduler.add(request("last", priority=priority, tenant="t0"), arrived_s)
    bound = 2 * max(16, 2 * blocks * 4)
    patience = (1 + most) * tenants * (bound + 30)
    steps = int((priority + 100) * aging_s / step_s) + patience
    for step in range(steps):
        bench.now_s += step_s
        if bench.scheduler.load().waiting < 8:
            bench.scheduler.add(request(f"n{step}", 8, 8, newcomer, tenant=f"t{step % tenants}"), bench.now_s)
        bench.step()
        if any(isinstance(event, TokenEvent) and event.request_id == "last" for event in bench.events[-8:]):
            return
    raise AssertionError(f"no token after {steps} steps")


def test_without_aging_the_same_request_would_starve() -> None:
    bench = bench_with(blocks=12, priority_aging_s=0.0, max_running=2)
    bench.scheduler.add(request("filler", 8, 8, -100), 0.0)
    bench.scheduler.add(request("filler-2", 8, 8, -100), 0.0)
    bench.scheduler.add(request("last", priority=100), 0.0)
    for step in range(300):
        bench.now_s += 0.1
        if bench.scheduler.load().waiting < 4:
            bench.scheduler.add(request(f"n{step}", 8, 8, -100), bench.now_s)
        bench.step()
    assert not bench.tokens("last")
