"""Logprobs of the prompt in the scheduler: each position once, in order, before the first token."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_bench import Bench, alone, limits
from simulated_ranks import prompt_score

from rayline.protos.events import PromptScores, TokenEvent
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.workers.scheduling.draft import SCORED_TOKENS

PROMPT = tuple((7 * i) % 40 for i in range(40))


def assert_scored(bench: Bench, request_id: str, prompt: tuple[int, ...]) -> None:
    told = [(event.start + i, own) for event in bench.scores(request_id) for i, (own, _) in enumerate(event.tokens)]
    wanted = [(at, prompt[at], prompt_score(prompt[: at + 1])) for at in range(1, len(prompt))]
    assert [(at, own.token_id, own.logprob) for at, own in told] == wanted
    kinds = [type(event) for event in bench.events if event.request_id == request_id]
    first_token = kinds.index(TokenEvent) if TokenEvent in kinds else len(kinds)
    assert PromptScores not in kinds[first_token:]


def test_chunks_tell_all_positions_but_the_first_in_order() -> None:
    bench = Bench()
    bench.add("r", PROMPT, prompt_logprobs=0)
    bench.run()
    assert_scored(bench, "r", PROMPT)
    assert bench.tokens("r") == alone(PROMPT, SamplingParams(max_tokens=4, ignore_eos=True), 64)


def test_nobody_is_scored_who_does_not_ask() -> None:
    bench = Bench()
    bench.add("r", PROMPT)
    bench.run()
    assert bench.scores("r") == []
    assert not any(item.scores for plan in bench.ranks.plans for item in plan.slices)


def test_a_cached_prefix_is_computed_again_where_it_must_be_scored() -> None:
    bench = Bench()
    bench.add("first", PROMPT)
    bench.run()
    bench.add("second", PROMPT, prompt_logprobs=1)
    bench.run()
    assert bench.finished("second").usage.cached_tokens == 0
    assert_scored(bench, "second", PROMPT)
    bench.add("third", PROMPT)
    bench.run()
    assert bench.finished("third").usage.cached_tokens == 36, "it was published all the same"


def test_no_step_scores_more_rows_than_memory_is_meant_for() -> None:
    bench = Bench(limits(max_model_len=1024, max_step_tokens=512), blocks=600)
    for name in ("r", "s"):
        bench.add(name, tuple(i % 40 for i in range(300)), prompt_logprobs=0)
    bench.run()
    rows = [sum(item.count for item in plan.slices if item.scores) for plan in bench.ranks.plans]
    assert max(rows) == SCORED_TOKENS
    for name in ("r", "s"):
        assert_scored(bench, name, tuple(i % 40 for i in range(300)))


def test_nothing_is_told_twice_after_a_preemption() -> None:
    bench = Bench(blocks=16)
    bench.add("r", PROMPT, prompt_logprobs=0, max_tokens=20)
    for _ in range(2):
        bench.step()
    bench.add("important", prompt=tuple(range(1, 20)), priority=-1, max_tokens=40)
    bench.run()
    assert bench.scheduler.stats.preemptions > 0
    assert_scored(bench, "r", PROMPT)


def test_a_resumed_stream_had_its_scores_before() -> None:
    params = SamplingParams(max_tokens=4, ignore_eos=True, seed=0, prompt_logprobs=0)
    bench = Bench()
    bench.scheduler.add(EngineRequest("r", PROMPT, params, output_ids=tuple(alone(PROMPT, params, 64)[:2])), 0.0)
    bench.run()
    assert bench.scores("r") == []


def test_a_prompt_of_one_token_has_no_score() -> None:
    bench = Bench()
    bench.add("r", (5,), prompt_logprobs=0)
    bench.run()
    assert bench.scores("r") == [] and len(bench.tokens("r")) == 4


def test_the_first_choice_alone_is_scored_and_the_others_fork_from_it() -> None:
    bench = Bench()
    for choice in range(3):
        params = SamplingParams(max_tokens=4, seed=choice, ignore_eos=True, prompt_logprobs=None if choice else 0)
        bench.scheduler.add(EngineRequest(f"r/{choice}", PROMPT, params, family="r"), 0.0)
    bench.run()
    assert_scored(bench, "r/0", PROMPT)
    assert bench.scheduler.stats.forks == 2 and bench.scores("r/1") == []


def test_a_search_tells_the_scores_of_its_prompt_before_its_end() -> None:
    bench = Bench()
    bench.add("r", PROMPT, prompt_logprobs=0, beam_width=3, ignore_eos=False)
    bench.run()
    assert_scored(bench, "r", PROMPT)
    assert isinstance(bench.events[0], PromptScores) and bench.finished("r").beams


@settings(max_examples=100)
@given(st.data())
def test_any_mixture_tells_every_position_once(data: st.DataObject) -> None:
    chosen: dict[str, Any] = {
        "depth": data.draw(st.integers(1, 3)),
        "block_tokens": data.draw(st.integers(1, 8)),
        "max_step_tokens": data.draw(st.integers(4, 20)),
        "max_running": data.draw(st.integers(1, 4)),
        "max_model_len": 32,
        "prefix_caching": data.draw(st.booleans()),
    }
    fewest = -(-32 // chosen["block_tokens"])
    bench = Bench(limits(**chosen), blocks=data.draw(st.integers(fewest, 2 * fewest)))
    scored: dict[str, tuple[int, ...]] = {}
    for number in range(data.draw(st.integers(1, 8))):
        prompt = tuple(data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=24)))
        is_scored = data.draw(st.booleans())
        bench.add(
            f"r{number}",
            prompt,
            priority=data.draw(st.integers(-1, 1)),
            max_tokens=data.draw(st.integers(1, 8)),
            prompt_logprobs=0 if is_scored else None,
        )
        if is_scored:
            scored[f"r{number}"] = prompt
        for _ in range(data.draw(st.integers(0, 3))):
            bench.step()
    bench.run()
    for request_id, prompt in scored.items():
        assert_scored(bench, request_id, prompt)


@pytest.mark.parametrize("salts", [("", ""), ("x", "x"), ("", "x"), ("x", "y")])
def test_prompts_of_different_salts_share_nothing(salts: tuple[str, str]) -> None:
    bench = Bench()
    params = SamplingParams(max_tokens=1, seed=0)
    for name, salt in zip(("first", "second"), salts, strict=True):
        bench.scheduler.add(EngineRequest(name, PROMPT, params, cache_salt=salt), 0.0)
        bench.run()
    assert bench.finished("second").usage.cached_tokens == (36 if salts[0] == salts[1] else 0)
