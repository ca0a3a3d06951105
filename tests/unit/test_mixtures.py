"""Everything a request may ask for at once, on the embedded model: no combination changes a bit, and grammars hold."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
from exact_engine import Answer, alone, differences, longest_tokens, play, start
from exact_requests import Arrival, Asked, Limits, choices
from grammars import EMBEDDED, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from native import library_or_skip

from rayline.cluster.config import ParallelSection
from rayline.protos.errors import InvalidRequest
from rayline.protos.events import EngineEvent, Failed, Finished, FinishReason
from rayline.protos.types import (
    PLAIN_RULES,
    EngineRequest,
    SamplingParams,
    StructuredOutput,
    Thinking,
    TokenRules,
)
from rayline.router.grammars.grammar import grammar_text
from rayline.workers.group import StartedGroup
from rayline.workers.local_launch import LocalLauncher

DIGITS = r"[0-9]{2,5}(-[0-9]{2,5}){1,3}"
GRAMMAR = grammar_text(StructuredOutput("regex", DIGITS), {})
RULES = (
    PLAIN_RULES,
    TokenRules(grammar=GRAMMAR),
    TokenRules(bad_words=((40,), (50, 60))),
    TokenRules(thinking=Thinking((70,), (80, 81), budget_tokens=5, is_open=True)),
    TokenRules(bad_words=((40,),), grammar=GRAMMAR, thinking=Thinking((70,), (80,), budget_tokens=3, is_open=True)),
)
PENALTIES: tuple[dict[str, Any], ...] = (
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 4},
    {"logit_bias": ((30, 4.0), (31, -9.0)), "min_tokens": 4},
)
SAMPLED: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"presence_penalty": 0.7, "frequency_penalty": -0.4, "typical_p": 0.8},
    {"top_p": 0.9, "top_n_sigma": 2.0, "logprobs": 3},
    {"temperature": 1.7, "top_k": 40},
)


@st.composite
def requests(draw: st.DrawFn) -> list[Arrival]:
    """One request: a search, or one or several choices."""
    params: dict[str, Any] = {"seed": draw(st.integers(0, 9)), "max_tokens": draw(st.sampled_from([6, 14, 24]))}
    params |= draw(st.sampled_from(PENALTIES))
    is_search = draw(st.integers(0, 2)) == 0
    params |= {"beam_width": draw(st.integers(2, 4)), "n": 2} if is_search else draw(st.sampled_from(SAMPLED))
    params["prompt_logprobs"] = draw(st.sampled_from([None, None, 2]))
    prompt = ((draw(st.integers(0, 1)), draw(st.sampled_from([1, 16, 30, 60]))),)
    asked = Asked(prompt, SamplingParams(**params), draw(st.sampled_from(RULES)))
    arrival = Arrival(
        asked,
        after_steps=draw(st.sampled_from([0, 0, 2])),
        abort_after_steps=draw(st.sampled_from([None, None, None, 5])),
        resumed_tokens=draw(st.sampled_from([0, 0, 2])),
        priority=draw(st.sampled_from([0, 0, -1])),
    )
    return choices(arrival, draw(st.sampled_from([1, 3])), f"family {draw(st.integers(0, 10**9))}")


mixtures = st.lists(requests(), min_size=2, max_size=5).map(
    lambda found: [arrival for each in found for arrival in each]
)
engines = st.builds(
    Limits,
    max_step_tokens=st.sampled_from([23, 64]),
    max_running=st.sampled_from([4, 8, 16]),
    prefix_caching=st.booleans(),
    spare_blocks=st.sampled_from([0, 3, 40]),
    async_scheduling=st.sampled_from(["always", "never"]),
)


@pytest.fixture(scope="module", autouse=True)
def native() -> None:
    library_or_skip()


@given(mixture=mixtures, engine=engines)
@settings(max_examples=8)
def test_no_combination_changes_a_bit(mixture: Sequence[Arrival], engine: Limits) -> None:
    group = start(EMBEDDED, engine, longest_tokens(mixture))
    assert not differences(group, mixture, partial(alone, EMBEDDED))


@pytest.fixture(
    scope="module",
    params=[(2, 1, "never"), (2, 1, "always"), (1, 2, "never"), (1, 2, "always")],
    ids=["tp 2", "tp 2, launched ahead", "pp 2", "pp 2, launched ahead"],
)
def ranks(request: pytest.FixtureRequest) -> Iterator[StartedGroup]:
    tp, pp, ahead = request.param
    engine = Limits(max_step_tokens=29, max_running=8, spare_blocks=2, decode_stretch=2.0, async_scheduling=ahead)
    group = start(EMBEDDED, engine, 300, parallel=ParallelSection(tp, pp, 1), launcher=LocalLauncher())
    yield group
    group.engine.close()


@given(mixture=mixtures)
@settings(max_examples=6)
def test_no_combination_over_ranks_and_stages_changes_a_bit(ranks: StartedGroup, mixture: Sequence[Arrival]) -> None:
    assert not differences(ranks, mixture, partial(alone, EMBEDDED))


@cache
def structured() -> list[tuple[Arrival, Answer]]:
    """Choices and a search under one grammar, preempted by each other."""
    rules = TokenRules(grammar=GRAMMAR)
    sampled = Asked(((0, 20),), SamplingParams(max_tokens=30, seed=1, frequency_penalty=0.5), rules)
    searched = Asked(((0, 20),), SamplingParams(max_tokens=30, seed=1, beam_width=3, n=3), rules)
    mixture = [*choices(Arrival(sampled), 4, "r"), Arrival(searched), *choices(Arrival(sampled, 1), 3, "s")]
    group = start(EMBEDDED, Limits(max_step_tokens=23, max_running=12, spare_blocks=1), 150)
    answers = play(group, [(arrival, ()) for arrival in mixture])
    assert group.engine.scheduler.stats.preemptions > 0
    return list(zip(mixture, answers, strict=True))


def test_choices_beams_and_preemption_leave_a_grammar_whole() -> None:
    texts = []
    for _, answer in structured():
        sampled = [([token[0] for token in answer.tokens], answer.reason)] if answer.tokens else []
        searched = [(list(ids), reason) for ids, _, _, reason in answer.beams]
        texts += [tokenizer().decode(ids[:-1]) for ids, reason in sampled + searched if reason is FinishReason.STOP]
    assert len(texts) >= 5
    assert all(re.fullmatch(DIGITS, text) for text in texts)
    assert len(set(texts)) > 3, "choices differ"


def test_a_request_without_a_token_left_ends_alone_while_plans_that_count_on_one_are_in_flight(
    ranks: StartedGroup,
) -> None:
    engine = ranks.engine
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True, seed=0)
    stuck = replace(params, allowed_token_ids=(40,), max_tokens=9)
    engine.add(EngineRequest("stuck", (5, 6, 7), stuck, rules=TokenRules(bad_words=((40,),))))
    engine.add(EngineRequest("other", (5, 6, 7), params))
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.step()
    ends = {event.request_id: event for event in events if isinstance(event, Finished | Failed)}
    assert isinstance(ends["stuck"], Failed) and isinstance(ends["stuck"].error, InvalidRequest)
    assert isinstance(ends["other"], Finished) and ends["other"].usage.output_tokens == 20
