"""The clients against scripted routers over real gRPC: what a connection, a router or a process may do to a stream."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from doors import served
from fakes import FakeGroup, saying
from scripted_router import ScriptedRouter, events_of, running
from waiting import until

from rayline.protos import inference_pb2 as pb
from rayline.protos.client import AsyncClient, Client
from rayline.protos.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    RaylineError,
    StreamNotFound,
    Unavailable,
)
from rayline.protos.resuming import Patience, Request

TESTS = Path(__file__).parents[1]
EVENTS = events_of([0, 1, 0, 1, 1])
REQUEST = pb.GenerateRequest(text="a", request_id="r", tenant="t")
TWO = pb.GenerateRequest(text="a", request_id="r", tenant="t", params=pb.SamplingParams(n=2))
NOTICED_S = 3.0  # a frozen router
SLACK_S = 30.0  # for machines that run other things beside: without the limit nothing would end at all

Read = Callable[..., list[pb.StreamResponse]]
At = Callable[[int], object]


def read(
    addresses: Sequence[str],
    request: Request = REQUEST,
    at: Callable[[int], object] = lambda count: None,
    **options: Any,
) -> list[pb.StreamResponse]:
    """The whole stream; `at` is told how many events have come, each time."""
    found: list[pb.StreamResponse] = []
    with Client(addresses, **options) as client:
        for event in client.stream(request):
            found.append(event)
            at(len(found))
    return found


def read_async(
    addresses: Sequence[str],
    request: Request = REQUEST,
    at: Callable[[int], object] = lambda count: None,
    **options: Any,
) -> list[pb.StreamResponse]:
    async def run() -> list[pb.StreamResponse]:
        found: list[pb.StreamResponse] = []
        async with AsyncClient(addresses, **options) as client, aclosing(client.stream(request)) as events:
            async for event in events:
                found.append(event)
                at(len(found))
        return found

    return asyncio.run(run())


both = pytest.mark.parametrize("read", [read, read_async])


@contextmanager
def process() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A scripted router in a process of its own, which sends an event every 0.05 s, and its address."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "typing")])}
    command = [sys.executable, str(TESTS / "scripted_router.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


@both
@pytest.mark.parametrize("error", [None, Unavailable("this router is being ended", retry_after_s=0.0)])
def test_a_stream_that_is_cut_after_each_event_is_read_whole(read: Read, error: RaylineError | None) -> None:
    router = ScriptedRouter(EVENTS, cuts=[(1, error) for _ in EVENTS])
    with running(router) as address:
        assert read([address], TWO) == EVENTS
    first, *resumed = router.calls
    assert (first.text, first.request_id, first.params.HasField("seed")) == ("a", "r", True)
    assert [call.next_index for call in resumed] == list(range(1, len(EVENTS)))
    assert [list(call.seen) for call in resumed][:5] == [[0, 0], [0, 0], [1, 0], [1, 1], [2, 1]]
    assert {(call.request_id, call.tenant) for call in resumed} == {("r", "t")}


@both
def test_a_request_that_got_no_answer_is_sent_again_under_its_id(read: Read) -> None:
    router = ScriptedRouter(EVENTS, cuts=[(0, None), (0, Unavailable("no group"))])
    with running(router) as address:
        assert read([address], pb.ChatRequest()) == EVENTS
    assert all(isinstance(call, pb.ChatRequest) for call in router.calls)
    assert router.calls[0] == router.calls[1] == router.calls[2] and router.calls[0].request_id


@both
def test_a_lost_stream_goes_on_at_another_router(read: Read) -> None:
    broken = ScriptedRouter(EVENTS, cuts=[(3, None)] * 9)
    whole = ScriptedRouter(EVENTS)
    with running(broken) as first, running(whole) as second:
        assert read([first, second]) == EVENTS
    assert len(broken.calls) == 1
    assert [(type(call), call.next_index) for call in whole.calls] == [(pb.ResumeRequest, 3)]


@both
@pytest.mark.parametrize("error", [None, Unavailable("this router is being ended", retry_after_s=0.0)])
@pytest.mark.parametrize("events", [0, 3], ids=["before its first event", "later"])
def test_routers_that_a_router_names_are_asked_when_it_is_lost(
    read: Read, events: int, error: RaylineError | None
) -> None:
    whole = ScriptedRouter(EVENTS)
    with running(whole) as second, running(ScriptedRouter(EVENTS, [(events, error)] * 99, routers=second)) as first:
        assert read([first]) == EVENTS
    (call,) = whole.calls
    assert call.text == "a" if isinstance(call, pb.GenerateRequest) else call.next_index == events


@both
def test_a_stream_that_nobody_remembers_is_computed_again_and_shown_once(read: Read) -> None:
    router = ScriptedRouter(EVENTS, cuts=[(4, None)], forgets=lambda request: StreamNotFound("who?"))
    with running(router) as address:
        assert read([address]) == EVENTS
    assert [type(call) for call in router.calls] == [pb.GenerateRequest, pb.ResumeRequest, pb.GenerateRequest]
    assert router.calls[0] == router.calls[2]


@both
def test_errors_that_another_call_would_not_change_are_raised_as_the_server_meant_them(read: Read) -> None:
    meant = InvalidRequest("temperature = -1.0 is out of range", field="temperature")
    router = ScriptedRouter(EVENTS, cuts=[(0, meant), (0, Overloaded("full", retry_after_s=1.5))])
    with running(router) as address:
        with pytest.raises(InvalidRequest, match="temperature") as invalid:
            read([address])
        with pytest.raises(Overloaded) as full:
            read([address])
    assert invalid.value.field == "temperature" and full.value.retry_after_s == pytest.approx(1.5)
    assert len(router.calls) == 2


@both
def test_a_router_that_is_not_there_is_given_up_in_time(read: Read) -> None:
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 "):
        read(["127.0.0.1:1"], patience=Patience(connect_s=0.5))
    assert 0.4 < time.monotonic() - began < 0.5 + SLACK_S
    with pytest.raises(ConfigError):
        read(["localhost"])


@both
def test_the_time_limit_ends_a_stream_that_goes_on_and_on(read: Read) -> None:
    router = ScriptedRouter(events_of([0] * 1000), delay_s=0.01, cuts=[(5, None)] * 1000)
    began = time.monotonic()
    with running(router) as address, pytest.raises(DeadlineExceeded):
        read([address], pb.GenerateRequest(text="a", timeout_s=1.0))
    assert 0.9 < time.monotonic() - began < 1.0 + SLACK_S
    assert len(router.calls) > 2


@both
def test_a_killed_process_costs_a_moment(read: Read) -> None:
    assert noticed_s(read, signal.SIGKILL) < 1.0 + SLACK_S


@both
def test_a_frozen_process_is_noticed_and_its_machine_is_not_believed(read: Read) -> None:
    """Its kernel goes on taking connections and data in its name."""
    assert noticed_s(read, signal.SIGSTOP) < NOTICED_S + SLACK_S


def noticed_s(read: Read, number: int) -> float:
    """Seconds until a stream of a process that got this signal goes on elsewhere."""
    events = events_of([0] * 200)
    struck_s, went_on_s = list[float](), list[float]()

    class Timed(ScriptedRouter):
        async def _said(self, *call: Any) -> Any:
            went_on_s.append(time.monotonic())
            async for event in super()._said(*call):
                yield event

    with process() as (other, first), running(Timed(events)) as second:

        def strike(count: int) -> None:
            if count == 10:
                struck_s.append(time.monotonic())
                other.send_signal(number)

        assert read([first, second], at=strike) == events
        assert went_on_s
        if number == signal.SIGSTOP:
            assert read([first, second]) == events, "a new stream leaves it out"
            with pytest.raises(Unavailable):
                read([first], patience=Patience(connect_s=0.0))
    return went_on_s[0] - struck_s[0]


@both
def test_a_call_to_a_port_that_never_answers_goes_elsewhere(read: Read) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, running(ScriptedRouter(EVENTS)) as second:
        began = time.monotonic()
        assert read([f"127.0.0.1:{mute.getsockname()[1]}", second]) == EVENTS
        assert time.monotonic() - began < NOTICED_S + SLACK_S


def test_leaving_a_stream_cancels_it_and_says_so_to_the_server() -> None:
    router = ScriptedRouter(events_of([0] * 200), delay_s=0.1)

    async def leave() -> None:
        async with AsyncClient([address]) as client, aclosing(client.stream(REQUEST)) as events:
            await anext(events)

    with running(router) as address:
        with Client([address]) as client:
            events = client.stream(REQUEST)
            next(events)
            events.close()
            until(lambda: router.cancelled == 1)
        asyncio.run(leave())
        until(lambda: router.cancelled == 2)
    assert len(router.calls) == 2


@both
def test_calls_show_the_key_and_that_the_client_can_resume(read: Read) -> None:
    router = ScriptedRouter(EVENTS)
    with running(router) as address:
        read([address], api_key="secret")
    assert router.metadata[0].items() >= {"authorization": "Bearer secret", "rayline-can-resume": "1"}.items()


def test_every_other_call_is_answered_by_the_first_router_that_can() -> None:
    text = pb.TokenizeRequest(text="the dog", model="tiny")

    async def ask(addresses: list[str]) -> tuple[Any, ...]:
        async with AsyncClient(addresses) as client:
            ids = (await client.tokenize(text)).token_ids
            said = await client.detokenize(pb.DetokenizeRequest(token_ids=ids, model="tiny"))
            return (await client.models()).models[0].name, list((await client.routers()).routers), said.text

    with served(FakeGroup(saying("x"))) as address:
        assert asyncio.run(ask(["127.0.0.1:1", address])) == ("tiny", [], "the dog")
        with Client(["127.0.0.1:1", address]) as client:
            ids = client.tokenize(text).token_ids
            assert client.detokenize(pb.DetokenizeRequest(token_ids=ids, model="tiny")).text == "the dog"
            assert client.models().models[0].name == "tiny" and not client.routers().routers
            with pytest.raises(InvalidRequest):
                client.tokenize(pb.TokenizeRequest(model="tiny"))
        with Client(["127.0.0.1:1"]) as client, pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 "):
            client.models()


def test_the_keepalive_of_a_client_is_not_taken_for_an_attack() -> None:
    """By default a server hangs up on a client that pings a quiet stream every second."""
    group = FakeGroup(saying("quick"), delay_s=1.5)
    with served(group) as address:
        events = read([address], pb.GenerateRequest(text="a", params=pb.SamplingParams(max_tokens=3)))
    assert events[-1].HasField("finished") and len(group.requests) == 1
