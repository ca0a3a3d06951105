"""The ranges of a request's fields: the edges are taken, what lies beyond is refused by name, value and range."""

import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.protos.conversation import ChatMessage
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import MAX_LOGPROBS, MAX_SEED, MAX_STOP_STRINGS, SamplingParams, Spec

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
}
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
    ("max_tokens", 0, "1 or more"),
    ("max_tokens", -5, "1 or more"),
    ("min_tokens", -1, "0 to max_tokens"),
    ("stop", ("",), "up to 16 non-empty strings"),
    ("stop", ("x",) * (MAX_STOP_STRINGS + 1), "up to 16 non-empty strings"),
    ("stop_token_ids", (3, -1), "ids of 0 or more"),
    ("logprobs", -1, "0 to 20"),
    ("logprobs", MAX_LOGPROBS + 1, "0 to 20"),
]


def spec(**changes: Any) -> Spec:
    base: dict[str, Any] = {"request_id": "r", "model": "m", "params": SamplingParams(), "prompt": "hello"}
    return Spec(**(base | changes))


def test_every_parameter_is_in_the_tables_of_this_file() -> None:
    names = {f.name for f in fields(SamplingParams)}
    assert set(TAKEN) == names
    assert {name for name, _, _ in REFUSED} == names - {"ignore_eos"}


def test_the_defaults_hold() -> None:
    SamplingParams().check()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in TAKEN.items() for value in values])
def test_a_value_at_the_edge_of_its_range_is_taken(name: str, value: Any) -> None:
    SamplingParams(**{name: value}).check()


@pytest.mark.parametrize(("name", "value", "allowed"), REFUSED)
def test_a_value_beyond_its_range_is_refused_with_field_value_and_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**{name: value}).check()
    shown = list(value) if isinstance(value, tuple) else value
    assert refused.value.message == f"{name} = {shown!r} is out of range: allowed is {allowed}"
    assert refused.value.field == name


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
    "form", [{"prompt": "x"}, {"prompt": ""}, {"prompt_ids": (1,)}, {"messages": (ChatMessage("user", "x"),)}]
)
def test_each_form_of_prompt_is_enough(form: dict[str, Any]) -> None:
    Spec("r", "m", SamplingParams(), **form).check()


@pytest.mark.parametrize(
    "forms", [{}, {"prompt": "x", "prompt_ids": (1,)}, {"prompt": "x", "prompt_ids": (1,), "messages": ()}]
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


def test_a_request_checks_its_parameters() -> None:
    with pytest.raises(InvalidRequest, match="top_p"):
        spec(params=SamplingParams(top_p=2.0)).check()


def test_a_request_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        spec().prompt = "other"  # type: ignore[misc]
