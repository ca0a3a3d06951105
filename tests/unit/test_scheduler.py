"""The scheduler against a simulated rank that checks every plan: policies by example, invariants by property."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import EOS, VOCAB, Bench, alone, limits

from rayline.protos.errors import Overloaded
from rayline.protos.events import Begun, Finished, FinishReason, TokenEvent
from rayline.protos.plan import Plan
from rayline.protos.types import EngineRequest, SamplingParams


def sizes(plan: Plan | None) -> list[int]:
    assert plan is not None
    return [item.count for item in plan.slices]


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    bench = Bench()
    bench.add("long", prompt=40)
    assert sizes(bench.plan()) == [16]
    assert sizes(bench.plan()) == [16]
    plan = bench.plan()
    assert sizes(plan) == [8]
    assert plan is not None and plan.slices[0].samples


def test_only_the_last_chunk_samples() -> None:
    bench = Bench()
    bench.add("long", prompt=20)
    plans = [bench.plan(), bench.plan()]
    assert [plan.slices[0].samples for plan in plans if plan] == [False, True]


def test_running_streams_come_before_a_long_prompt() -> None:
    bench = Bench()
    bench.add("short", prompt=3)
    bench.step()
    bench.add("long", prompt=40)
    plan = bench.plan()
    assert sizes(plan)[0] == 1
    assert sum(sizes(plan)) == 16


def test_a_short_request_beside_a_long_one_leaves_first() -> None:
    bench = Bench()
    bench.add("long", max_tokens=40)
    bench.add("short", max_tokens=2)
    bench.run()
    ends = [event.request_id for event in bench.events if isinstance(event, Finished)]
    assert ends == ["short", "long"]


def test_prompt_ids_travel_once_and_sampled_tokens_never() -> None:
    bench = Bench()
    bench.add("one", prompt=6, max_tokens=8)
    bench.run()
    assert [len(plan.admitted) for plan in bench.ranks.plans] == [1] + [0] * (len(bench.ranks.plans) - 1)
    assert bench.ranks.plans[0].admitted[0].output_ids == ()


def test_the_next_plan_is_made_while_the_last_one_runs() -> None:
    bench = Bench()
    bench.add("one", max_tokens=8)
    assert bench.plan() is not None
    ahead = bench.plan()
    assert ahead is not None and sizes(ahead) == [1]
    assert bench.ranks.in_flight == 2


def test_no_plan_reaches_past_the_last_token_asked_for() -> None:
    bench = Bench()
    bench.add("one", max_tokens=2)
    bench.run()
    assert sum(plan.tokens for plan in bench.ranks.plans) == 4 + 1


def test_the_second_of_two_equal_prompts_reuses_the_first_ones_blocks() -> None:
    bench = Bench()
    prompt = tuple(range(1, 14))
    bench.add("first", prompt=prompt)
    bench.run()
    bench.add("second", prompt=prompt)
    assert sizes(bench.plan()) == [1]
    bench.run()
    assert bench.finished("second").usage.cached_tokens == 12
    assert bench.tokens("second") == bench.tokens("first")


def test_a_wholly_cached_prompt_still_computes_its_last_token() -> None:
    bench = Bench()
    prompt = tuple(range(1, 9))
    bench.add("first", prompt=prompt)
    bench.run()
    bench.add("second", prompt=prompt)
    assert sizes(bench.plan()) == [4]


def test_generated_tokens_are_reused_by_the_next_turn() -> None:
    bench = Bench()
    bench.add("first", prompt=4, max_tokens=9)
    bench.run()
    bench.add("second", prompt=(1, 2, 3, 4, *bench.tokens("first")), max_tokens=1)
    bench.run()
    assert bench.finished("second").usage.cached_tokens == 12


def test_without_prefix_caching_nothing_is_reused() -> None:
    bench = Bench(limits(prefix_caching=False))
    for request_id in ("first", "second"):
        bench.add(request_id, prompt=13)
        bench.run()
    assert bench.finished("second").usage.cached_tokens == 0


def test_an_aborted_request_frees_its_blocks_at_once() -> None:
    bench = Bench()
    bench.add("one", prompt=20, max_tokens=20)
    bench.step()
    (end,) = bench.scheduler.abort("one")
    assert isinstance(end, Finished) and end.reason is FinishReason.ABORT
    assert bench.pool.available == bench.blocks
    bench.check()


def test_an_abort_of_an_unknown_request_is_ignored() -> None:
    assert Bench().scheduler.abort("nobody") == []


def test_results_of_an_aborted_request_are_dropped() -> None:
    bench = Bench()
    bench.add("one")
    bench.plan()
    bench.scheduler.abort("one")
    assert bench.commit() == []


def test_a_full_waiting_queue_refuses_with_the_limit_named() -> None:
    bench = Bench(limits(max_waiting=2))
    bench.add("a")
    bench.add("b")
    with pytest.raises(Overloaded, match="at most 2 may wait") as refused:
        bench.add("c")
    assert refused.value.retry_after_s


def test_the_more_important_of_two_waiting_requests_starts_first() -> None:
    bench = Bench(limits(max_running=1))
    bench.add("ordinary", priority=0)
    bench.add("important", priority=-1)
    bench.run()
    starts = [event.request_id for event in bench.events if isinstance(event, TokenEvent) and event.index == 0]
    assert starts == ["important", "ordinary"]


def test_when_blocks_run_out_the_latest_request_is_preempted_and_ends_with_the_same_tokens() -> None:
    bench = Bench(blocks=10)
    bench.add("old", prompt=(1, 2, 3, 4), max_tokens=24)
    bench.add("new", prompt=(9, 8, 7, 6), max_tokens=24)
    bench.run()
    assert bench.scheduler.stats.preemptions > 0
    assert bench.scheduler.stats.recomputed_tokens > 0
    for request_id, prompt in (("old", (1, 2, 3, 4)), ("new", (9, 8, 7, 6))):
        expected = alone(prompt, SamplingParams(max_tokens=24, ignore_eos=True), 64)
        assert bench.tokens(request_id) == expected


def test_a_preemption_is_explained_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(blocks=10)
    with caplog.at_level("INFO"):
        bench.add("old", prompt=(1, 2, 3, 4), max_tokens=24)
        bench.add("new", prompt=(9, 8, 7, 6), max_tokens=24)
        bench.run()
    assert "preempted request new" in caplog.text
    assert "wanted by old" in caplog.text


def test_the_first_request_is_never_preempted() -> None:
    bench = Bench(blocks=16)
    for index in range(6):
        bench.add(f"r{index}", prompt=(index, 1, 2, 3), max_tokens=40)
    first = bench.scheduler.live[0]
    bench.run()
    assert first.preemptions == 0


def test_end_of_sequence_ends_a_stream_unless_it_is_ignored() -> None:
    prompts = [(a, b) for a in range(1, 40) for b in range(40)]
    params = SamplingParams(max_tokens=8)
    prompt = next(p for p in prompts if alone(p, params, 64)[-1] == EOS)
    bench = Bench()
    bench.add("stops", prompt=prompt, max_tokens=8, ignore_eos=False)
    bench.add("goes on", prompt=prompt, max_tokens=8)
    bench.run()
    assert bench.finished("stops").reason is FinishReason.STOP
    assert bench.finished("stops").stop_reason is None
    assert bench.finished("goes on").reason is FinishReason.LENGTH


def test_a_stop_token_ends_the_stream_and_is_named() -> None:
    expected = alone((1, 2, 3, 4), SamplingParams(max_tokens=8, ignore_eos=True), 64)
    bench = Bench()
    bench.add("one", max_tokens=8, stop_token_ids=(expected[2],))
    bench.run()
    assert bench.tokens("one") == expected[: expected.index(expected[2]) + 1]
    assert bench.finished("one").stop_reason == expected[2]


def test_the_context_ends_a_stream_without_max_tokens() -> None:
    bench = Bench(limits(max_model_len=12))
    bench.add("one", prompt=4, max_tokens=None)
    bench.run()
    assert len(bench.tokens("one")) == 8
    assert bench.finished("one").reason is FinishReason.LENGTH


def test_the_first_token_tells_how_the_request_began() -> None:
    bench = Bench()
    prompt = tuple(range(1, 14))
    for request_id in ("first", "second"):
        bench.add(request_id, prompt=prompt)
        bench.now_s += 2.0
        bench.run()
    begun = {(e.request_id, e.index): e.begun for e in bench.events if isinstance(e, TokenEvent)}
    assert begun["first", 0] == Begun(0, 2.0)
    assert begun["second", 0] == Begun(12, 2.0)
    assert begun["second", 1] is None


def test_a_resumed_request_goes_on_where_it_was_cut() -> None:
    params = SamplingParams(max_tokens=10, ignore_eos=True, seed=0)
    whole = alone((1, 2, 3), params, 64)
    bench = Bench()
    bench.scheduler.add(EngineRequest("moved", (1, 2, 3), params, output_ids=tuple(whole[:6])), 0.0)
    bench.run()
    assert bench.tokens("moved") == whole[6:]
    indices = [event.index for event in bench.events if isinstance(event, TokenEvent)]
    assert indices == [6, 7, 8, 9]
    assert bench.finished("moved").usage.output_tokens == 10


def test_two_stages_get_disjoint_halves_of_the_streams() -> None:
    bench = Bench(limits(depth=2))
    for index in range(4):
        bench.add(f"r{index}", prompt=(index + 1,), max_tokens=20)
    for _ in range(6):
        bench.step()
    for one, two in zip(bench.ranks.plans[4:], bench.ranks.plans[5:], strict=False):
        assert len(one.slices) == len(two.slices) == 2
        assert not {s.sequence for s in one.slices} & {s.sequence for s in two.slices}


def test_chunks_of_one_prompt_follow_each_other_through_the_stages() -> None:
    bench = Bench(limits(depth=3))
    bench.add("long", prompt=60)
    assert [sizes(bench.plan()) for _ in range(3)] == [[16], [16], [16]]


def test_the_load_counts_what_is_still_to_be_computed() -> None:
    bench = Bench()
    bench.add("one", prompt=10, max_tokens=5)
    assert bench.scheduler.load().outstanding_tokens == 10 + 4
    bench.step()
    assert bench.scheduler.load().running == 1
    bench.run()
    assert bench.scheduler.load().outstanding_tokens == 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_mixture_of_requests_and_aborts_keeps_all_promises(data: st.DataObject) -> None:
    """Exactly one end each, the tokens of a lone run, no plan that reads a wrong block, nothing leaked."""
    depth = data.draw(st.integers(1, 3))
    chosen = limits(
        depth=depth,
        block_tokens=data.draw(st.integers(1, 5)),
        max_step_tokens=data.draw(st.integers(4, 20)),
        max_running=data.draw(st.integers(1, 4)),
        max_model_len=32,
        prefix_caching=data.draw(st.booleans()),
    )
    fewest = -(-chosen.max_model_len // chosen.block_tokens)
    bench = Bench(chosen, blocks=data.draw(st.integers(fewest, 3 * fewest)))
    requests, aborted = bench.play(data, lambda name: [_draw_request(data, name)], 25)
    for request_id, request in requests.items():
        expected = alone(request.prompt_ids, request.params, chosen.max_model_len)
        if request_id in aborted:
            assert bench.tokens(request_id) == expected[: len(bench.tokens(request_id))]
            assert bench.finished(request_id).reason is FinishReason.ABORT
        else:
            assert bench.tokens(request_id) == expected
            assert bench.finished(request_id).usage.output_tokens == len(expected)


def _draw_request(data: st.DataObject, request_id: str) -> EngineRequest:
    prompt = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=20))
    params = SamplingParams(
        max_tokens=data.draw(st.one_of(st.none(), st.integers(1, 12))),
        stop_token_ids=tuple(data.draw(st.lists(st.integers(0, VOCAB - 1), max_size=2))),
        ignore_eos=data.draw(st.booleans()),
        seed=0,
    )
    return EngineRequest(request_id, tuple(prompt), params, priority=data.draw(st.integers(-1, 1)))
