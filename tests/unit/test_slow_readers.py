"""Clients that read slowly or not at all, over real sockets: they are ended, and nobody else feels them."""

import asyncio
import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from statistics import median
from typing import Any

import grpc
import pytest
from waiting import until_async
from whole_server import NAME, WholeServer, deaf_socket, whole_server

from rayline.cluster.config import LimitsSection
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos import internal_pb2 as internal
from rayline.protos.channel_wire import SECRET_KEY, submit_to_pb
from rayline.protos.errors import SlowReader
from rayline.protos.events import Failed, Finished, FinishReason, Searched, TokenEvent, TokenLogprob, Usage
from rayline.protos.internal_pb2_grpc import GroupChannelStub
from rayline.protos.types import EngineRequest, SamplingParams
from rayline.router.inbox import Inbox
from rayline.router.slow_readers import LOOKS, Reader, SlowReaders
from rayline.workers.outbox import MOST_JOINED, Outbox

WAIT_S = 200.0
LONG_TOKENS = 1500
FAST_CLIENTS = 2


def ask(tokens: int, logprobs: int | None = None) -> pb.GenerateRequest:
    params = pb.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0, logprobs=logprobs)
    return pb.GenerateRequest(model=NAME, text="def f(", params=params)


async def send_http(server: WholeServer, tokens: int, logprobs: int, *, stream: bool = True) -> socket.socket:
    """A request on a connection that nobody reads."""
    body = {"model": NAME, "prompt": "def f(", "max_tokens": tokens, "ignore_eos": True, "logprobs": logprobs}
    sent = json.dumps(body | {"stream": stream}).encode()
    deaf = deaf_socket(server.http_port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(sent)}"
    deaf.sendall(f"{head}\r\n\r\n".encode() + sent)
    return deaf


async def begin(server: WholeServer, running: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while server.leader.load.running < running:
            await asyncio.sleep(0.005)


async def gaps_of(server: WholeServer, tokens: int) -> list[float]:
    """Times between the tokens of one stream that is read as it should be."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        came = [
            time.monotonic()
            async for event in pb_grpc.InferenceServiceStub(channel).Generate(ask(tokens))
            if event.HasField("delta")
        ]
    return [after - before for before, after in itertools.pairwise(came)]


# ---- the doors


async def test_an_http_client_that_reads_nothing_is_ended_and_its_blocks_are_free() -> None:
    async with whole_server(LimitsSection(slow_reader_s=1.0, max_unread_tokens=10**6)) as server:
        deaf = await send_http(server, LONG_TOKENS, 5)
        await begin(server, 1)
        await until_async(lambda: server.is_idle)
        deaf.settimeout(WAIT_S)
        got = await asyncio.to_thread(_drain, deaf)
        assert got.startswith(b"HTTP/1.1 200") and b"[DONE]" not in got, "what the buffers held, and no more"
        deaf.close()


async def test_a_whole_answer_that_nobody_reads_keeps_no_connection() -> None:
    async with whole_server(LimitsSection(slow_reader_s=1.0)) as server:
        deaf = await send_http(server, 200, 5, stream=False)
        await begin(server, 1)
        await until_async(lambda: server.is_idle)
        async with asyncio.timeout(WAIT_S):
            while len(_http_connections(server)):
                await asyncio.sleep(0.05)
        deaf.close()


def _http_connections(server: WholeServer) -> list[str]:
    """Established connections that end at the HTTP door, as the system sees them."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return [row[1] for row in rows if int(row[1].split(":")[1], 16) == server.http_port and row[3] == "01"]


async def test_a_grpc_client_that_reads_nothing_is_ended_and_told_so_when_it_reads_again() -> None:
    limits = LimitsSection(slow_reader_s=1.0, max_unread_tokens=10**6)
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with (
        whole_server(limits) as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel,
    ):
        call = pb_grpc.InferenceServiceStub(channel).Generate(ask(LONG_TOKENS, 20))
        await call.read()
        await begin(server, 1)
        await until_async(lambda: server.is_idle)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async with asyncio.timeout(WAIT_S):
                while await call.read() is not grpc.aio.EOF:
                    pass
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(ended.value.trailing_metadata() or ())["rayline-error-kind"] == "SlowReader"


GONE = f"""
import sys, grpc
from rayline.protos import inference_pb2 as pb, inference_pb2_grpc as pb_grpc
params = pb.SamplingParams(max_tokens={LONG_TOKENS}, ignore_eos=True, temperature=0.0, logprobs=20)
channel = grpc.insecure_channel(sys.argv[1], [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)])
call = pb_grpc.InferenceServiceStub(channel).Generate(
    pb.GenerateRequest(model="{NAME}", text="def f(", params=params))
print(next(call).WhichOneof("event"), flush=True)
next(event for event in call if False)
"""


async def test_a_grpc_client_that_is_gone_without_a_word_is_noticed_by_its_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rayline.router.grpc.api.KEEPALIVE_MS", 1_000)
    async with whole_server(LimitsSection(slow_reader_s=3600.0, max_unread_tokens=10**6)) as server:
        command = [sys.executable, "-c", GONE, f"127.0.0.1:{server.grpc_port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            try:
                assert client.stdout is not None
                assert (await asyncio.to_thread(client.stdout.readline)).strip() == "started"
                client.send_signal(signal.SIGSTOP)
                await until_async(lambda: server.is_idle)
            finally:
                client.kill()


async def test_who_is_too_far_behind_is_ended_at_once_and_its_backlog_dropped() -> None:
    async with whole_server(LimitsSection(slow_reader_s=3600.0, max_unread_tokens=400)) as server:
        deaf = await send_http(server, LONG_TOKENS, 5)
        await begin(server, 1)
        async with asyncio.timeout(WAIT_S):
            while server.leader.load.running:
                await asyncio.sleep(0.01)
        load = server.leader.load
        assert load.free_blocks == load.total_blocks, "the group is free although the client still blocks the door"
        assert server.service.running == 1
        deaf.close()
        await until_async(lambda: server.is_idle)


async def test_nobody_feels_the_clients_that_read_nothing() -> None:
    """Beside readers that read, and beside as many that do not: the same pace, in the best of some rounds.

    Other processes of the machine may slow down any round, but not all of one kind.
    """
    async with whole_server(LimitsSection(slow_reader_s=3600.0, max_unread_tokens=10**6)) as server:
        paces: dict[bool, float] = {}
        for reads in (True, False) * 10:
            others = [await send_http(server, LONG_TOKENS, 5) for _ in range(3)]
            if reads:
                drains = [asyncio.create_task(asyncio.to_thread(_drain, other)) for other in others]
            await begin(server, 3)
            streams = await asyncio.gather(*(gaps_of(server, 100) for _ in range(FAST_CLIENTS)))
            pace = median(gap for gaps in streams for gap in gaps)
            paces[reads] = min(pace, paces.get(reads, pace))
            for other in others:
                other.shutdown(socket.SHUT_RDWR)
            if reads:
                await asyncio.gather(*drains)
            for other in others:
                other.close()
            await until_async(lambda: server.is_idle)
            if len(paces) == 2 and paces[False] < 1.5 * paces[True] + 0.005:
                return
    pytest.fail(f"{paces[False]:.4f} s a token beside clients that read nothing, {paces[True]:.4f} s beside others")


def _drain(reader: socket.socket) -> bytes:
    """Read up to the end, or to the reset."""
    got = b""
    with suppress(ConnectionError):
        while piece := reader.recv(65536):
            got += piece
    return got


async def test_a_router_that_does_not_read_loses_its_streams_and_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Outbox.__init__, "__defaults__", (20_000,))
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with (
        whole_server(LimitsSection()) as server,
        grpc.aio.insecure_channel(server.leader.address, options=options) as channel,
    ):
        call = GroupChannelStub(channel).Connect(metadata=((SECRET_KEY, "correct horse"),))
        params = SamplingParams(max_tokens=LONG_TOKENS, ignore_eos=True, seed=0, logprobs=20)
        for stream in range(4):
            asked = EngineRequest(f"r{stream}", (1, 2, 3), params)
            await call.write(internal.RouterMessage(submit=submit_to_pb(stream, asked)))
        await begin(server, 4)
        beats = asyncio.create_task(_beat(call))
        kept = asyncio.create_task(gaps_of(server, LONG_TOKENS))
        async with asyncio.timeout(WAIT_S):
            while server.leader.load.running != 1:
                await asyncio.sleep(0.01)
        assert len(await kept) == LONG_TOKENS - 1
        await until_async(lambda: server.is_idle)
        beats.cancel()
        call.cancel()


async def _beat(call: Any) -> None:
    """It lives; it only does not read."""
    while True:
        await call.write(internal.RouterMessage(alive=internal.Alive()))
        await asyncio.sleep(0.5)


# ---- the parts


def token(index: int, alternatives: int = 0) -> TokenEvent:
    return TokenEvent("r", index, 7, -0.5, (TokenLogprob(1, -1.0),) * alternatives)


async def test_an_inbox_brings_everything_in_order_to_a_reader_that_keeps_up() -> None:
    inbox, read = Inbox("r", most_tokens=3), list[Any]()
    for index in range(20):
        inbox.put(token(index))
        if index % 3 == 2:
            read += [await inbox.get() for _ in range(3)]
    assert [event.index for event in read] == list(range(18)) and inbox.tokens == 2
    waits = asyncio.create_task(Inbox("r", 1).get())
    await asyncio.sleep(0)
    assert not waits.done()
    waits.cancel()


async def test_an_inbox_that_is_full_drops_what_it_has_and_ends_the_stream() -> None:
    inbox = Inbox("r", most_tokens=10)
    for index in range(4):
        inbox.put(token(index, alternatives=1))
    assert (inbox.tokens, inbox.is_given_up) == (8, False)
    inbox.put(token(4, alternatives=3))
    inbox.put(token(5))
    assert inbox.is_given_up and inbox.tokens == 0
    end = await inbox.get()
    assert isinstance(end, Failed) and isinstance(end.error, SlowReader) and end.error.field == "max_unread_tokens"


async def test_what_a_search_says_of_itself_is_bounded_too() -> None:
    inbox = Inbox("r", most_tokens=3)
    for tokens in range(1, 5):
        inbox.put(Searched("r", tokens))
    assert inbox.is_given_up


async def test_there_is_always_room_for_the_end() -> None:
    inbox = Inbox("r", most_tokens=1)
    inbox.put(token(0))
    inbox.put(Finished("r", FinishReason.LENGTH, Usage(1, 1)))
    assert [type(await inbox.get()) for _ in range(2)] == [TokenEvent, Finished]


async def test_a_reader_that_is_cancelled_loses_no_event() -> None:
    inbox = Inbox("r", most_tokens=9)
    waits = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(token(0))
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert await inbox.get() == token(0)


async def test_an_outbox_takes_nothing_behind_a_gap() -> None:
    outbox = Outbox(most_bytes=50)
    step = internal.Step(tokens=[internal.Token(stream=1, token_id=5)] * 3)
    size = internal.LeaderMessage(step=step).ByteSize()
    for _ in range(10):
        outbox.put_nowait(internal.LeaderMessage(step=step))
    assert outbox.is_overfull and outbox.bytes <= 50
    whole = await outbox.get()
    assert whole is not None and len(whole.step.tokens) == 3 * (1 + 50 // size)
    assert outbox.empty() and outbox.bytes == 0
    outbox.put_nowait(internal.LeaderMessage(step=step))
    assert outbox.empty(), "what comes behind a gap must not be taken for what was next"


async def test_a_router_that_is_behind_gets_steps_together_in_order_and_the_last_load() -> None:
    outbox = Outbox()
    for number in range(3 * MOST_JOINED):
        step = internal.Step(tokens=[internal.Token(stream=1, index=number)], load=internal.Load(waiting=number % 32))
        outbox.put_nowait(internal.LeaderMessage(step=step))
        if number == MOST_JOINED + 5:
            outbox.put_nowait(internal.LeaderMessage(welcome=internal.Welcome(model="between")))
    outbox.put_nowait(None)
    got = []
    while (message := await outbox.get()) is not None:
        got.append(message)
    assert [m.WhichOneof("message") for m in got] == ["step", "step", "welcome", "step", "step"]
    assert [t.index for m in got for t in m.step.tokens] == list(range(3 * MOST_JOINED))
    assert [m.step.load.waiting for m in got] == [31, 5, 0, 5, 31]


async def test_a_reader_is_given_up_when_one_event_waits_for_all_looks_and_not_before() -> None:
    task = asyncio.create_task(asyncio.sleep(WAIT_S))
    reader = Reader(task)
    for sent in range(50):  # slow, but it takes one event for each few looks
        reader.sent, reader.sending = sent, True
        for _ in range(LOOKS):
            reader.look(LOOKS)
    reader.sending = False
    for _ in range(5 * LOOKS):  # nothing waits: it is the model that is slow
        reader.look(LOOKS)
    assert not reader.is_given_up
    reader.sending = True
    for _ in range(LOOKS + 1):
        reader.look(LOOKS)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reader.is_given_up


async def test_the_watch_over_readers_ends_with_the_last_of_them() -> None:
    readers = SlowReaders(patience_s=0.08)
    before = asyncio.all_tasks()
    for _ in range(3):
        with readers.reader(), readers.reader():
            await asyncio.sleep(0.02)
        async with asyncio.timeout(WAIT_S):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0.01)
