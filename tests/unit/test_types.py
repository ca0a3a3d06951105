"""The ranges of a request's fields: the edges are taken, what lies beyond is refused by name, value and range."""

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolChoice
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import (
    MAX_BAD_WORDS,
    MAX_BEAMS,
    MAX_BIASED,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_STRINGS,
    SamplingParams,
    Spec,
    StructuredOutput,
    choice_seed,
)

TAKEN: dict[str, list[Any]] = {
    "temperature": [0.0, 1e-9, 1.0, 100.0, 0, 2],
    "top_k": [0, 1, 2**31 - 1],
    "top_p": [1e-9, 0.5, 1.0, 1],
    "min_p": [0.0, 0.5, 1.0],
    "seed": [None, 0, MAX_SEED],
    "max_tokens": [None, 1, 10**6],
    "min_tokens": [0, 7],
    "stop": [(), ("\n",), ("x",) * MAX_STOP_STRINGS],
    "stop_token_ids": [(), (0, 5)],
    "ignore_eos": [True, False],
    "logprobs": [None, 0, MAX_LOGPROBS],
    "typical_p": [1e-9, 1.0],
    "top_n_sigma": [0.0, 1.5, 100.0],
    "presence_penalty": [-2.0, 0, 2.0],
    "frequency_penalty": [-2.0, 0, 2.0],
    "repetition_penalty": [0.01, 1.0, 100.0],
    "no_repeat_ngram_size": [0, 1, 1000],
    "logit_bias": [(), ((0, -100.0), (5, 100.0)), tuple((i, 0.0) for i in range(MAX_BIASED))],
    "allowed_token_ids": [(), (0, 5)],
    "bad_words": [(), ("a",) * MAX_BAD_WORDS],
    "n": [1, MAX_CHOICES],
    "best_of": [None, 1, MAX_CHOICES],
    "beam_width": [0, 1, MAX_BEAMS],
    "length_penalty": [-100.0, 0.0, 100.0],
    "early_stopping": [True, False, "never"],
    "include_stop_str_in_output": [True, False],
    "skip_special_tokens": [True, False],
    "prompt_logprobs": [None, 0, MAX_LOGPROBS],
    "structured_output": [None, StructuredOutput("json_object")],
    "thinking_budget": [None, 0, 10**6],
}
OF_SEARCHES = {"length_penalty", "early_stopping"}
UNBOUNDED = {"ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "structured_output"}
REFUSED: list[tuple[str, Any, str]] = [
    ("temperature", -0.01, "0 to 100"),
    ("temperature", 100.5, "0 to 100"),
    ("temperature", math.nan, "0 to 100"),
    ("temperature", math.inf, "0 to 100"),
    ("top_k", -1, "0 (off) to 2^31 - 1"),
    ("top_k", 2**31, "0 (off) to 2^31 - 1"),
    ("top_p", 0.0, "above 0, up to 1"),
    ("top_p", 1.01, "above 0, up to 1"),
    ("top_p", math.nan, "above 0, up to 1"),
    ("min_p", -0.1, "0 to 1"),
    ("min_p", 1.1, "0 to 1"),
    ("min_p", math.nan, "0 to 1"),
    ("seed", -1, "0 to 2^63 - 1"),
    ("seed", MAX_SEED + 1, "0 to 2^63 - 1"),
    ("max_tokens", 0, "1 or more, 0 with echo"),
    ("max_tokens", -5, "1 or more, 0 with echo"),
    ("min_tokens", -1, "0 to max_tokens"),
    ("stop", ("",), "up to 16 non-empty strings"),
    ("stop", ("x",) * (MAX_STOP_STRINGS + 1), "up to 16 non-empty strings"),
    ("stop_token_ids", (3, -1), "ids of 0 or more"),
    ("logprobs", -1, "0 to 20"),
    ("logprobs", MAX_LOGPROBS + 1, "0 to 20"),
    ("typical_p", 0.0, "above 0, up to 1"),
    ("typical_p", math.nan, "above 0, up to 1"),
    ("top_n_sigma", -1.0, "0 (off) to 100"),
    ("presence_penalty", -2.01, "-2 to 2"),
    ("presence_penalty", math.nan, "-2 to 2"),
    ("frequency_penalty", 2.01, "-2 to 2"),
    ("repetition_penalty", 0.0, "0.01 to 100"),
    ("repetition_penalty", math.inf, "0.01 to 100"),
    ("no_repeat_ngram_size", -1, "0 (off) to 1000"),
    ("allowed_token_ids", (3, -1), "ids of 0 or more"),
    ("bad_words", ("",), "up to 256 non-empty strings"),
    ("n", 0, "1 to 64"),
    ("n", MAX_CHOICES + 1, "1 to 64"),
    ("best_of", 0, "n to 64"),
    ("best_of", MAX_CHOICES + 1, "n to 64"),
    ("beam_width", -1, "0 (off) to 64"),
    ("beam_width", MAX_BEAMS + 1, "0 (off) to 64"),
    ("length_penalty", math.nan, "-100 to 100"),
    ("early_stopping", "always", "true, false, never"),
    ("prompt_logprobs", MAX_LOGPROBS + 1, "0 to 20"),
    ("thinking_budget", -1, "0 or more"),
]


def spec(**changes: Any) -> Spec:
    base: dict[str, Any] = {"request_id": "r", "model": "m", "params": SamplingParams(), "prompt": "hello"}
    return Spec(**(base | changes))


def test_every_parameter_is_in_the_tables_of_this_file() -> None:
    names = {f.name for f in fields(SamplingParams)}
    assert set(TAKEN) == names
    assert {name for name, _, _ in REFUSED} == names - UNBOUNDED - {"logit_bias"}


def test_the_defaults_hold() -> None:
    SamplingParams().check()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TAKEN.items() for value in values])
def test_a_value_at_the_edge_of_its_range_is_taken(name: str, value: Any) -> None:
    SamplingParams(**{name: value}, **({"beam_width": 1} if name in OF_SEARCHES else {})).check()


@pytest.mark.parametrize(("name", "value"), [("length_penalty", 0.5), ("early_stopping", "never")])
def test_what_only_a_search_reads_is_refused_without_one(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"{name} = .* needs a beam search") as refused:
        SamplingParams(**{name: value}).check()
    assert refused.value.field == name


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_a_value_beyond_its_range_is_refused_with_field_value_and_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**{name: value}).check()
    shown = list(value) if isinstance(value, tuple) else value
    assert refused.value.message == f"{name} = {shown!r} is out of range: allowed is {allowed}"
    assert refused.value.field == name


@pytest.mark.parametrize("bias", [{0: 100.5}, {0: math.nan}, {-1: 0.0}, dict.fromkeys(range(MAX_BIASED + 1), 0.0)])
def test_a_bias_beyond_its_range_is_refused(bias: dict[int, float]) -> None:
    with pytest.raises(InvalidRequest, match="up to 1024 ids of 0 or more, with biases of -100 to 100") as refused:
        SamplingParams(logit_bias=tuple(bias.items())).check()
    assert refused.value.field == "logit_bias"


def test_no_fewer_choices_are_made_than_are_given() -> None:
    SamplingParams(n=3, best_of=3).check()
    with pytest.raises(InvalidRequest, match="best_of = 2 is out of range"):
        SamplingParams(n=3, best_of=2).check()


def test_a_search_gives_no_more_beams_than_it_has() -> None:
    SamplingParams(n=4, beam_width=4).check()
    with pytest.raises(InvalidRequest, match="n = 5 is out of range: allowed is 1 to beam_width = 4"):
        SamplingParams(n=5, beam_width=4).check()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.7),
        ("top_k", 5),
        ("top_p", 0.9),
        ("min_p", 0.1),
        ("typical_p", 0.9),
        ("top_n_sigma", 1.0),
        ("best_of", 2),
        ("stop", ("x",)),
        ("logprobs", 3),
    ],
)
def test_a_search_refuses_what_it_would_ignore(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} = .* cannot be combined with beam_width = 2") as refused:
        SamplingParams(beam_width=2, **{field: value}).check()
    assert refused.value.field == field


def test_no_more_tokens_can_be_required_than_are_allowed() -> None:
    SamplingParams(min_tokens=5, max_tokens=5).check()
    with pytest.raises(InvalidRequest, match="min_tokens = 6 is out of range: allowed is 0 to max_tokens"):
        SamplingParams(min_tokens=6, max_tokens=5).check()


def test_the_first_field_out_of_range_is_the_one_named() -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(top_p=0.0, temperature=-1.0, logprobs=99).check()
    assert refused.value.field == "temperature"


@given(st.floats(allow_nan=True), st.integers(), st.floats(allow_nan=True))
def test_whatever_is_taken_can_be_sampled_with(temperature: float, top_k: int, top_p: float) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    try:
        params.check()
    except InvalidRequest:
        return
    assert math.isfinite(params.temperature) and params.temperature >= 0
    assert 0 < params.top_p <= 1
    assert 0 <= params.top_k < 2**31


@pytest.mark.parametrize(
    "form",
    [
        {"prompt": "x"},
        {"prompt": ""},
        {"prompt_ids": (1,)},
        {"conversation": Conversation((ChatMessage("user", "x"),))},
    ],
)
def test_each_form_of_prompt_is_enough(form: dict[str, Any]) -> None:
    Spec("r", "m", SamplingParams(), **form).check()


@pytest.mark.parametrize(
    "forms",
    [{}, {"prompt": "x", "prompt_ids": (1,)}, {"prompt": "x", "prompt_ids": (1,), "conversation": Conversation(())}],
)
def test_no_prompt_and_two_prompts_are_refused(forms: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="exactly one of prompt, prompt_ids and messages") as refused:
        Spec("r", "m", SamplingParams(), **forms).check()
    assert refused.value.field == "prompt"


@pytest.mark.parametrize("priority", [-101, 101])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    with pytest.raises(InvalidRequest, match=f"priority = {priority} is out of range") as refused:
        spec(priority=priority).check()
    assert refused.value.field == "priority"


@pytest.mark.parametrize("priority", [-100, 0, 100])
def test_a_priority_in_range_is_taken(priority: int) -> None:
    spec(priority=priority).check()


def test_choices_have_seeds_of_their_own_and_the_first_keeps_the_requests() -> None:
    seeds = [choice_seed(seed, choice) for seed in (0, 1, MAX_SEED) for choice in range(MAX_CHOICES)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed <= MAX_SEED for seed in seeds)
    assert [choice_seed(seed, 0) for seed in (0, 1, MAX_SEED)] == [0, 1, MAX_SEED]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"suffix": "x", "prompt": None, "prompt_ids": (1,)}, "suffix"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"tenant": "x" * 129}, "tenant"),
        ({"cache_salt": "x" * 129}, "cache_salt"),
    ],
)
def test_what_a_request_cannot_mean_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        spec(**changes).check()
    assert refused.value.field == field


TOOLS = (Tool("f"), Tool("g"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"messages": ()}, "messages"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"tools": (Tool("f"), Tool("f"))}, "tools"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": ToolChoice("named", "h")}, "tool_choice"),
    ],
)
def test_a_conversation_that_contradicts_itself_is_refused(changes: dict[str, Any], field: str) -> None:
    base: dict[str, Any] = {"messages": (ChatMessage("user", "x"),)}
    with pytest.raises(InvalidRequest) as refused:
        spec(prompt=None, conversation=Conversation(**(base | changes))).check()
    assert refused.value.field == field


def test_tools_may_be_chosen_by_name() -> None:
    turn = (ChatMessage("user", "x"),)
    Conversation(turn, TOOLS, ToolChoice("named", "g")).check()
    Conversation(turn, add_generation_prompt=False, continue_final_message=True).check()


def test_a_request_checks_its_parameters() -> None:
    with pytest.raises(InvalidRequest, match="top_p"):
        spec(params=SamplingParams(top_p=2.0)).check()


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        spec().prompt = "other"  # type: ignore[misc]
