"""Choices of one request: one prompt, shared blocks, a copy before the first write; and what happens when one ends."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import Bench, alone, limits

from rayline.protos.errors import InvalidRequest
from rayline.protos.events import Failed, Finished, FinishReason, TokenEvent
from rayline.protos.plan import Copy
from rayline.protos.types import EngineRequest, SamplingParams, TokenRules, choice_seed

PROMPT = (1, 2, 3, 4, 5, 6)


def choices(count: int, prompt: tuple[int, ...] = PROMPT, name: str = "r", **params: Any) -> list[EngineRequest]:
    """What a router makes of a request with n = count."""
    base = SamplingParams(**({"max_tokens": 6, "ignore_eos": True} | params))
    return [
        EngineRequest(f"{name}/{i}", prompt, replace(base, seed=choice_seed(7, i)), family=name) for i in range(count)
    ]


def bench_with(requests: list[EngineRequest], blocks: int = 64, **changes: Any) -> Bench:
    bench = Bench(limits(**changes), blocks)
    for request in requests:
        bench.now_s += 1.0
        bench.scheduler.add(request, bench.now_s)
    return bench


def assert_as_alone(bench: Bench, requests: list[EngineRequest]) -> None:
    for request in requests:
        assert bench.tokens(request.request_id) == alone(request.prompt_ids, request.params, 64)


def test_four_choices_compute_one_prompt() -> None:
    requests = choices(4)
    bench = bench_with(requests)
    plan = bench.plan()
    assert plan is not None
    assert [(item.count, len(item.forks)) for item in plan.slices] == [(6, 3)]
    assert [fork.parent for fork in plan.forked] == [plan.slices[0].sequence] * 3
    assert len(plan.admitted) == 1
    bench.run()
    assert_as_alone(bench, requests)
    assert bench.scheduler.stats.forks == 3


def test_choices_say_different_things() -> None:
    requests = choices(4)
    bench = bench_with(requests)
    bench.run()
    assert len({tuple(bench.tokens(r.request_id)) for r in requests}) == 4


def test_the_part_filled_block_is_copied_for_all_writers_but_the_last() -> None:
    bench = bench_with(choices(4))
    bench.step()
    bench.step()
    written = bench.ranks.plans[1]
    shared = bench.ranks.plans[0].slices[0].block_ids[1]
    assert [copy.source for copy in written.copies] == [shared] * 3
    assert len({copy.target for copy in written.copies}) == 3
    assert bench.scheduler.stats.copied_blocks == 3


def test_a_prompt_that_fills_its_blocks_is_never_copied() -> None:
    requests = choices(3, prompt=(1, 2, 3, 4, 5, 6, 7, 8))
    bench = bench_with(requests)
    bench.run()
    assert bench.scheduler.stats.copied_blocks == 0
    assert_as_alone(bench, requests)


def test_slots_that_hold_a_whole_context_are_copied_too() -> None:
    requests = choices(3)
    bench = bench_with(requests, blocks=3, block_tokens=64, prefix_caching=False)
    bench.run()
    assert bench.scheduler.stats.copied_blocks == 2
    assert bench.scheduler.stats.preemptions == 0
    assert_as_alone(bench, requests)


def test_choices_wait_for_the_whole_prompt_and_others_go_by() -> None:
    requests = choices(3, prompt=tuple(i % 9 for i in range(40)))
    bench = bench_with(requests)
    bench.add("other", prompt=(9, 9))
    for _ in range(2):
        plan = bench.plan()
        assert plan is not None and len(plan.slices) == 1
    plan = bench.plan()
    assert plan is not None
    assert [(item.count, len(item.forks)) for item in plan.slices] == [(8, 2), (2, 0)]
    bench.run()
    assert_as_alone(bench, requests)


def test_choices_without_a_place_start_later_by_themselves() -> None:
    requests = choices(5)
    bench = bench_with(requests, max_running=2)
    plan = bench.plan()
    assert plan is not None and len(plan.slices[0].forks) == 1
    bench.run()
    assert_as_alone(bench, requests)
    assert bench.finished("r/4").usage.cached_tokens == 4


def test_when_the_first_choice_is_aborted_the_next_computes_the_prompt() -> None:
    requests = choices(3, prompt=tuple(i % 9 for i in range(40)))
    bench = bench_with(requests)
    bench.step()
    bench.scheduler.abort("r/0")
    bench.run()
    assert_as_alone(bench, requests[1:])
    assert bench.scheduler.stats.forks == 1
    assert bench.pool.available == bench.blocks


def test_a_waiting_choice_that_is_aborted_leaves_the_others_alone() -> None:
    requests = choices(3)
    bench = bench_with(requests)
    assert bench.scheduler.load().waiting == 3
    (end,) = bench.scheduler.abort("r/1")
    assert isinstance(end, Finished) and end.reason is FinishReason.ABORT
    assert bench.scheduler.load().waiting == 2
    bench.run()
    assert_as_alone(bench, [requests[0], requests[2]])


def test_all_choices_count_as_waiting() -> None:
    bench = bench_with(choices(3), max_waiting=4)
    bench.add("fourth")
    with pytest.raises(Exception, match="at most 4 may wait"):
        bench.add("fifth")


def test_a_resumed_choice_does_not_fork() -> None:
    requests = choices(3)
    first = alone(PROMPT, requests[1].params, 64)[:2]
    requests[1] = replace(requests[1], output_ids=tuple(first))
    bench = bench_with(requests)
    bench.run()
    assert bench.tokens("r/1") == alone(PROMPT, requests[1].params, 64)[2:]
    assert bench.scheduler.stats.forks == 1


@pytest.mark.parametrize(
    "change", [{"prompt_ids": (1, 2, 3)}, {"cache_salt": "x"}, {"rules": TokenRules(((1, 2),))}, {"tenant": "x"}]
)
def test_a_name_alone_makes_no_family(change: dict[str, Any]) -> None:
    first, second = choices(2)
    bench = bench_with([first, replace(second, **change)])
    bench.run()
    assert bench.scheduler.stats.forks == 0


def test_every_choice_tells_how_it_began() -> None:
    bench = bench_with(choices(2))
    bench.run()
    begun = {e.request_id: e.begun for e in bench.events if isinstance(e, TokenEvent) and e.index == 0}
    assert begun["r/0"] is not None and begun["r/0"].cached_tokens == 0
    assert begun["r/1"] is not None and begun["r/1"].cached_tokens == 6
    assert begun["r/1"].queue_s == 0.0


def test_a_refused_grammar_ends_its_request_alone() -> None:
    bad = EngineRequest("bad", PROMPT, SamplingParams(max_tokens=9, seed=0), rules=TokenRules(grammar="bad"))
    good = EngineRequest("good", PROMPT, SamplingParams(max_tokens=9, seed=0, ignore_eos=True))
    bench = bench_with([bad, good])
    bench.run()
    (end,) = bench.ends("bad")
    assert isinstance(end, Failed) and isinstance(end.error, InvalidRequest)
    assert (end.error.field, end.error.message) == ("structured_output", "no such grammar")
    assert_as_alone(bench, [good])
    assert bench.pool.available == bench.blocks and not bench.ranks.known.keys() - {0, 1}


def test_every_choice_of_a_refused_grammar_fails() -> None:
    bench = bench_with([replace(r, rules=TokenRules(grammar="bad")) for r in choices(3)])
    bench.run()
    assert all(isinstance(bench.ends(f"r/{i}")[0], Failed) for i in range(3))


def test_copies_of_a_block_that_is_taken_in_the_same_plan_come_first() -> None:
    """Its only reader left is preempted once the copy is planned: the copy must see the old content."""
    requests = choices(2, max_tokens=20)
    bench = bench_with(requests, blocks=9)
    bench.add("important", prompt=(9, 8, 7, 6), priority=-1, max_tokens=20)
    bench.run()
    assert_as_alone(bench, requests)
    assert any(isinstance(copy, Copy) for plan in bench.ranks.plans for copy in plan.copies)


@settings(max_examples=200)
@given(st.data())
def test_any_mixture_of_families_and_aborts_keeps_all_promises(data: st.DataObject) -> None:
    """Exactly one end each, the tokens of a lone run, no block written that others read, nothing leaked."""
    chosen = limits(
        depth=data.draw(st.integers(1, 3)),
        block_tokens=data.draw(st.sampled_from([1, 2, 3, 4, 7, 32])),
        max_step_tokens=data.draw(st.integers(4, 20)),
        max_running=data.draw(st.integers(1, 6)),
        max_model_len=32,
        prefix_caching=data.draw(st.booleans()),
    )
    fewest = -(-chosen.max_model_len // chosen.block_tokens)
    bench = Bench(chosen, blocks=data.draw(st.integers(fewest, 3 * fewest)))

    def draw(name: str) -> list[EngineRequest]:
        prompt = tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=20)))
        most, priority = data.draw(st.integers(1, 12)), data.draw(st.integers(-1, 1))
        family = choices(data.draw(st.integers(1, 5)), prompt, name, max_tokens=most)
        return [replace(request, priority=priority) for request in family]

    requests, aborted = bench.play(data, draw, 15)
    for request_id, request in requests.items():
        expected = alone(request.prompt_ids, request.params, chosen.max_model_len)
        said = bench.tokens(request_id)
        assert said == (expected[: len(said)] if request_id in aborted else expected)
