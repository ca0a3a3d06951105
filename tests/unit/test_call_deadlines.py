"""Deadlines and disconnects as real clients make them, and what is left behind when thousands of them go: nothing."""

import asyncio
import gc
import math
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import httpx
import openai
import pytest
from waiting import until_async
from whole_server import NAME, WholeServer, whole_server

from rayline.cluster.config import LimitsSection
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import SamplingParams, Spec
from rayline.router import link as link_module
from rayline.router.http.timeout import seconds_of
from rayline.workers import leader as leader_module
from rayline.workers.canary import PERIOD_S

WAIT_S = 60.0
LONG = 1900  # tokens
STEP_S = 0.02  # at least, so that LONG of them take more than half a minute on any machine
GROWING_S = (1.0, 4.0, 16.0)  # on a busy machine a short time may be over before a request is accepted
ABORTS = 2_000
CLIENTS = 40
SPARE = 4  # tasks that come and go: the watch over readers, a canary


@asynccontextmanager
async def stub_of(server: WholeServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield pb_grpc.InferenceServiceStub(channel)


@asynccontextmanager
async def http_of(server: WholeServer) -> AsyncIterator[httpx.AsyncClient]:
    none_kept = httpx.Limits(max_keepalive_connections=0)  # so that what is open afterwards was left behind
    url = f"http://127.0.0.1:{server.http_port}"
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=none_kept) as client:
        yield client


def ask(tokens: int = LONG, **fields: Any) -> pb.GenerateRequest:
    params = pb.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0, min_tokens=0)
    return pb.GenerateRequest(model=NAME, text="def f(", params=params, **fields)


def completion(tokens: int = LONG, **fields: Any) -> dict[str, Any]:
    """It may stop early as far as anybody knows, so that nothing is refused for its length."""
    return {"model": NAME, "prompt": "def f(", "max_tokens": tokens, "ignore_eos": True, "stop": ["\x00"]} | fields


def error_kind(error: grpc.aio.AioRpcError) -> Any:
    return dict(error.trailing_metadata() or ()).get("rayline-error-kind")


# ---- deadlines


async def test_a_grpc_deadline_ends_the_call_and_frees_the_group() -> None:
    async with whole_server(LimitsSection(), STEP_S) as server, stub_of(server) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in stub.Generate(ask(), timeout=1.0):
                pass
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until_async(lambda: server.is_idle)


async def test_a_grpc_deadline_that_cannot_be_met_is_refused_before_anything_runs() -> None:
    async with whole_server(LimitsSection(), STEP_S) as server, stub_of(server) as stub:
        for timeout_s in (None, 0.02):
            with suppress(grpc.aio.AioRpcError):
                async for _ in stub.Generate(ask(20), timeout=timeout_s):
                    pass
        await until_async(lambda: server.is_idle)
        steps, began_s = server.group.engine.scheduler.stats.steps, time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Generate(ask(LONG), timeout=10.0):
                pass
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error_kind(refused.value) == "DeadlineExceeded" and "too short" in (refused.value.details() or "")
        canaries = 1 + (time.monotonic() - began_s) / PERIOD_S
        assert server.group.engine.scheduler.stats.steps <= steps + canaries, "and nobody else's"


async def test_the_fields_and_the_calls_own_deadline_count_both() -> None:
    async with whole_server(LimitsSection(), STEP_S) as server, stub_of(server) as stub:
        events: list[pb.StreamResponse] = []
        for timeout_s in GROWING_S:
            message = ask(timeout_s=timeout_s)
            message.params.stop.append("\x00")
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                async for event in stub.Generate(message, timeout=WAIT_S):
                    events.append(event)
            assert error_kind(ended.value) == "DeadlineExceeded"
            if events:
                break
        last = events[-1]
        assert last.failed.error.kind == "DeadlineExceeded" and "have passed" in last.failed.error.message
        await until_async(lambda: server.is_idle)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_http_header_reaches_the_scheduler(stream: bool) -> None:
    async with whole_server(LimitsSection(), STEP_S) as server, http_of(server) as client:
        for timeout_s in GROWING_S:
            began_s, headers = time.monotonic(), {"x-rayline-timeout-s": f"{timeout_s}"}
            answer = await client.post("/v1/completions", json=completion(stream=stream), headers=headers)
            assert 0.9 * timeout_s < time.monotonic() - began_s
            if not stream or answer.status_code == 200:
                break
        if stream:
            assert answer.status_code == 200 and '"code": "deadline_exceeded"' in answer.text
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
            assert answer.json()["error"]["param"] == "timeout_s"
        await until_async(lambda: server.is_idle)


async def test_a_waiting_request_is_ended_at_its_deadline_too() -> None:
    async with whole_server(LimitsSection(), STEP_S, max_running=1) as server, stub_of(server) as stub:
        first = stub.Generate(ask())
        await first.read()
        message = ask(5, timeout_s=0.5)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in stub.Generate(message):
                pass
        assert error_kind(ended.value) == "DeadlineExceeded"
        assert server.leader.load.waiting == 0
        first.cancel()
        await until_async(lambda: server.is_idle)


@pytest.mark.parametrize("timeout_s", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_header_that_is_no_time_is_refused_by_name(timeout_s: str) -> None:
    with pytest.raises(InvalidRequest, match="x-rayline-timeout-s"):
        seconds_of({"x-rayline-timeout-s": timeout_s}, is_streamed=True)


def test_what_openais_client_says_counts_for_whole_answers_alone() -> None:
    headers = {"x-stainless-read-timeout": "20.0"}
    assert seconds_of(headers, is_streamed=False) == 20.0
    assert seconds_of(headers, is_streamed=True) == math.inf
    assert seconds_of(headers | {"x-rayline-timeout-s": "5"}, is_streamed=False) == 5.0
    assert seconds_of({"x-stainless-read-timeout": "none"}, is_streamed=False) == math.inf
    assert seconds_of({}, is_streamed=False) == math.inf


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_time_limit_that_is_none_is_refused(timeout_s: float) -> None:
    spec = Spec("r", NAME, SamplingParams(max_tokens=1), prompt="x", timeout_s=timeout_s)
    with pytest.raises(InvalidRequest, match="timeout_s"):
        spec.check()


# ---- clients that go away


@pytest.mark.parametrize("stream", [True, False])
async def test_openais_client_that_times_out_leaves_nothing_running(stream: bool) -> None:
    async with whole_server(LimitsSection(), STEP_S) as server:
        client = openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{server.http_port}/v1", api_key="none", max_retries=0, timeout=1.0
        )
        with pytest.raises((openai.APITimeoutError, openai.APIStatusError, TimeoutError)):
            async with asyncio.timeout(1.5):
                answer: Any = await client.completions.create(
                    model=NAME, prompt="def f(", max_tokens=LONG, stop=["\x00"], stream=stream,
                    extra_body={"ignore_eos": True, "n": 8},
                )  # fmt: skip
                async for _ in answer:
                    pass
        await client.close()
        await until_async(lambda: server.is_idle)


async def test_thousands_of_clients_that_go_at_any_time_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both doors, streams and whole answers, choices and searches, deadlines: blocks, ids, leases, tasks, files."""
    monkeypatch.setattr(link_module, "SILENCE_S", WAIT_S)  # leader, router and clients share one event loop here
    monkeypatch.setattr(link_module, "IDLE_SILENCE_S", WAIT_S)
    monkeypatch.setattr(leader_module, "ROUTER_SILENCE_S", WAIT_S)
    chance = random.Random(6)
    async with whole_server(LimitsSection(max_waiting=1000), max_step_tokens=512) as server:
        await _storm(server, CLIENTS, chance)
        tasks, files = await _settled(server, 0, 0)
        await _storm(server, ABORTS - CLIENTS, chance)
        await _settled(server, tasks + SPARE, files + SPARE)
        assert server.link.alive
        assert server.group.engine.scheduler.stats.steps > ABORTS / 10, "many were computed for"
        await until_async(lambda: _is_nothing_left(server))
        _assert_nothing_is_left(server)


async def _storm(server: WholeServer, requests: int, chance: random.Random) -> None:
    left = iter(range(requests))

    async def one_after_the_other() -> None:
        for _ in left:
            await _go_away(stub, client, chance)

    async with stub_of(server) as stub, http_of(server) as client:
        await asyncio.gather(*(one_after_the_other() for _ in range(CLIENTS)))


async def _settled(server: WholeServer, most_tasks: int, most_files: int) -> tuple[int, int]:
    """How many tasks and open files there are, once they are few enough; 0: once they have not changed for a second."""
    await until_async(lambda: server.is_idle)
    before, since_s = (0, 0), time.monotonic()
    while True:
        gc.collect()
        now = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        waited_s = time.monotonic() - since_s
        if now != before:
            before, since_s = now, time.monotonic()
        elif (most_tasks and now[0] <= most_tasks and now[1] <= most_files) or (not most_tasks and waited_s > 1.0):
            return now
        assert waited_s < WAIT_S, f"{now} tasks and files, allowed are {most_tasks} and {most_files}"
        await asyncio.sleep(0.1)


async def _go_away(stub: Any, client: httpx.AsyncClient, chance: random.Random) -> None:
    """One request of any kind; its client goes at any moment, or a deadline passes, or it has ended before."""
    patience_s = chance.choice([0.0, 0.03, 0.15, WAIT_S]) * chance.random()
    events = chance.choice([0, 1, 2, 5])  # so many are read by who is patient, for the moment that the group is at work
    fields: dict[str, Any] = chance.choice([{}, {"n": 3}, {"beam_width": 2, "temperature": 0.0}, {"logprobs": 2}])
    prompt = [chance.randrange(4096) for _ in range(chance.choice([1, 5, 60]))]
    tokens = chance.choice([1, 4, 200])
    if chance.random() < 0.5:
        params = pb.SamplingParams(**({"max_tokens": tokens} | fields))
        timeout_s = chance.choice([None, 0.01, 10.0])
        message = pb.GenerateRequest(model=NAME, token_ids=pb.TokenIds(ids=prompt), params=params, timeout_s=timeout_s)
        call = stub.Generate(message, timeout=chance.choice([None, 0.03]))
        with suppress(grpc.aio.AioRpcError, asyncio.CancelledError, TimeoutError):
            async with asyncio.timeout(patience_s):
                for _ in range(events):
                    await call.read()
        call.cancel()
        return
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "stream": chance.random() < 0.5} | fields
    if "beam_width" in fields:
        del body["temperature"]
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(patience_s):
            async with client.stream("POST", "/v1/completions", json=body) as answer:
                lines = answer.aiter_lines()
                for _ in range(events):
                    await anext(lines, None)


def _is_nothing_left(server: WholeServer) -> bool:
    """What clients sent who went at once may still be read from sockets. An idle group asks itself for a token now and
    then, which holds a block for a moment."""
    with suppress(AssertionError):
        _assert_nothing_is_left(server)
        return True
    return False


def _assert_nothing_is_left(server: WholeServer) -> None:
    engine, leader, link = server.group.engine, server.leader, server.link
    scheduler = engine.scheduler
    scheduler.pool.check([])
    assert scheduler.pool.available == scheduler.pool.total
    assert not scheduler.live and not scheduler.request_ids and not engine.has_work
    assert not leader._owners and not leader._ended and all(not c.streams for c in leader._connections)
    assert not link._streams
    service: Any = server.service
    assert service.running == 0 and not service._ledger._tokens
