"""Streams resumed through both doors by real clients: grpc, httpx, the openai package."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import httpx
import openai
import pytest
from doors import HI, client_of, http_of
from fakes import FakeGroup, info, saying, service_of

from rayline.cluster.config import RouterSection, SecuritySection, SystemConfig, TenantSection
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.errors import InvalidRequest
from rayline.protos.group import GroupLoad
from rayline.protos.metadata import CAN_RESUME
from rayline.protos.position import Position, Reading
from rayline.router.grpc.api import build_grpc_server
from rayline.router.http.last_event import event_id, positions_of
from rayline.router.service import Service
from rayline.workers.journal import Journal

SAYING = "the quick brown fox"
BODY = {"model": "tiny", "prompt": "the dog", "max_tokens": 30, "stream": True}
CHAT = {"model": "tiny", "messages": HI, "max_tokens": 30, "stream": True}


def groups() -> list[FakeGroup]:
    return [
        FakeGroup(
            saying(SAYING),
            info(f"g{n}", max_model_len=512),
            GroupLoad(outstanding_tokens=n),
            held=Journal(2**20, 1e6),
        )
        for n in range(2)
    ]


@asynccontextmanager
async def grpc_door(service: Service, **security: Any) -> AsyncIterator[pb_grpc.InferenceServiceStub]:
    config = SystemConfig(router=RouterSection(grpc_port=0), security=SecuritySection(**security))
    server = build_grpc_server(service, config)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield pb_grpc.InferenceServiceStub(channel)
    finally:
        await server.stop(0)


def request(n: int = 1, request_id: str = "r1") -> pb.GenerateRequest:
    return pb.GenerateRequest(text="the dog", request_id=request_id, params=pb.SamplingParams(n=n, max_tokens=30))


async def read(call: Any, count: int | None = None) -> list[pb.StreamResponse]:
    """So many messages, then the call is cut."""
    found: list[pb.StreamResponse] = []
    async for message in call:
        found.append(message)
        if len(found) == count:
            call.cancel()
            break
    return found


def seen(messages: Sequence[pb.StreamResponse], choices: int) -> list[int]:
    counts = [0] * choices
    for message in messages:
        kind = message.WhichOneof("event")
        if kind in ("delta", "choice_ended"):
            counts[getattr(message, kind).choice] += 1
    return counts


def plain(messages: Sequence[pb.StreamResponse]) -> list[Any]:
    """Without times, and each choice's events in their order."""
    for message in messages:
        if message.HasField("finished"):
            message.finished.ClearField("overhead")
            message.finished.ClearField("queue_s")
    found = [(m.WhichOneof("event"), getattr(m, m.WhichOneof("event") or "")) for m in messages]
    return sorted(found, key=lambda item: getattr(item[1], "choice", -1) if item[0] != "finished" else 99)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_call_that_was_cut_is_resumed_over_grpc(n: int) -> None:
    held = groups()
    async with grpc_door(service_of(*held, router="a")) as first, grpc_door(service_of(*held, router="b")) as second:
        whole = await read(first.Generate(request(n, "other")))
        for cut in range(1, len(whole) + 1, 3):
            name = f"r{cut}"
            before = await read(first.Generate(request(n, name)), cut)
            position = pb.ResumeRequest(request_id=name, next_index=cut, seen=seen(before, n) if n > 1 else ())
            after = await read(second.Resume(position))
            assert [message.index for message in [*before, *after]] == list(range(len(whole)))
            for message in [*before, *after, *whole]:
                for kind in ("started", "finished"):
                    if message.HasField(kind):
                        getattr(message, kind).request_id = "same"
            assert plain([*before, *after]) == plain(whole)


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(call)
    return caught.value


async def test_what_cannot_be_resumed_over_grpc_says_why() -> None:
    held = groups()
    async with grpc_door(service_of(*held)) as door:
        unknown = await refusal(door.Resume(pb.ResumeRequest(request_id="never")))
        assert unknown.code() == grpc.StatusCode.NOT_FOUND and "never" in (unknown.details() or "")
        await read(door.Generate(request(3)), 5)
        blind = await refusal(door.Resume(pb.ResumeRequest(request_id="r1", next_index=5)))
        assert blind.code() == grpc.StatusCode.INVALID_ARGUMENT and "seen" in (blind.details() or "")


async def test_only_the_tenant_of_a_stream_resumes_it() -> None:
    held = groups()
    tenants = (TenantSection("mine", ("k1",)), TenantSection("other", ("k2",)))
    async with grpc_door(service_of(*held), tenants=tenants) as door:
        mine, other = ((("authorization", f"Bearer {key}"),) for key in ("k1", "k2"))
        await read(door.Generate(request(), metadata=mine))
        assert await read(door.Resume(pb.ResumeRequest(request_id="r1"), metadata=mine))
        for metadata in (other, other):
            asked = pb.ResumeRequest(request_id="r1", tenant="mine")
            assert (await refusal(door.Resume(asked, metadata=metadata))).code() == grpc.StatusCode.NOT_FOUND
        assert (await refusal(door.Resume(asked))).code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_draining_router_sends_a_call_away_that_can_be_resumed() -> None:
    held = groups()
    held[0].holds_at = 3
    draining = service_of(*held, router="a")
    async with grpc_door(draining) as first, grpc_door(service_of(*held, router="b")) as second:
        call = first.Generate(request(), metadata=((CAN_RESUME, "1"),))
        before: list[pb.StreamResponse] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for message in call:
                before.append(message)
                if len(before) == 3:
                    drained = asyncio.create_task(draining.drain(60.0))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and await drained
        held[0].holds_at = None
        after = await read(second.Resume(pb.ResumeRequest(request_id="r1", next_index=len(before))))
        text = "".join(message.delta.text for message in [*before, *after])
        assert text == SAYING


# ---- HTTP


@contextmanager
def two_doors(held: Sequence[FakeGroup]) -> Any:
    with http_of(service_of(*held, router="a")) as first, http_of(service_of(*held, router="b")) as second:
        yield first, second


def events(response: httpx.Response, count: int | None = None) -> list[tuple[str | None, str]]:
    """(id, data) of server-sent events, as many as are wanted."""
    found: list[tuple[str | None, str]] = []
    last: str | None = None
    for line in response.iter_lines():
        if line.startswith("id: "):
            last = line[4:]
        elif line.startswith("data: "):
            found.append((last, line[6:]))
            last = None
            if len(found) == count:
                break
    return found


def stream(client: httpx.Client, path: str, body: Any, headers: dict[str, str], count: int | None = None) -> Any:
    method = "GET" if body is None else "POST"
    with client.stream(method, path, json=body, headers=headers) as response:
        if response.status_code != 200:
            response.read()
            return response
        assert response.headers["x-request-id"] == headers.get("x-request-id", response.headers["x-request-id"])
        return events(response, count)


def last_id(found: Sequence[tuple[str | None, str]]) -> str:
    return [event for event, _ in found if event is not None][-1]


def parts(found: Sequence[tuple[str | None, str]]) -> dict[int, list[Any]]:
    """The chunks of each choice; -1: those without one."""
    chunks: dict[int, list[Any]] = {}
    for _, data in found:
        chunk: Any = data if data == "[DONE]" else json.loads(data)
        if isinstance(chunk, dict):
            chunk.pop("id")
            if chunk.get("usage"):
                chunk["usage"].pop("prompt_tokens_details")
        choices = [] if isinstance(chunk, str) else chunk["choices"]
        chunks.setdefault(choices[0]["index"] if choices else -1, []).append(chunk)
    return chunks


USAGE = {"stream_options": {"include_usage": True}}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "completion": ("/v1/completions", BODY),
    "completion with offsets": ("/v1/completions", {**BODY, "logprobs": 1, **USAGE}),
    "completion of prompts": ("/v1/completions", {**BODY, "prompt": ["a", "bc", "def"], "n": 2, **USAGE}),
    "chat": ("/v1/chat/completions", {**CHAT, **USAGE}),
    "chat with choices": ("/v1/chat/completions", {**CHAT, "n": 3, "return_token_ids": True, **USAGE}),
    "chat with an echo": (
        "/v1/chat/completions",
        {
            **CHAT,
            "messages": [*HI, {"role": "assistant", "content": "Well, "}],
            "echo": True,
            "continue_final_message": True,
        },
    ),
    "usage all the time": (
        "/v1/completions",
        {**BODY, "stream_options": {"continuous_usage_stats": True} | USAGE["stream_options"]},
    ),
}


@pytest.mark.parametrize("is_by_id", [False, True], ids=["POST again", "GET by id"])
@pytest.mark.parametrize(("path", "body"), FORMS.values(), ids=FORMS)
def test_a_stream_that_was_cut_is_resumed_over_http(path: str, body: dict[str, Any], is_by_id: bool) -> None:
    held = groups()
    with two_doors(held) as (first, second):
        whole = stream(first, path, body, {"x-request-id": "other"})
        for cut in range(1, len(whole), 5):
            name = f"r{cut}"
            before = stream(first, path, body, {"x-request-id": name}, cut)
            while before[-1][0] is None and before[-1][1] != "[DONE]":
                before.pop()  # the rest of its event did not come
                if not before:
                    break
            headers = {"x-request-id": name} | ({"last-event-id": last_id(before)} if before else {})
            where = f"/v1/streams/{name}" if is_by_id else path
            after = stream(second, where, None if is_by_id else body, headers)
            assert parts([*before, *after]) == parts(whole), cut


def test_a_completion_that_is_asked_for_again_is_not_run_twice() -> None:
    held = groups()
    with client_of(service_of(*held)) as client:
        answers = [
            client.completions.create(
                model="tiny", prompt="the dog", max_tokens=30, extra_headers={"x-request-id": "r"}
            )
            for _ in range(2)
        ]
        assert answers[0] == answers[1] and answers[0].choices[0].text == SAYING
        assert sum(len(group.requests) for group in held) == 1
        with pytest.raises(openai.ConflictError):
            client.completions.create(model="tiny", prompt="another", extra_headers={"x-request-id": "r"})
        plain = [client.completions.create(model="tiny", prompt="the dog", max_tokens=30) for _ in range(2)]
        assert plain[0].id != plain[1].id and sum(len(group.requests) for group in held) == 3


def test_a_stream_goes_on_where_the_openai_package_lost_it() -> None:
    held = groups()
    with client_of(service_of(*held)) as client:
        chunks = client.completions.create(
            model="tiny", prompt="the dog", max_tokens=30, stream=True, extra_headers={"x-request-id": "r"}
        )
        text = next(iter(chunks)).choices[0].text
        chunks.close()
        rest = client.completions.create(
            model="tiny",
            prompt="the dog",
            max_tokens=30,
            stream=True,
            extra_headers={"x-request-id": "r", "last-event-id": "1"},
        )
        assert text + "".join(chunk.choices[0].text for chunk in rest) == SAYING


def test_what_cannot_be_resumed_over_http_says_why() -> None:
    with http_of(service_of(*groups())) as client:
        assert stream(client, "/v1/streams/never", None, {}).status_code == 404
        never = stream(client, "/v1/completions", BODY, {"x-request-id": "never", "last-event-id": "3"})
        assert never.status_code == 404 and "never" in never.json()["error"]["message"]
        stream(client, "/v1/completions", BODY, {"x-request-id": "r"})
        for wrong in ("x", "1:x", "1/2", "-1", "1:2.3.4", "9" * 30):
            answer = stream(client, "/v1/completions", BODY, {"x-request-id": "r", "last-event-id": wrong})
            assert answer.status_code == 400, wrong


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("17", [Position(18)]),
        ("17:5.6.6", [Position(18, (5, 6, 6))]),
        ("17:9.8/12:6.6", [Position(18, (9, 8)), Position(13, (6, 6))]),
        ("/3:2.1/", [Position(), Position(4, (2, 1)), Position()]),
    ],
)
def test_the_id_of_an_event_is_read_as_it_was_written(text: str, positions: list[Position]) -> None:
    assert positions_of(text, len(positions)) == positions
    readings = [Reading(position, max(1, len(position.seen))) for position in positions]
    assert event_id(readings) == text or ("/" in text and not positions[0].next_index)
    with pytest.raises(InvalidRequest):
        positions_of(text, len(positions) + 1)


def test_without_an_id_a_stream_begins_at_its_first_event() -> None:
    assert positions_of(None, 2) == [Position(), Position()]
