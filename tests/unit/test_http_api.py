"""The HTTP door with the real openai package over a loopback port, in front of fake groups."""

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from doors import CHAT, COMPLETION, HI, asking, client_of, http_of, serving
from fakes import FakeGroup, saying, service_of
from prometheus_client.parser import text_string_to_metric_families
from small_tokenizers import served
from waiting import until, until_async

from rayline.cluster.config import SystemConfig
from rayline.protos.errors import Overloaded, Unavailable
from rayline.protos.group import GroupLoad
from rayline.router.http.api import build_http_app
from rayline.router.http.server import STOP_GRACE_S, http_server

SAYING = "the quick brown fox jumps"


def test_models_are_listed_and_found_by_name() -> None:
    with client_of(service_of(FakeGroup(saying("x")))) as client:
        (model,) = client.models.list().data
        assert (model.id, model.created, model.owned_by) == ("tiny", 1_700_000_000, "rayline")
        assert client.models.retrieve("tiny") == model
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("other/one")
        assert caught.value.code == "model_not_found"


def test_a_completion_has_text_reason_and_usage() -> None:
    group = FakeGroup(saying(SAYING))
    with client_of(service_of(group)) as client:
        answer = client.completions.create(model="tiny", prompt="the dog", max_tokens=20)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (SAYING, "stop")
    tokens = len(served("byte_level").encode(SAYING))
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, tokens)
    assert answer.usage.total_tokens == 2 + tokens and answer.usage.prompt_tokens_details.cached_tokens == 1
    assert group.finished == [answer.id]


def test_answers_name_the_numerics_class_and_whether_it_is_exact() -> None:
    group = FakeGroup(saying(SAYING))
    group.info = replace(group.info, numerics="cpu-fma-bfloat16", exact=True)
    with client_of(service_of(group)) as client:
        chat = {"model": "tiny", "messages": HI}
        assert client.chat.completions.create(**chat).system_fingerprint == "cpu-fma-bfloat16"
        streamed = client.completions.create(model="tiny", prompt="x", stream=True)
        assert {chunk.system_fingerprint for chunk in streamed} == {"cpu-fma-bfloat16"}
        group.info = replace(group.info, exact=False)
        assert client.chat.completions.create(**chat).system_fingerprint == "cpu-fma-bfloat16-inexact"


def test_metrics_show_each_groups_numerics_and_load() -> None:
    group = FakeGroup(saying(SAYING))
    group.info = replace(group.info, numerics="cpu-fma-bfloat16", exact=True)
    group.load = replace(group.load, running=3, waiting=2, free_blocks=7, total_blocks=9)
    with http_of(service_of(group)) as client:
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    labels = {"model": "tiny", "group": group.info.group_id}
    (info,) = families["rayline_group_info"].samples
    assert info.labels == labels | {"numerics": "cpu-fma-bfloat16", "exact": "true"}
    for name, value in (("running_requests", 3), ("waiting_requests", 2), ("free_kv_blocks", 7), ("kv_blocks", 9)):
        (sample,) = families[f"rayline_{name}"].samples
        assert (sample.labels, sample.value) == (labels, value)


def test_metrics_count_preemptions_by_reason() -> None:
    group = FakeGroup(saying(SAYING))
    group.load = replace(group.load, preemptions=(5, 0, 2), recomputed_tokens=77)
    with http_of(service_of(group)) as client:
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    samples = families["rayline_preemptions"].samples
    assert {(s.name, s.labels["reason"], s.value) for s in samples} == {
        ("rayline_preemptions_total", reason, count)
        for reason, count in (("growth", 5), ("stuck", 0), ("own_beams", 2))
    }
    (tokens,) = families["rayline_recomputed_tokens"].samples
    assert (tokens.name, tokens.value) == ("rayline_recomputed_tokens_total", 77)


def test_metrics_leave_out_groups_that_are_gone() -> None:
    group = FakeGroup(saying(SAYING))
    group.alive = False
    with http_of(service_of(group)) as client:
        assert "tiny" not in client.get("/metrics").text


def test_a_completion_without_max_tokens_stops_after_16() -> None:
    with client_of(service_of(FakeGroup(saying(SAYING * 9)))) as client:
        answer = client.completions.create(model="tiny", prompt="the dog")
    assert answer.choices[0].finish_reason == "length" and answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_a_streamed_completion_adds_up_to_the_whole_one() -> None:
    with client_of(service_of(FakeGroup(saying("naïve café 😀 日本語")))) as client:
        stream = client.completions.create(
            model="tiny", prompt="x", max_tokens=50, stream=True, stream_options={"include_usage": True}
        )
        *chunks, end, usage = list(stream)
        whole = client.completions.create(model="tiny", prompt="x", max_tokens=50)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "naïve café 😀 日本語" == whole.choices[0].text
    assert not any("\ufffd" in chunk.choices[0].text for chunk in chunks)
    assert end.choices[0].finish_reason == "stop" and usage.choices == [] and usage.usage == whole.usage
    assert {chunk.id for chunk in (*chunks, end, usage)} == {end.id}


def test_a_chat_completion_is_laid_out_by_the_template() -> None:
    group = FakeGroup(saying(SAYING))
    service = service_of(group)
    with client_of(service) as client:
        answer = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=20)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == ("assistant", SAYING, "stop")
    assert service.detokenize("tiny", group.requests[0].prompt_ids) == "<s>user: hi\n"
    assert group.requests[0].params.max_tokens == 20


def test_a_streamed_chat_begins_with_the_role_and_ends_with_a_reason() -> None:
    with client_of(service_of(FakeGroup(saying(SAYING)))) as client:
        first, *chunks, end = list(client.chat.completions.create(model="tiny", messages=HI, stream=True))
    assert first.choices[0].delta.role == "assistant" and first.object == "chat.completion.chunk"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAYING
    assert end.choices[0].finish_reason == "stop" and end.usage is None


def test_an_answer_sent_back_as_a_turn_is_accepted() -> None:
    with client_of(service_of(FakeGroup(saying("ok")))) as client:
        answer = client.chat.completions.create(model="tiny", messages=HI, max_tokens=5)
        turns = [
            *HI,
            answer.choices[0].message.model_dump(),
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ]
        assert (
            client.chat.completions.create(model="tiny", messages=turns, max_tokens=5).choices[0].message.content
            == "ok"
        )


async def test_the_async_client_streams_many_at_once() -> None:
    with serving(service_of(FakeGroup(saying(SAYING), delay_s=0.001))) as url:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one() -> str:
                stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            assert await asyncio.gather(*(one() for _ in range(12))) == [SAYING] * 12


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_give_a_choice_each(stream: bool) -> None:
    tokenizer = served("byte_level")
    group = FakeGroup(lambda request: request.prompt_ids * 2, delay_s=0.001)
    prompts = ["the", "fox", "dog"]
    with client_of(service_of(group)) as client:
        for form in (prompts, [list(tokenizer.encode(prompt)) for prompt in prompts]):
            usage: Any = {"stream_options": {"include_usage": True}} if stream else {}
            answer: Any = client.completions.create(model="tiny", prompt=form, stream=stream, **usage)
            texts = ["", "", ""]
            last: Any = answer
            for last in answer if stream else [answer]:
                for choice in last.choices:
                    texts[choice.index] += choice.text
            assert texts == [prompt * 2 for prompt in prompts]
            assert last.usage.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in prompts)


def test_the_sampling_fields_reach_the_group() -> None:
    group = FakeGroup(saying("x"))
    extra = {"top_k": 5, "min_p": 0.1, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [7], "priority": -4}
    with client_of(service_of(group)) as client:
        client.completions.create(
            model="tiny",
            prompt=[3, 4],
            temperature=0,
            top_p=0.5,
            seed=9,
            stop=["a", "b"],
            max_tokens=8,
            extra_body=extra,
        )
        client.completions.create(model="tiny", prompt="x", extra_body={"top_k": -1})
        client.chat.completions.create(model="tiny", messages=HI, extra_body={"top_k": 2**31 - 1})
    first, second, third = group.requests
    params = first.params
    assert first.prompt_ids == (3, 4) and first.priority == -4
    assert (params.temperature, params.top_p, params.seed, params.stop) == (0.0, 0.5, 9, ("a", "b"))
    assert (params.top_k, params.min_p, params.min_tokens, params.ignore_eos) == (5, 0.1, 2, True)
    assert params.stop_token_ids == (7,) and params.max_tokens == 8
    assert second.params.top_k == third.params.top_k == 0


def test_a_stop_string_ends_the_text_and_aborts_the_group() -> None:
    group = FakeGroup(saying(SAYING))
    with client_of(service_of(group)) as client:
        answer = client.completions.create(model="tiny", prompt="x", stop="n f", max_tokens=20)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("the quick brow", "stop")
    assert answer.choices[0].model_dump()["stop_reason"] == "n f" and group.aborted == [answer.id]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_logprobs_name_tokens_and_their_bytes(stream: bool) -> None:
    with client_of(service_of(FakeGroup(saying("é the")))) as client:
        answer: Any = client.chat.completions.create(
            model="tiny", messages=HI, logprobs=True, top_logprobs=2, stream=stream
        )
        answers = list(answer) if stream else [answer]
    entries = [e for a in answers for c in a.choices if c.logprobs for e in c.logprobs.content]
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == "é the"
    for entry in entries:
        assert entry.logprob == -0.5 and [top.logprob for top in entry.top_logprobs] == [-0.5, -1.5]
        assert entry.top_logprobs[0].token == entry.token


@pytest.mark.parametrize("stream", [False, True])
def test_completion_logprobs_carry_offsets(stream: bool) -> None:
    with client_of(service_of(FakeGroup(saying(SAYING)))) as client:
        answer: Any = client.completions.create(model="tiny", prompt="x", logprobs=1, stream=stream, max_tokens=20)
        parts = [c.logprobs for a in (answer if stream else [answer]) for c in a.choices if c.logprobs]
    tokens = [token for part in parts for token in part.tokens]
    offsets = [offset for part in parts for offset in part.text_offset]
    assert "".join(tokens) == SAYING
    assert [SAYING[offset:].startswith(token) for offset, token in zip(offsets, tokens, strict=True)] == [True] * len(
        tokens
    )
    assert [list(top) for part in parts for top in part.top_logprobs] == [[token] for token in tokens]
    assert {logprob for part in parts for logprob in part.token_logprobs} == {-0.5}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("completions", {**COMPLETION, "model": "huge"}, 404, "model", "'huge' is not served"),
        ("completions", {"prompt": "x"}, 400, "model", "model is missing"),
        ("completions", {"model": "tiny"}, 400, "prompt", "prompt is missing"),
        ("completions", {**COMPLETION, "prompt": "the dog " * 99}, 400, "prompt", "context is 64 tokens"),
        ("completions", {**COMPLETION, "max_tokens": 64}, 400, "max_tokens", "max_tokens = 64"),
        ("completions", {**COMPLETION, "max_tokens": 0}, 400, "max_tokens", "1 or more"),
        ("completions", {**COMPLETION, "temperature": -1}, 400, "temperature", "0 to 100"),
        ("completions", {**COMPLETION, "temperature": "hot"}, 400, "temperature", "temperature = 'hot'"),
        ("completions", {**COMPLETION, "top_p": 0}, 400, "top_p", "above 0"),
        ("completions", {**COMPLETION, "seed": -1}, 400, "seed", "0 to 2^63"),
        ("completions", {**COMPLETION, "seed": 2**63}, 400, "seed", "0 to 2^63"),
        ("completions", {**COMPLETION, "logprobs": 21}, 400, "logprobs", "0 to 20"),
        ("completions", {**COMPLETION, "stop": [""]}, 400, "stop", "non-empty"),
        ("completions", {**COMPLETION, "stop_token_ids": [400]}, 400, "stop_token_ids", "0 to 399"),
        ("completions", {**COMPLETION, "prompt": [1, 400]}, 400, "prompt", "prompt = 400"),
        ("completions", {**COMPLETION, "prompt": []}, 400, "prompt", "1 to 256"),
        ("completions", {**COMPLETION, "prompt": ["x"] * 257}, 400, "prompt", "257 prompts"),
        ("completions", {**COMPLETION, "prompt": {"a": 1}}, 400, "prompt", "prompt"),
        ("completions", {**COMPLETION, "prompt": "\ud800"}, 400, "prompt", "surrogate"),
        ("completions", {**COMPLETION, "temprature": 1}, 400, "temprature", "is not a field"),
        ("completions", {**COMPLETION, "n": 0}, 400, "n", "n = 0 is out of range: allowed is 1 to 64"),
        ("completions", {**COMPLETION, "best_of": 65}, 400, "best_of", "n to 64"),
        ("completions", {**COMPLETION, "suffix": "x"}, 400, "suffix", "fill-in-the-middle"),
        ("completions", {**COMPLETION, "priority": 101}, 400, "priority", "-100"),
        ("chat/completions", {**CHAT, "presence_penalty": 2.5}, 400, "presence_penalty", "-2 to 2"),
        ("chat/completions", {**CHAT, "logit_bias": {"1": 200}}, 400, "logit_bias", "-100 to 100"),
        ("chat/completions", {**CHAT, "logit_bias": {"one": 2}}, 400, "logit_bias", "must be a token id"),
        ("chat/completions", {**CHAT, "logit_bias": {"400": 2}}, 400, "logit_bias", "0 to 399"),
        ("chat/completions", {**CHAT, "tools": [{}]}, 400, "tools", "tools.0.type is missing"),
        ("chat/completions", {**CHAT, "tool_choice": "required"}, 400, "tool_choice", "needs tools"),
        ("chat/completions", {**CHAT, "audio": {"voice": "x"}}, 400, "audio", "not supported"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "0 to 20"),
        ("chat/completions", {**CHAT, "messages": []}, 400, "messages", "at least one"),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "user"}]},
            400,
            "messages",
            "messages.0.content is missing",
        ),
        ("chat/completions", {**CHAT, "messages": [{**HI[0], "mood": 1}]}, 400, "messages", "messages.0.mood"),
        ("chat/completions", {**CHAT, "stream_options": {"x": 1}}, 400, "stream_options", "stream_options.x"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_an_openai_error_that_names_the_field(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, param: str, words: str, stream: bool
) -> None:
    sent = json.dumps({**body, "stream": stream})
    answer = client.post(f"/v1/{path}", content=sent, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status and set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param and words in error["message"]


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with http_of(service_of(FakeGroup(saying("x")))) as shared:
        yield shared


@pytest.mark.parametrize(
    ("content", "content_type", "words"),
    [
        ("{nonsense", "application/json", "not JSON"),
        ("", "application/json", "missing"),
        ("[1]", "application/json", "must be a JSON object"),
        ("{}", "text/plain", "content-type application/json"),
        (b'{"model": "\xff"}', "application/json", "error parsing the body"),
        ("[" * 100_000, "application/json", "body"),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    client: httpx.Client, content: str | bytes, content_type: str, words: str
) -> None:
    answer = client.post("/v1/completions", content=content, headers={"content-type": content_type})
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]


def test_unknown_paths_and_methods_are_openai_errors(client: httpx.Client) -> None:
    for answer, status in ((client.get("/v1/nothing"), 404), (client.get("/v1/completions"), 405)):
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_fields_that_change_nothing_are_accepted() -> None:
    neutral = {
        "n": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "user": "me",
        "store": False,
    }
    chat = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
    with http_of(service_of(FakeGroup(saying("x")))) as client:
        assert client.post("/v1/completions", json={**COMPLETION, **neutral, "best_of": 1}).status_code == 200
        assert client.post("/v1/chat/completions", json={**CHAT, **neutral, **chat}).status_code == 200


def test_every_event_carries_its_index_and_the_stream_ends_in_done() -> None:
    with http_of(service_of(FakeGroup(saying(SAYING)))) as client:
        answer = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    *events, done, rest = answer.text.split("\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream") and (done, rest) == ("data: [DONE]", "")
    assert [int(event.split("\n")[0].removeprefix("id: ")) for event in events] == list(range(len(events)))
    ids = {json.loads(event.split("\n")[1].removeprefix("data: "))["id"] for event in events}
    assert ids == {answer.headers["x-request-id"]}


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_in_mid_stream_reaches_the_client(stream: bool) -> None:
    group = FakeGroup(saying(SAYING), loss=Unavailable("group g0 is gone"), loss_after=2)
    with client_of(service_of(group)) as client, pytest.raises(openai.APIError, match="group g0 is gone") as caught:
        answer: Any = client.completions.create(model="tiny", prompt="x", stream=stream)
        list(answer)
    if not stream:
        assert isinstance(caught.value, openai.InternalServerError) and caught.value.status_code == 503


@pytest.mark.parametrize("stream", [False, True])
def test_an_overloaded_server_says_when_to_try_again(stream: bool) -> None:
    full = FakeGroup(saying("x"), refusal=Overloaded("full", retry_after_s=1.5))
    waiting = FakeGroup(saying("x"), load=GroupLoad(waiting=4))
    for group, seconds in ((full, "2"), (waiting, "1")):
        with client_of(service_of(group)) as client, pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="tiny", prompt="x", stream=stream)
        assert caught.value.response.headers["retry-after"] == seconds


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_client_that_goes_away_before_the_first_token_aborts_its_request(path: str, stream: bool) -> None:
    group = FakeGroup(saying(SAYING), holds_at=0)
    service = service_of(group)
    body = {**(CHAT if "chat" in path else COMPLETION), "stream": stream}
    with serving(service) as url:
        with asking(url, f"/v1/{path}", body):
            until(lambda: group.requests)
        until(lambda: len(group.aborted) == 1 and service.running == 0)


def test_a_client_that_stops_reading_aborts_its_request() -> None:
    group = FakeGroup(saying(SAYING * 9), holds_at=3)
    service = service_of(group)
    with client_of(service) as client:
        stream = client.completions.create(model="tiny", prompt="x", max_tokens=60, stream=True)
        next(iter(stream))
        stream.close()
        until(lambda: len(group.aborted) == 1 and service.running == 0)


def test_all_prompts_of_a_request_are_aborted_with_it() -> None:
    group = FakeGroup(saying(SAYING), holds_at=0)
    service = service_of(group)
    with serving(service) as url:
        with asking(url, "/v1/completions", {**COMPLETION, "prompt": ["a", "b", "c"]}):
            until(lambda: len(group.requests) == 3)
        until(lambda: len(group.aborted) == 3 and service.running == 0)


def test_only_callers_with_a_key_are_let_in() -> None:
    service = service_of(FakeGroup(saying("x")))
    with client_of(service, api_key="wrong", api_keys=["s3cret"]) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"
        assert client.with_options(api_key="s3cret").models.list().data[0].id == "tiny"
        health = httpx.get(str(client.base_url).replace("/v1/", "/health"))
        assert health.status_code == 200


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(announced: bool) -> None:
    body = json.dumps({**COMPLETION, "prompt": "x" * 5000}).encode()
    with http_of(service_of(FakeGroup(saying("x"))), max_message_bytes=2000) as client:
        headers = {"content-type": "application/json"}
        sent: Any = body if announced else iter([body[:1500], body[1500:]])
        answer = client.post("/v1/completions", content=sent, headers=headers)
        assert answer.status_code == 413 and "max_message_bytes = 2000" in answer.json()["error"]["message"]
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200


def test_health_follows_groups_and_drain() -> None:
    group = FakeGroup(saying("x"))
    service = service_of(group)
    with http_of(service) as client:
        assert client.get("/health").json() == {"status": "ok", "models": {"tiny": "ok"}}
        group.alive = False
        lost = client.get("/health")
        assert (lost.status_code, lost.json()) == (503, {"status": "unavailable", "models": {"tiny": "unavailable"}})
        assert client.get("/v1/models").json()["data"][0]["max_model_len"] is None
        assert client.post("/v1/completions", json=COMPLETION).status_code == 503
        group.alive = True
        asyncio.run(service.drain(0.0))
        draining = client.get("/health")
        assert (draining.status_code, draining.json()) == (503, {"status": "draining", "models": {"tiny": "ok"}})
        refused = client.post("/v1/completions", json=COMPLETION)
        assert refused.status_code == 503 and "shutting down" in refused.json()["error"]["message"]


def test_tokenize_and_detokenize() -> None:
    with http_of(service_of(FakeGroup(saying("x")))) as client:
        answer = client.post("/tokenize", json={"model": "tiny", "prompt": "the dog"}).json()
        assert answer["count"] == len(answer["tokens"]) == 2 and answer["max_model_len"] == 64
        assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "the dog"}
        chat = client.post("/tokenize", json={"messages": HI}).json()
        assert client.post("/detokenize", json={"tokens": chat["tokens"]}).json() == {"prompt": "<s>user: hi\n"}
        assert client.post("/tokenize", json={"model": "tiny"}).status_code == 400
        assert client.post("/detokenize", json={"tokens": [9999]}).json()["error"]["param"] == "token_ids"
        assert client.post("/tokenize", json={"messages": HI, "add_special_tokens": False}).json() == chat
        tools = [{"type": "function", "function": {"name": "f"}}]
        for strange, field in (
            ({"messages": HI, "add_special_tokens": True}, "add_special_tokens"),
            ({"prompt": "a", "tools": tools}, "tools"),
        ):
            assert client.post("/tokenize", json=strange).json()["error"]["param"] == field


def test_a_bug_is_an_internal_error_and_the_server_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_of(FakeGroup(saying("x")))
    with http_of(service) as client:
        monkeypatch.setattr(service, "models", lambda: 1 / 0)
        answer = client.get("/v1/models")
        assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
        assert client.post("/v1/completions", json=COMPLETION).status_code == 200


async def test_a_server_that_is_told_to_end_takes_what_still_runs_along() -> None:
    group = FakeGroup(saying("the fox"), delay_s=600.0)
    server = http_server(build_http_app(service_of(group), SystemConfig()), slow_reader_s=600.0)
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve([listener]))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60.0) as client:
        asking = asyncio.create_task(client.post("/v1/completions", json=COMPLETION))
        await until_async(lambda: group.requests)
        server.should_exit = True
        async with asyncio.timeout(STOP_GRACE_S + 20.0):
            await task
        await asyncio.wait([asking])
    assert group.aborted and not group.finished
