"""Every parameter through the OpenAI HTTP API with the real openai package, in front of fake groups."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import openai
import pytest
from doors import CHAT, COMPLETION, HI, client_of, http_of
from fakes import FakeGroup, saying, service_of
from small_tokenizers import served

from rayline.protos.openai_chat import ChatCompletionBody
from rayline.protos.openai_completion import CompletionBody
from rayline.protos.openai_sampling import SAME, SamplingBody
from rayline.protos.types import EngineRequest, SamplingParams, StructuredOutput

TOKENIZER = served("byte_level")
TEXTS = ["the dog", "the quick brown fox", "fox", "jumps over"]


def number_of(request: EngineRequest) -> int:
    return int(request.request_id.partition("/")[2] or 0)


def each_its_own(request: EngineRequest) -> Sequence[int]:
    return TOKENIZER.encode(TEXTS[number_of(request)], add_special_tokens=False)


# ---- n, best_of, beams


@pytest.mark.parametrize("stream", [False, True])
def test_n_gives_choices_by_index_each_with_its_reason(stream: bool) -> None:
    with client_of(service_of(FakeGroup(each_its_own, delay_s=0.001))) as client:
        answer: Any = client.chat.completions.create(model="tiny", messages=HI, n=3, max_tokens=20, stream=stream)
        texts, reasons = ["", "", ""], {}
        for part in answer if stream else [answer]:
            for choice in part.choices:
                said = choice.delta if stream else choice.message
                texts[choice.index] += said.content or ""
                if choice.finish_reason:
                    reasons[choice.index] = choice.finish_reason
    assert texts == TEXTS[:3] and reasons == {0: "stop", 1: "stop", 2: "stop"}


@pytest.mark.parametrize("stream", [False, True])
def test_choices_of_several_prompts_are_numbered_through(stream: bool) -> None:
    with client_of(service_of(FakeGroup(each_its_own))) as client:
        answer: Any = client.completions.create(model="tiny", prompt=["a", "b"], n=2, max_tokens=20, stream=stream)
        texts = [""] * 4
        for part in answer if stream else [answer]:
            for choice in part.choices:
                texts[choice.index] += choice.text
    assert texts == TEXTS[:2] * 2


def test_best_of_gives_the_best_and_counts_all() -> None:
    group = FakeGroup(each_its_own, logprob_of=lambda request: -abs(number_of(request) - 2.0))
    with client_of(service_of(group)) as client:
        answer = client.completions.create(model="tiny", prompt="a", n=1, best_of=4, max_tokens=20)
        assert answer.choices[0].text == TEXTS[2] and answer.choices[0].model_dump()["score"] == 0.0
        assert answer.usage is not None
        assert answer.usage.completion_tokens == sum(len(each_its_own(request)) for request in group.requests)
        with pytest.raises(openai.BadRequestError, match="best_of = 4 cannot be streamed"):
            client.completions.create(model="tiny", prompt="a", best_of=4, stream=True)


@pytest.mark.parametrize("search", [{"beam_width": 3}, {"use_beam_search": True, "best_of": 3}])
def test_beams_are_choices_with_scores(search: dict[str, Any]) -> None:
    group = FakeGroup(saying("the fox"))
    with client_of(service_of(group)) as client:
        answer = client.completions.create(model="tiny", prompt="a", n=2, extra_body=search)
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.choices[0].text == "the fox"
    assert [choice.model_dump()["score"] for choice in answer.choices] == [0.0, -1.0]
    assert group.requests[0].params.beam_width == 3


# ---- prompts


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_with_logprobs_scores_the_prompt_as_evaluation_harnesses_ask(stream: bool) -> None:
    with client_of(service_of(FakeGroup(saying("x")))) as client:
        answer: Any = client.completions.create(
            model="tiny", prompt="the lazy dog", echo=True, logprobs=1, max_tokens=0, stream=stream
        )
        choices = [choice for part in (answer if stream else [answer]) for choice in part.choices]
    ids = TOKENIZER.encode("the lazy dog")
    (scored,) = [choice.logprobs for choice in choices if choice.logprobs]
    assert "".join(choice.text for choice in choices) == "the lazy dog" == "".join(scored.tokens)
    assert scored.token_logprobs == [None, *(-float(at) for at in range(1, len(ids)))]
    assert scored.top_logprobs[0] is None and all(len(best) == 1 for best in scored.top_logprobs[1:])
    assert scored.text_offset == [0, *(len("".join(scored.tokens[:n])) for n in range(1, len(ids)))]
    assert choices[-1].finish_reason == "length"


def test_an_echo_comes_before_the_output_and_its_logprobs_before_the_outputs() -> None:
    with client_of(service_of(FakeGroup(saying(" fox")))) as client:
        answer = client.completions.create(model="tiny", prompt="the lazy", echo=True, logprobs=0, max_tokens=9)
    (choice,) = answer.choices
    assert choice.text == "the lazy fox" and choice.logprobs is not None and choice.logprobs.tokens is not None
    assert "".join(choice.logprobs.tokens) == "the lazy fox"
    assert answer.usage is not None and answer.usage.completion_tokens == len(TOKENIZER.encode(" fox"))


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_prompt_logprobs_are_written_by_place_and_id(path: str, stream: bool) -> None:
    group = FakeGroup(saying("x"))
    body = {**(CHAT if "chat" in path else COMPLETION), "prompt_logprobs": 2, "stream": stream}
    with http_of(service_of(group)) as client:
        (found,) = [
            told
            for part in parts(client.post(f"/v1/{path}", json=body))
            for told in (part.get("prompt_logprobs"), *(c.get("prompt_logprobs") for c in part["choices"]))
            if told
        ]
    ids = group.requests[0].prompt_ids
    assert found[0] is None and len(found) == len(ids)
    for at, (token_id, place) in enumerate(zip(ids[1:], found[1:], strict=True), 1):
        assert place[str(token_id)]["logprob"] == (-float(at) if token_id > 1 else -float(token_id))
        assert place["0"] == {"logprob": 0.0, "rank": 1, "decoded_token": TOKENIZER.token_text(0)}


def test_the_end_of_a_prompt_is_kept() -> None:
    group = FakeGroup(saying("x"))
    with client_of(service_of(group)) as client:
        client.completions.create(model="tiny", prompt=[1, 2, 3, 4], extra_body={"truncate_prompt_tokens": 2})
        client.chat.completions.create(model="tiny", messages=HI, extra_body={"truncate_prompt_tokens": 3})
    assert group.requests[0].prompt_ids == (3, 4)
    assert [len(request.prompt_ids) for request in group.requests] == [2, 3]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_token_ids_of_prompt_and_output_come_back(path: str, stream: bool) -> None:
    group = FakeGroup(saying("é fox"))
    body = {**(CHAT if "chat" in path else COMPLETION), "return_token_ids": True, "stream": stream, "max_tokens": 9}
    with http_of(service_of(group)) as client:
        answers = parts(client.post(f"/v1/{path}", json=body))
    choices = [choice for part in answers for choice in part["choices"]]
    assert [token for choice in choices for token in choice.get("token_ids", [])] == list(TOKENIZER.encode("é fox"))
    told = [holder["prompt_token_ids"] for holder in (*answers, *choices) if "prompt_token_ids" in holder]
    assert told == [list(group.requests[0].prompt_ids)]


def test_tokens_can_be_named_by_their_ids() -> None:
    with client_of(service_of(FakeGroup(saying("the")))) as client:
        extra = {"return_tokens_as_token_ids": True}
        (token_id, *_) = TOKENIZER.encode("the")
        text = client.completions.create(model="tiny", prompt="a", logprobs=1, extra_body=extra).choices[0].logprobs
        chat = client.chat.completions.create(
            model="tiny", messages=HI, logprobs=True, top_logprobs=1, extra_body=extra
        )
    assert text is not None and text.tokens is not None and text.tokens[0] == f"token_id:{token_id}"
    content = chat.choices[0].logprobs and chat.choices[0].logprobs.content
    assert content and content[0].token == content[0].top_logprobs[0].token == f"token_id:{token_id}"


# ---- streams


def test_usage_so_far_comes_with_every_chunk_when_asked_for() -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    with client_of(service_of(FakeGroup(saying("the quick brown fox")))) as client:
        *chunks, last = client.completions.create(
            model="tiny", prompt="the dog", max_tokens=20, stream=True, stream_options=options
        )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert len(counts) == len(chunks) and counts == sorted(counts) and counts[0] == 1
    assert last.usage is not None and last.usage.completion_tokens == counts[-1]
    assert last.usage.completion_tokens_details is not None
    assert last.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_echoes_the_message_that_it_goes_on_with(stream: bool) -> None:
    turns: Any = [*HI, {"role": "assistant", "content": "It is "}]
    group = FakeGroup(each_its_own)
    with client_of(service_of(group)) as client:
        answer: Any = client.chat.completions.create(
            model="tiny",
            messages=turns,
            n=2,
            max_tokens=20,
            stream=stream,
            extra_body={"echo": True, "continue_final_message": True},
        )
        texts = ["", ""]
        for part in answer if stream else [answer]:
            for choice in part.choices:
                texts[choice.index] += (choice.delta if stream else choice.message).content or ""
    assert texts == ["It is the dog", "It is the quick brown fox"]


# ---- every field


# A value of each field that differs from its default, and where it is looked for.
VALUES: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "min_p": 0.25,
    "typical_p": 0.5,
    "top_n_sigma": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.25,
    "no_repeat_ngram_size": 3,
    "allowed_token_ids": [3, 4],
    "seed": 9,
    "length_penalty": 2.0,
    "early_stopping": "never",
    "min_tokens": 2,
    "include_stop_str_in_output": True,
    "stop_token_ids": [7],
    "ignore_eos": True,
    "skip_special_tokens": False,
    "top_k": 5,
    "stop": ["a", "b"],
    "logit_bias": {"3": -1.5, "5": 2},
    "priority": -4,
    "cache_salt": "salt",
}
SEARCH = {"length_penalty": {"beam_width": 1}, "early_stopping": {"beam_width": 1}}  # what they mean something in
# Not what a group gets to see under its own name: tests above and below hold them.
ELSEWHERE = {
    "n",
    "best_of",
    "beam_width",
    "use_beam_search",
    "bad_words",
    "prompt_logprobs",
    "thinking_budget",
    "max_tokens",
    "model",
    "prompt",
    "suffix",
    "echo",
    "logprobs",
    "stream",
    "stream_options",
    "response_format",
    "structured_outputs",
    "truncate_prompt_tokens",
    "return_token_ids",
    "return_tokens_as_token_ids",
}


def test_every_field_of_a_body_is_in_these_tests() -> None:
    assert set(CompletionBody.model_fields) == set(VALUES) | ELSEWHERE
    assert set(SAME) < set(VALUES) | ELSEWHERE
    assert {field for field in SamplingParams.__slots__} - {"structured_output"} < set(SamplingBody.model_fields) | {
        "logprobs"
    }


@pytest.mark.parametrize("field", VALUES)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_every_field_reaches_the_group(path: str, field: str) -> None:
    group = FakeGroup(saying("x"))
    body = {**(CHAT if "chat" in path else COMPLETION), "max_tokens": 4, field: VALUES[field], **SEARCH.get(field, {})}
    with http_of(service_of(group)) as client:
        assert client.post(f"/v1/{path}", json=body).status_code == 200
        assert client.post(f"/v1/{path}", json={**body, field: None}).status_code == 200
    seen, plain = group.requests
    here = field in EngineRequest.__slots__
    got = getattr(seen if here else seen.params, field)
    default = getattr(plain if here else plain.params, field)
    expected = {"stop": ("a", "b"), "logit_bias": ((3, -1.5), (5, 2.0))}.get(field, VALUES[field])
    assert got == (tuple(expected) if isinstance(expected, list) else expected) != default


def test_bad_words_reach_the_group_as_tokens() -> None:
    group = FakeGroup(saying("x"))
    with client_of(service_of(group)) as client:
        client.completions.create(model="tiny", prompt="a", extra_body={"bad_words": ["fox", "the dog"]})
    banned = {TOKENIZER.decode(ids) for ids in group.requests[0].rules.bad_words}
    assert banned == {"fox", " fox", "the dog", " the dog"} and group.requests[0].params.bad_words == ()


def test_the_tenant_is_named_by_a_header() -> None:
    group = FakeGroup(saying("x"))
    with http_of(service_of(group)) as client:
        client.post("/v1/completions", json=COMPLETION, headers={"x-rayline-tenant": "blue"})
        client.post("/v1/completions", json=COMPLETION)
        long = client.post("/v1/completions", json=COMPLETION, headers={"x-rayline-tenant": "b" * 129})
    assert [request.tenant for request in group.requests] == ["blue", ""]
    assert long.status_code == 400 and long.json()["error"]["param"] == "tenant"


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, StructuredOutput("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "string"}}}},
            StructuredOutput("json_schema", '{"type": "string"}'),
        ),
        ({"structured_outputs": {"json": {"type": "string"}}}, StructuredOutput("json_schema", '{"type": "string"}')),
        ({"structured_outputs": {"regex": "a+"}}, StructuredOutput("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, StructuredOutput("choice", '["a", "b"]')),
        ({"structured_outputs": {"grammar": "start: x"}}, StructuredOutput("grammar", "start: x")),
        ({"structured_outputs": {"json_object": True}}, StructuredOutput("json_object")),
        ({"structured_outputs": {"json_object": False}}, None),
    ],
)
def test_forms_are_read_in_both_spellings(body: dict[str, Any], form: StructuredOutput | None) -> None:
    assert CompletionBody(model="m", prompt="p", **body).specs("r")[0].params.structured_output == form


# ---- what is out of range


BAD: dict[str, Any] = {
    "temperature": -0.5,
    "top_p": 0,
    "min_p": 1.5,
    "typical_p": 0,
    "top_n_sigma": -1,
    "presence_penalty": 2.5,
    "frequency_penalty": -2.5,
    "repetition_penalty": 0,
    "no_repeat_ngram_size": 1001,
    "allowed_token_ids": [400],
    "bad_words": [""],
    "seed": -1,
    "n": 65,
    "best_of": 65,
    "beam_width": 65,
    "length_penalty": 101,
    "early_stopping": "soon",
    "min_tokens": -1,
    "include_stop_str_in_output": "yes",
    "stop_token_ids": [-1],
    "ignore_eos": 1,
    "skip_special_tokens": 0,
    "prompt_logprobs": 21,
    "thinking_budget": -1,
    "top_k": -2,
    "stop": [""],
    "logit_bias": {"3": 101},
    "priority": 101,
    "cache_salt": "s" * 129,
    "max_tokens": 0,
    "truncate_prompt_tokens": 0,
    "response_format": {"type": "yaml"},
    "structured_outputs": {"regex": "a", "choice": ["b"]},
    "stream_options": {"include_usage": "yes"},
    "return_token_ids": "yes",
    "return_tokens_as_token_ids": "yes",
    "use_beam_search": "yes",
    "stream": "yes",
    "model": 5,
}


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with http_of(service_of(FakeGroup(saying("x")))) as shared:
        yield shared


def test_every_shared_field_has_a_bad_value_here() -> None:
    assert set(BAD) == set(SamplingBody.model_fields)


@pytest.mark.parametrize("field", BAD)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_bad_value_is_refused_by_name(client: httpx.Client, path: str, field: str) -> None:
    body = {**(CHAT if "chat" in path else COMPLETION), field: BAD[field]}
    answer = client.post(f"/v1/{path}", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == field and field in error["message"]


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "name is missing"),
        ({"tool_choice": "maybe"}, "tool_choice", "maybe"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages", "function is missing"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message", "needs add"),
        ({"reasoning_effort": "most"}, "reasoning_effort", "most"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs", "dictionary"),
        ({"beam_width": 2, "temperature": 0.5}, "temperature", "cannot be combined with beam_width"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs", ""),
        ({"response_format": {"type": "text", "triggers": ["<a>"]}}, "response_format", "triggers cannot be combined"),
        ({"length_penalty": 2.0}, "length_penalty", "needs a beam search"),
        ({"early_stopping": True}, "early_stopping", "needs a beam search"),
        ({"use_beam_search": False, "beam_width": 2}, "use_beam_search", "cannot be combined with beam_width"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "include_obfuscation", "not supported"),
        ({"echo": True}, "echo", "needs continue_final_message"),
    ],
)
def test_what_contradicts_itself_is_refused(client: httpx.Client, body: dict[str, Any], field: str, words: str) -> None:
    error = client.post("/v1/chat/completions", json={**CHAT, **body}).json()["error"]
    assert error["param"] == field and words in error["message"]


def test_every_field_of_a_chat_is_named_in_a_test_of_what_is_wrong() -> None:
    named = {"messages", "tools", "tool_choice", "add_generation_prompt", "continue_final_message"}
    named |= {"reasoning_effort", "chat_template_kwargs", "logprobs", "top_logprobs", "echo"}
    rest = {"max_completion_tokens", "parallel_tool_calls"}
    assert set(ChatCompletionBody.model_fields) - set(SamplingBody.model_fields) == named | rest


def parts(answer: httpx.Response) -> list[dict[str, Any]]:
    """The objects of an answer, streamed or not."""
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("application/json"):
        return [answer.json()]
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]
