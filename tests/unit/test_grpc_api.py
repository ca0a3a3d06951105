"""The gRPC door with real clients over a loopback port, in front of fake groups."""

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from fakes import FakeGroup, info, saying, service_of
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from small_tokenizers import served
from waiting import until_async

from rayline.cluster.config import LimitsSection, RouterSection, SecuritySection, SystemConfig
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.errors import Overloaded, PortInUse, RaylineError, Unavailable
from rayline.router.grpc.api import SERVICE_NAME, build_grpc_server
from rayline.router.ports import probe_port
from rayline.router.service import ServedModel, Service

SAYING = "the quick brown fox jumps"
LOCAL = RouterSection(grpc_port=0)


@asynccontextmanager
async def door(
    service: Service, *, api_keys: Sequence[str] = (), max_message_bytes: int = 2**20
) -> AsyncIterator[grpc.aio.Channel]:
    """A running server and a channel to it."""
    config = SystemConfig(
        router=LOCAL,
        security=SecuritySection(api_keys=tuple(api_keys)),
        limits=LimitsSection(max_message_bytes=max_message_bytes),
    )
    server = build_grpc_server(service, config)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop(0)


def request(text: str = "the dog", **params: Any) -> pb.GenerateRequest:
    params.setdefault("max_tokens", 20)
    return pb.GenerateRequest(model="tiny", text=text, params=pb.SamplingParams(**params), request_id="r1")


async def generate(channel: grpc.aio.Channel, message: pb.GenerateRequest, **options: Any) -> list[pb.StreamResponse]:
    return [event async for event in pb_grpc.InferenceServiceStub(channel).Generate(message, **options)]


def health_stub(channel: Any) -> Any:
    return health_pb2_grpc.HealthStub(channel)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


def metadata_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata() or ())


async def test_a_stream_counts_its_events_from_started_to_finished() -> None:
    group = FakeGroup(saying(SAYING))
    async with door(service_of(group)) as channel:
        events = await generate(channel, request())
    assert [event.index for event in events] == list(range(len(events)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", *["delta"] * (len(events) - 3), "choice_ended", "finished"]
    assert events[0].started.request_id == "r1" and events[0].started.exact
    assert "".join(event.delta.text for event in events) == SAYING
    finished = events[-1].finished
    assert finished.reason == pb.FINISH_REASON_STOP
    assert (finished.usage.prompt_tokens, finished.usage.output_tokens) == (2, len(events) - 3)
    assert finished.overhead.queue_s == 0.25


async def test_token_ids_are_taken_as_they_are() -> None:
    group = FakeGroup(saying("x"))
    async with door(service_of(group)) as channel:
        events = await generate(channel, pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6])))
    assert group.requests[0].prompt_ids == (5, 6)
    assert events[0].started.request_id.startswith("gen-")


async def test_chat_is_laid_out_by_the_template() -> None:
    group = FakeGroup(saying("x"))
    service = service_of(group)
    async with door(service) as channel:
        turn = pb.ChatMessage(role="user", content="hi")
        stub = pb_grpc.InferenceServiceStub(channel)
        events = [event async for event in stub.Chat(pb.ChatRequest(model="tiny", messages=[turn]))]
    assert events[-1].WhichOneof("event") == "finished"
    assert service.detokenize("tiny", group.requests[0].prompt_ids) == "<s>user: hi\n"


async def test_a_stop_string_is_named_and_left_out() -> None:
    group = FakeGroup(saying(SAYING))
    async with door(service_of(group)) as channel:
        events = await generate(channel, request(stop=["n f"]))
    assert "".join(event.delta.text for event in events) == "the quick brow"
    assert events[-1].finished.stop_string == "n f"
    assert group.aborted == ["r1"]


async def test_logprobs_come_one_for_each_token() -> None:
    async with door(service_of(FakeGroup(saying("the")))) as channel:
        events = await generate(channel, request(logprobs=2))
    for event in events[1:-2]:
        (logprob,) = event.delta.logprobs
        assert logprob.chosen.token_id == event.delta.token_ids[0] and logprob.chosen.logprob == -0.5
        assert [candidate.logprob for candidate in logprob.top] == [-0.5, -1.5]


async def test_tokenize_detokenize_and_list_models() -> None:
    service = service_of(FakeGroup(saying("x")))
    async with door(service) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        tokens = await stub.Tokenize(pb.TokenizeRequest(text="the dog"))
        assert tuple(tokens.token_ids) == await service.tokenize("tiny", "the dog") and tokens.max_model_len == 64
        turns = pb.Conversation(messages=[pb.ChatMessage(role="user", content="hi")])
        chat = await stub.Tokenize(pb.TokenizeRequest(messages=turns))
        text = await stub.Detokenize(pb.DetokenizeRequest(token_ids=chat.token_ids))
        assert text.text == "<s>user: hi\n"
        models = await stub.ListModels(pb.ListModelsRequest())
        assert [(m.name, m.max_model_len, m.groups, m.created_s) for m in models.models] == [
            ("tiny", 64, 1, 1_700_000_000)
        ]
        assert (await refusal(stub.Tokenize(pb.TokenizeRequest()))).code() == grpc.StatusCode.INVALID_ARGUMENT
        wrong = await refusal(stub.Detokenize(pb.DetokenizeRequest(token_ids=[9999])))
        assert "token_ids = 9999" in (wrong.details() or "")


@pytest.mark.parametrize(
    ("message", "code", "field"),
    [
        (pb.GenerateRequest(model="huge", text="x"), grpc.StatusCode.NOT_FOUND, "model"),
        (pb.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (request("the dog " * 99), grpc.StatusCode.INVALID_ARGUMENT, "prompt"),
        (request(temperature=-1), grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
        (request(temperature=float("nan")), grpc.StatusCode.INVALID_ARGUMENT, "temperature"),
        (request(top_p=0), grpc.StatusCode.INVALID_ARGUMENT, "top_p"),
        (request(seed=2**63), grpc.StatusCode.INVALID_ARGUMENT, "seed"),
        (request(logprobs=21), grpc.StatusCode.INVALID_ARGUMENT, "logprobs"),
        (request(stop_token_ids=[400]), grpc.StatusCode.INVALID_ARGUMENT, "stop_token_ids"),
        (pb.GenerateRequest(text="x", priority=101), grpc.StatusCode.INVALID_ARGUMENT, "priority"),
        (pb.GenerateRequest(text="x", request_id="x" * 129), grpc.StatusCode.INVALID_ARGUMENT, "request_id"),
    ],
)
async def test_what_is_wrong_ends_the_call_with_its_code_and_field(
    message: pb.GenerateRequest, code: grpc.StatusCode, field: str
) -> None:
    async with door(service_of(FakeGroup(saying("x")))) as channel:
        error = await refusal(generate(channel, message))
    assert error.code() == code
    assert metadata_of(error)["rayline-error-field"] == field and field in (error.details() or "")
    status = status_pb2.Status.FromString(metadata_of(error)["grpc-status-details-bin"])
    violation = error_details_pb2.BadRequest()
    assert status.code == code.value[0] and status.details[0].Unpack(violation)
    assert violation.field_violations[0].field == field


async def test_an_overloaded_server_says_when_to_try_again() -> None:
    full = FakeGroup(saying("x"), refusal=Overloaded("full", retry_after_s=1.5))
    async with door(service_of(full)) as channel:
        error = await refusal(generate(channel, request()))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert metadata_of(error)["retry-after-ms"] == "1500"
    status = status_pb2.Status.FromString(metadata_of(error)["grpc-status-details-bin"])
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry) and retry.retry_delay.ToMilliseconds() == 1500


@pytest.mark.parametrize(
    ("loss", "code", "kind"),
    [
        (Unavailable("gone"), grpc.StatusCode.UNAVAILABLE, "Unavailable"),
        (KeyError("bug"), grpc.StatusCode.INTERNAL, "InternalError"),
    ],
)
async def test_a_failure_in_mid_stream_is_an_event_and_then_the_status(
    loss: Exception, code: grpc.StatusCode, kind: str
) -> None:
    group = FakeGroup(saying(SAYING), loss=loss, loss_after=2)
    seen: list[pb.StreamResponse] = []
    async with door(service_of(group)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for event in pb_grpc.InferenceServiceStub(channel).Generate(request()):
                seen.append(event)
    assert [event.WhichOneof("event") for event in seen] == ["started", "delta", "delta", "failed"]
    assert seen[-1].failed.error.kind == kind and caught.value.code() == code


async def test_a_cancelled_call_aborts_its_request_in_the_group() -> None:
    group = FakeGroup(saying(SAYING * 9), holds_at=3)
    service = service_of(group)
    async with door(service) as channel:
        call = pb_grpc.InferenceServiceStub(channel).Generate(request(max_tokens=50))
        await call.read()
        call.cancel()
        await until_async(lambda: group.aborted == ["r1"])
        assert service.running == 0


async def test_a_call_cancelled_before_its_first_token_aborts_too() -> None:
    group = FakeGroup(saying(SAYING), holds_at=0)
    async with door(service_of(group)) as channel:
        call = pb_grpc.InferenceServiceStub(channel).Generate(request())
        await until_async(lambda: group.requests)
        call.cancel()
        await until_async(lambda: group.aborted == ["r1"])


async def test_a_deadline_aborts_the_request() -> None:
    group, within_s = FakeGroup(saying(SAYING), holds_at=0), 0.1
    async with door(service_of(group)) as channel:
        while not group.requests:  # on a busy machine some deadlines pass on the way
            error = await refusal(generate(channel, request(), timeout=within_s))
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            within_s *= 2
        await until_async(lambda: set(group.aborted) == {"r1"} and not group._cuts)


async def test_a_vanished_client_aborts_its_request() -> None:
    group = FakeGroup(saying(SAYING * 9), holds_at=3)
    service = service_of(group)
    async with door(service) as channel:
        call = pb_grpc.InferenceServiceStub(channel).Generate(request(max_tokens=50))
        await call.read()
        await channel.close()
        await until_async(lambda: group.aborted == ["r1"])


async def test_streams_side_by_side_each_get_their_own_text() -> None:
    words = ["the", "fox", "dog", "lazy"]
    tokens = {word: saying(word * 5)(None) for word in words}  # type: ignore[arg-type]
    group = FakeGroup(lambda r: tokens[words[r.prompt_ids[0]]], delay_s=0.001)
    async with door(service_of(group)) as channel:
        prompts = [pb.GenerateRequest(token_ids=pb.TokenIds(ids=[n % 4])) for n in range(20)]
        streams = await asyncio.gather(*(generate(channel, prompt) for prompt in prompts))
    for n, stream in enumerate(streams):
        assert "".join(event.delta.text for event in stream) == words[n % 4] * 5


async def test_a_request_that_is_sent_again_is_read_by_the_later_call_alone() -> None:
    group = FakeGroup(saying(SAYING), holds_at=2)
    async with door(service_of(group)) as channel:
        first = asyncio.create_task(generate(channel, request()))
        await until_async(lambda: group.requests)
        second = asyncio.create_task(generate(channel, request()))
        error = await refusal(first)
        group.holds_at = None
        assert (await second)[-1].WhichOneof("event") == "finished"
        assert error.code() == grpc.StatusCode.ABORTED and metadata_of(error)["rayline-error-kind"] == "TakenOver"
        assert len(group.finished) == 1


async def test_a_request_id_names_one_request() -> None:
    group = FakeGroup(saying(SAYING), holds_at=2)
    async with door(service_of(group)) as channel:
        first = asyncio.create_task(generate(channel, request()))
        await until_async(lambda: group.requests)
        error = await refusal(generate(channel, request("another prompt")))
        group.holds_at = None
        assert error.code() == grpc.StatusCode.ALREADY_EXISTS
        assert metadata_of(error)["rayline-error-field"] == "request_id"
        assert (await first)[-1].WhichOneof("event") == "finished"


async def test_only_callers_with_a_key_are_let_in() -> None:
    async with door(service_of(FakeGroup(saying("x"))), api_keys=["s3cret"]) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "s3cret"),)):
            for call in (
                stub.ListModels(pb.ListModelsRequest(), metadata=metadata),
                stub.Generate(request(), metadata=metadata).read(),
            ):
                assert (await refusal(call)).code() == grpc.StatusCode.UNAUTHENTICATED
        key = (("authorization", "Bearer s3cret"),)
        assert len((await stub.ListModels(pb.ListModelsRequest(), metadata=key)).models) == 1
        assert (await generate(channel, request(), metadata=key))[-1].WhichOneof("event") == "finished"
        health = await health_stub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_message_over_the_limit_is_refused_and_the_next_one_served() -> None:
    async with door(service_of(FakeGroup(saying("x"))), max_message_bytes=2000) as channel:
        error = await refusal(generate(channel, request("x" * 3000)))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await generate(channel, request()))[-1].WhichOneof("event") == "finished"


async def test_bytes_that_are_no_message_are_refused_and_the_next_call_served() -> None:
    async with door(service_of(FakeGroup(saying("x")))) as channel:
        raw: Any = channel.unary_stream(f"/{SERVICE_NAME}/Generate")
        error = await refusal(raw(b"\xff\xff\xff").read())
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "not a protobuf" in (error.details() or "")
        nothing: Any = channel.unary_unary(f"/{SERVICE_NAME}/Nothing")
        unknown = await refusal(nothing(b""))
        assert unknown.code() == grpc.StatusCode.UNIMPLEMENTED
        assert (await generate(channel, request()))[-1].WhichOneof("event") == "finished"


async def test_each_model_has_a_health_of_its_own() -> None:
    lost, lives = FakeGroup(saying(SAYING)), FakeGroup(saying(SAYING), info("g1"))
    tokenizer = served("byte_level")
    groups = {"lost": lost, "lives": lives}
    models = {name: ServedModel(name, tokenizer, {"g": group}, 0) for name, group in groups.items()}
    service = Service(models, lambda: 0.0, lambda: 0)
    lost.alive = False
    async with door(service) as channel:
        stub = health_stub(channel)
        found = {
            name: (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status
            for name in ("", SERVICE_NAME, "lost", "lives")
        }
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert found == {"": not_serving, SERVICE_NAME: not_serving, "lost": not_serving, "lives": serving}


async def test_health_follows_groups_and_drain() -> None:
    group = FakeGroup(saying(SAYING), holds_at=2)
    service = service_of(group)
    async with door(service) as channel:
        stub = health_stub(channel)

        async def status(name: str) -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest(service=name))).status)

        watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE_NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert await status("") == await status(SERVICE_NAME) == health_pb2.HealthCheckResponse.SERVING
        assert (await refusal(status("other"))).code() == grpc.StatusCode.NOT_FOUND
        assert await status("tiny") == health_pb2.HealthCheckResponse.SERVING
        group.alive = False
        assert await status("") == await status("tiny") == health_pb2.HealthCheckResponse.NOT_SERVING
        group.alive = True
        running = asyncio.create_task(generate(channel, request()))
        await until_async(lambda: group.requests)
        drained = asyncio.create_task(service.drain(60.0))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        late = request()
        late.request_id = "late"
        assert (await refusal(generate(channel, late))).code() == grpc.StatusCode.UNAVAILABLE
        group.holds_at = None
        assert await drained and (await running)[-1].WhichOneof("event") == "finished"


async def test_reflection_lists_the_services() -> None:
    async with door(service_of(FakeGroup(saying("x")))) as channel:
        untyped: Any = channel  # the stubs know only the blocking kind
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(untyped)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE_NAME, "grpc.health.v1.Health"} <= names


async def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = SystemConfig(router=RouterSection(grpc_port=port))
        with pytest.raises(PortInUse, match=f"grpc_port = {port} is in use") as caught:
            build_grpc_server(service_of(FakeGroup(saying("x"))), config)
        assert caught.value.field == "grpc_port"
    probe_port("127.0.0.1", port, "grpc_port")


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(RaylineError, match=r"http_port = 1234 cannot be opened on 192\.0\.2\.1"):
        probe_port("192.0.2.1", 1234, "http_port")


async def test_a_bigger_vocabulary_than_the_tokenizers_is_served() -> None:
    group = FakeGroup(lambda r: [262, 5000, 262], info=info(vocab_size=6000))
    async with door(service_of(group)) as channel:
        events = await generate(channel, request())
    assert [list(event.delta.token_ids) for event in events[1:-2]] == [[262], [5000], [262]]


async def test_choices_ranks_and_prompt_scores_go_through_grpc() -> None:
    group = FakeGroup(saying(SAYING), logprob_of=lambda r: -float(r.request_id[-1]))
    asked = pb.GenerateRequest(
        text="the lazy dog",
        request_id="r",
        echo=True,
        return_prompt_ids=True,
        params=pb.SamplingParams(n=2, best_of=3, max_tokens=20, prompt_logprobs=1),
    )
    async with door(service_of(group)) as channel:
        events = await generate(channel, asked)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[:4] == ["started", "prompt_scored", "delta", "delta"] and kinds[-1] == "finished"
    assert events[2].delta.is_echo and events[2].delta.text == "the lazy dog"
    assert list(events[0].started.prompt_ids) == [c.chosen.token_id for c in events[1].prompt_scored.tokens]
    ends = [event.choice_ended for event in events if event.WhichOneof("event") == "choice_ended"]
    assert [(end.choice, end.score) for end in ends] == [(0, 0.0), (1, -1.0)]
    assert events[-1].finished.usage.output_tokens == 3 * len(group.script(group.requests[0]))


async def test_the_tenant_is_the_requests_own_or_that_of_its_metadata() -> None:
    group = FakeGroup(saying("x"))
    async with door(service_of(group)) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        for tenant in ("own", ""):
            asked = pb.GenerateRequest(text="a", tenant=tenant)
            async for _ in stub.Generate(asked, metadata=(("x-rayline-tenant", "proxy"),)):
                pass
    assert [request.tenant for request in group.requests] == ["own", "proxy"]


async def test_a_field_that_only_a_newer_version_knows_is_refused() -> None:
    """Protobuf would drop it. 0xc8 0x03 0x01 is field 57 with the value 1."""
    group = FakeGroup(saying("x"))
    strange = pb.SamplingParams.FromString(b"\xc8\x03\x01")
    async with door(service_of(group)) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        for asked in (
            stub.Generate(pb.GenerateRequest(text="a", params=strange)),
            stub.Chat(pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="a")], params=strange)),
            stub.Chat(pb.ChatRequest(messages=[pb.ChatMessage.FromString(b"\xc8\x03\x01")])),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match="has a field of number 57, which is unknown") as refused:
                await anext(aiter(asked))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError, match="TokenizeRequest has a field of number 57"):
            await stub.Tokenize(pb.TokenizeRequest.FromString(b"\xc8\x03\x01"))
    assert not group.requests


async def test_a_choice_of_tools_that_contradicts_itself_is_refused() -> None:
    group, turns = FakeGroup(saying("x")), [pb.ChatMessage(role="user", content="a")]
    choices = {
        "tool_choice = 9 is out of range": pb.ToolChoice(mode=9),  # type: ignore[arg-type]
        "tool_choice.name = 'f' cannot be combined": pb.ToolChoice(mode=pb.ToolChoice.REQUIRED, name="f"),
    }
    async with door(service_of(group)) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        for words, choice in choices.items():
            with pytest.raises(grpc.aio.AioRpcError, match=words):
                await anext(aiter(stub.Chat(pb.ChatRequest(messages=turns, tool_choice=choice))))
    assert not group.requests


async def test_a_conversation_with_tools_can_be_counted_before_it_is_sent() -> None:
    template = "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    async with door(service_of(FakeGroup(saying("x")), template=template)) as channel:
        stub = pb_grpc.InferenceServiceStub(channel)
        turns = [pb.ChatMessage(role="user", content="hi")]
        plain = await stub.Tokenize(pb.TokenizeRequest(messages=pb.Conversation(messages=turns)))
        tools = [pb.Tool(name="weather", description="rain or sun")]
        longer = await stub.Tokenize(pb.TokenizeRequest(messages=pb.Conversation(messages=turns, tools=tools)))
        shown = await stub.Detokenize(pb.DetokenizeRequest(token_ids=longer.token_ids))
    assert "rain or sun" in shown.text and len(longer.token_ids) > len(plain.token_ids)


BAD_PARAMETERS: dict[str, Any] = {
    "temperature": -0.5,
    "top_k": 2**31,
    "top_p": 0.0,
    "min_p": 1.5,
    "typical_p": 0.0,
    "top_n_sigma": -1.0,
    "presence_penalty": 2.5,
    "frequency_penalty": -2.5,
    "repetition_penalty": 0.0,
    "no_repeat_ngram_size": 1001,
    "logit_bias": {3: 101.0},
    "allowed_token_ids": [400],
    "bad_words": [""],
    "seed": 2**63,
    "n": 65,
    "best_of": 65,
    "beam_width": 65,
    "length_penalty": 101.0,
    "max_tokens": 0,
    "min_tokens": 21,
    "stop": [""],
    "stop_token_ids": [400],
    "logprobs": 21,
    "prompt_logprobs": 21,
    "thinking_budget": 5,
    "structured_output": pb.StructuredOutput(regex="("),
    "early_stopping": 7,
}
WITHOUT_RANGE = {"ignore_eos", "include_stop_str_in_output", "skip_special_tokens"}


def test_every_parameter_with_a_range_has_a_bad_value_here() -> None:
    assert set(BAD_PARAMETERS) | WITHOUT_RANGE == {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}


@pytest.mark.parametrize("field", BAD_PARAMETERS)
async def test_a_bad_parameter_is_named_in_status_and_metadata(field: str) -> None:
    group = FakeGroup(saying("x"))
    params = pb.SamplingParams(**({"max_tokens": 20} | {field: BAD_PARAMETERS[field]}))
    async with door(service_of(group)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await generate(channel, pb.GenerateRequest(text="a", params=params))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT and field in (refused.value.details() or "")
    trailing = dict(refused.value.trailing_metadata() or ())
    assert trailing["rayline-error-field"] == field and not group.requests
