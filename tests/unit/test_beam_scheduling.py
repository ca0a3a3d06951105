"""Beams as sequences of the scheduler, over simulated ranks: what they share, whom they wait for, that they end."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import EOS, VOCAB, Bench, alone, limits
from simulated_ranks import candidates

from rayline.protos.events import Beam, Finished, FinishReason, TokenEvent
from rayline.protos.types import PLAIN_RULES, EngineRequest, SamplingParams
from rayline.workers.scheduling.beams import Search, advance, best, candidates_needed, rules_of
from rayline.workers.scheduling.request_check import blocks_of_search

PROMPT = (1, 2, 3, 4, 5, 6)


def request(request_id: str, prompt: tuple[int, ...] = PROMPT, width: int = 3, **params: Any) -> EngineRequest:
    sampling = SamplingParams(**({"beam_width": width, "max_tokens": 6, "seed": 0, "n": width} | params))
    return EngineRequest(request_id, prompt, sampling)


def searched(asked: EngineRequest, max_model_len: int = 64) -> tuple[Beam, ...]:
    """What the simulated model gives to a search that nobody disturbs."""
    most = min(asked.params.max_tokens or max_model_len, max_model_len - len(asked.prompt_ids))
    rules = rules_of(asked.params, PLAIN_RULES, {EOS}, most)
    search, count = Search(), candidates_needed(asked.params, PLAIN_RULES, {EOS})
    while not search.is_over:
        found = [candidates((*asked.prompt_ids, *hope.token_ids), VOCAB, count) for hope in search.hopes]
        search, _ = advance(search, rules, found)
    return best(search, rules)


def bench_with(*requests: EngineRequest, blocks: int = 64, **changes: Any) -> Bench:
    bench = Bench(limits(**changes), blocks)
    for each in requests:
        bench.now_s += 1.0
        bench.scheduler.add(each, bench.now_s)
    return bench


def test_a_search_finds_what_the_arithmetic_finds() -> None:
    asked = request("r")
    bench = bench_with(asked)
    bench.run()
    end = bench.finished("r")
    assert end.beams == searched(asked)
    assert (end.reason, end.stop_reason) == (end.beams[0].reason, end.beams[0].stop_token)
    assert end.usage.output_tokens == sum(len(beam.token_ids) for beam in end.beams)
    assert bench.tokens("r") == [], "nothing is streamed"


def test_the_prompt_is_computed_once_for_all_beams() -> None:
    asked = request("r", width=4)
    bench = bench_with(asked)
    bench.run()
    prompts = [item for plan in bench.ranks.plans for item in plan.slices if item.start < len(PROMPT)]
    assert [item.count for item in prompts] == [len(PROMPT)]


def test_beams_are_forked_given_their_tokens_and_copied_before_they_write() -> None:
    bench = bench_with(request("r"))
    bench.step()
    plan = bench.plan()
    assert plan is not None
    root = bench.ranks.plans[0].slices[0].sequence
    assert [fork.parent for fork in plan.forked] == [root, root]
    assert [gain.sequence for gain in plan.gained] == [root, *(fork.sequence for fork in plan.forked)]
    assert len(plan.copies) == 2
    assert [item.count for item in plan.slices] == [1, 1, 1]


def test_beams_and_samples_share_a_step() -> None:
    asked = request("r")
    bench = bench_with(asked)
    bench.add("s", max_tokens=12)
    bench.run()
    shared = [plan for plan in bench.ranks.plans if len({s.sequence for s in plan.slices}) > 3]
    assert shared
    assert bench.finished("r").beams == searched(asked)
    assert bench.tokens("s") == alone((1, 2, 3, 4), SamplingParams(max_tokens=12, ignore_eos=True), 64)


def test_an_aborted_search_frees_all_its_beams() -> None:
    bench = bench_with(request("r", width=4))
    bench.step()
    bench.step()
    assert len(bench.scheduler.live) == 4
    (end,) = bench.scheduler.abort("r")
    assert isinstance(end, Finished) and end.reason is FinishReason.ABORT
    assert bench.pool.available == bench.blocks and not bench.scheduler.live
    bench.add("after", prompt=(7, 7))
    bench.run()
    assert len(bench.ranks.known) <= 1


def test_a_search_is_aborted_between_its_choice_and_the_next_plan() -> None:
    bench = bench_with(request("r", width=4))
    bench.plan()
    bench.commit()
    bench.scheduler.abort("r")
    bench.add("after", prompt=(7, 7))
    bench.run()
    assert len(bench.ranks.known) <= 1, "forks that nobody waits for are released by the same plan"


def test_a_search_keeps_places_for_all_its_beams() -> None:
    bench = bench_with(request("r", width=3), max_running=4)
    for name in ("s", "t"):
        bench.add(name, prompt=(9, 8), max_tokens=30)
    bench.step()
    assert bench.scheduler.load().waiting == 1
    bench.run()
    assert bench.finished("r").beams == searched(request("r", width=3))


def test_an_important_request_preempts_beams_and_the_search_ends_the_same() -> None:
    asked = request("r", width=3, max_tokens=20)
    bench = bench_with(asked, blocks=20)
    for _ in range(4):
        bench.step()
    bench.add("important", prompt=tuple(range(9, 31)), priority=-1, max_tokens=38)
    bench.run()
    assert bench.scheduler.stats.preemptions > 0
    assert bench.finished("r").beams == searched(asked)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_two_searches_that_do_not_fit_at_once_both_end(prefix_caching: bool) -> None:
    asked = [request("a", (1,) * 9, width=4, max_tokens=20), request("b", (2,) * 9, width=4, max_tokens=20)]
    bench = bench_with(*asked, blocks=24, prefix_caching=prefix_caching)
    bench.run()
    assert [bench.finished(each.request_id).beams for each in asked] == [searched(each) for each in asked]


def test_beams_that_lost_their_blocks_share_the_prompt_again_without_a_prefix_cache() -> None:
    asked = request("r", tuple(range(1, 17)), width=3, max_tokens=6)
    bench = bench_with(asked, blocks=16, prefix_caching=False)
    for _ in range(3):
        bench.step()
    bench.add("important", prompt=tuple(range(9, 50)), priority=-1, max_tokens=20)
    bench.run()
    assert bench.finished("r").beams == searched(asked)
    prompts = [item for plan in bench.ranks.plans for item in plan.slices if item.start == 0]
    assert len(prompts) == 2, "computed once, and once more for all beams after the preemption"


mixtures = st.fixed_dictionaries(
    {
        "depth": st.integers(1, 3),
        "block_tokens": st.sampled_from([1, 2, 3, 4, 7, 32]),
        "max_step_tokens": st.integers(4, 20),
        "max_running": st.integers(4, 8),
        "max_model_len": st.just(32),
        "prefix_caching": st.booleans(),
    }
)


@settings(max_examples=300)
@given(chosen=mixtures, data=st.data())
def test_any_mixture_of_searches_samples_and_aborts_ends_in_the_smallest_pools(
    chosen: dict[str, Any], data: st.DataObject
) -> None:
    """A pool as small as one search may need, several of them at once: each finds what it finds alone."""
    fewest = -(-32 // chosen["block_tokens"])
    width = data.draw(st.integers(2, 4))
    blocks = data.draw(st.integers(fewest, (width + 1) * fewest))
    bench = Bench(limits(**chosen), blocks)

    def draw(name: str) -> list[EngineRequest]:
        prompt = tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=12)))
        priority = data.draw(st.integers(-1, 1))
        if data.draw(st.booleans()):
            params = SamplingParams(max_tokens=data.draw(st.integers(1, 12)), ignore_eos=True, seed=0)
            return [EngineRequest(name, prompt, params, priority=priority)]
        search = request(
            name,
            prompt,
            data.draw(st.integers(2, width)),
            max_tokens=data.draw(st.integers(1, 10)),
            stop_token_ids=tuple(data.draw(st.lists(st.integers(0, 20), max_size=3, unique=True))),
            early_stopping=data.draw(st.sampled_from([True, False, "never"])),
        )
        return [replace(search, priority=priority)]

    requests, aborted = bench.play(data, draw, 12)
    for request_id, asked in requests.items():
        if request_id in aborted:
            continue
        if asked.params.beam_width:
            assert bench.finished(request_id).beams == searched(asked, 32)
        else:
            assert bench.tokens(request_id) == alone(asked.prompt_ids, asked.params, 32)
    assert not any(isinstance(e, TokenEvent) and requests[e.request_id].params.beam_width for e in bench.events)


@settings(max_examples=100)
@given(
    prompt=st.integers(1, 30),
    width=st.integers(2, 5),
    most=st.integers(1, 25),
    block_tokens=st.sampled_from([1, 2, 4, 7, 64]),
    prefix_caching=st.booleans(),
)
def test_the_blocks_that_are_asked_for_are_enough_for_all_beams(
    prompt: int, width: int, most: int, block_tokens: int, prefix_caching: bool
) -> None:
    asked = request("r", tuple(range(1, prompt + 1)), width, max_tokens=most, ignore_eos=True)
    chosen = limits(block_tokens=block_tokens, prefix_caching=prefix_caching)
    bench = bench_with(
        asked, blocks=blocks_of_search(asked, chosen), block_tokens=block_tokens, prefix_caching=prefix_caching
    )
    bench.run()
    assert bench.scheduler.stats.preemptions == 0
    assert bench.finished("r").beams == searched(asked)


def test_nothing_leaks_over_thousands_of_requests_that_come_fork_and_go() -> None:
    rng = random.Random(0)
    bench = bench_with(blocks=14, max_running=8, max_waiting=10_000, max_model_len=32)
    asked = 0
    for number in range(1500):
        prompt = tuple(rng.randrange(3) for _ in range(rng.randint(1, 12)))
        kind = rng.choice(["search", "family", "sample"])
        if kind == "search":
            each = [request(f"{number}/0", prompt, rng.randint(2, 4), max_tokens=rng.randint(1, 8))]
        else:
            params = SamplingParams(max_tokens=rng.randint(1, 8), ignore_eos=True)
            each = [
                EngineRequest(f"{number}/{i}", prompt, replace(params, seed=i), family=str(number))
                for i in range(3 if kind == "family" else 1)
            ]
        for one in each:
            bench.scheduler.add(one, bench.now_s)
        asked += len(each)
        for _ in range(rng.randint(0, 4)):
            bench.step()
        if rng.random() < 0.3:
            bench.events += bench.scheduler.abort(rng.choice(each).request_id)
        bench.check()
    bench.run()
    assert bench.pool.available == bench.blocks and not bench.scheduler.live
    assert sum(isinstance(event, Finished) for event in bench.events) == asked
    assert len(bench.ranks.known) <= 8, "ranks are told of the last ends with the next plan"
    assert min(bench.scheduler.stats.forks, bench.scheduler.stats.preemptions) > 100
