"""Clients of a deployment that lose no stream: they take several routers and go on at another one by themselves.

They need gRPC and the generated code beside this file, nothing else of ours; `pip install` of this folder installs them
alone (docs/client.md).
"""

import asyncio
import random
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeAlias, TypeVar

import grpc

from rayline.protos import inference_pb2 as pb
from rayline.protos.addresses import Addresses
from rayline.protos.call_error import error_of_call
from rayline.protos.errors import RaylineError, Unavailable
from rayline.protos.inference_pb2_grpc import InferenceServiceStub
from rayline.protos.metadata import CAN_RESUME, ROUTERS
from rayline.protos.resuming import Patience, Request, ResumingStream, signed

Metadata: TypeAlias = tuple[tuple[str, str], ...]

T = TypeVar("T")

PATIENT = Patience()
ANSWER_TIMEOUT_S = 5.0
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A router that froze answers no pings: its streams are lost after 2 s. gRPC's keepalive_timeout ends nothing.
    ("grpc.keepalive_time_ms", 500),
    ("grpc.http2.ping_timeout_ms", 1_500),
    ("grpc.http2.max_pings_without_data", 0),
    # Its machine still accepts connections in its name: one that stays silent is given up, too.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class Client:
    """Blocking calls, from any number of threads. Every method raises the RaylineError the server answered with."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience = PATIENT,
    ):
        """addresses: host:port of one router or more. credentials: of TLS, where a proxy in front of them speaks it.

        Raises ConfigError for an address that is none.
        """
        self._addresses = Addresses(addresses)
        self._metadata = call_metadata(api_key)
        self._credentials = credentials
        self._patience = patience
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()

    def stream(self, request: Request) -> Generator[pb.StreamResponse, None, None]:
        """The events of one request: started, then what its choices bring, the last one finished or failed.

        A lost connection, a router that froze, ended or is being ended: the stream goes on with its next event, at
        another router where there is one. No event comes twice, none is left out. `request.timeout_s` limits the whole.
        What is wrong before the first event is raised, as is the loss of a stream that nobody could go on with in time.
        Closing the generator cancels the request.
        """
        reading = ResumingStream(signed(request), self._patience, time.monotonic())
        while True:
            address = self._addresses.choose(time.monotonic())
            call = _begin(self._stub(address), reading, self._metadata)
            try:
                yield from self._events(call, reading)
                error: RaylineError = Unavailable(f"server {address} ended the stream before its end")
            except grpc.RpcError as end:
                error = error_of_call(end, address)
            finally:
                call.cancel()
            if reading.ended:
                return
            self._addresses.learn(_routers(call.initial_metadata()))  # a call may end before its first event
            self._addresses.failed(address, time.monotonic())
            time.sleep(reading.lost(error, len(self._addresses), time.monotonic(), random.random()))

    def _events(self, call: Any, reading: ResumingStream) -> Iterator[pb.StreamResponse]:
        """What is new of one call's events."""
        for number, event in enumerate(call):
            if number == 0:
                self._addresses.learn(_routers(call.initial_metadata()))
            if reading.take(event):
                yield event
            if reading.ended:
                return

    def models(self, timeout_s: float = ANSWER_TIMEOUT_S) -> pb.ListModelsResponse:
        """What is served."""
        answer: pb.ListModelsResponse = self._ask(lambda stub: stub.ListModels, pb.ListModelsRequest(), timeout_s)
        return answer

    def routers(self, timeout_s: float = ANSWER_TIMEOUT_S) -> pb.ListRoutersResponse:
        """Who serves it."""
        answer: pb.ListRoutersResponse = self._ask(lambda stub: stub.ListRouters, pb.ListRoutersRequest(), timeout_s)
        return answer

    def tokenize(self, request: pb.TokenizeRequest, timeout_s: float = ANSWER_TIMEOUT_S) -> pb.TokenizeResponse:
        """Text, or a conversation, to token ids."""
        answer: pb.TokenizeResponse = self._ask(lambda stub: stub.Tokenize, request, timeout_s)
        return answer

    def detokenize(self, request: pb.DetokenizeRequest, timeout_s: float = ANSWER_TIMEOUT_S) -> pb.DetokenizeResponse:
        """Token ids to text."""
        answer: pb.DetokenizeResponse = self._ask(lambda stub: stub.Detokenize, request, timeout_s)
        return answer

    def close(self) -> None:
        """Ends what still runs."""
        for channel in self._channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _ask(self, method: Callable[[InferenceServiceStub], Callable[..., T]], request: Any, timeout_s: float) -> T:
        """The answer of the first router that has one."""
        attempts = 0
        while True:
            attempts += 1
            address = self._addresses.choose(time.monotonic())
            try:
                return method(self._stub(address))(request, metadata=self._metadata, timeout=timeout_s)
            except grpc.RpcError as end:
                error = error_of_call(end, address)
                self._addresses.failed(address, time.monotonic())
                if attempts >= len(self._addresses) or not isinstance(error, Unavailable):
                    raise error from None

    def _stub(self, address: str) -> InferenceServiceStub:
        with self._lock:
            if address not in self._channels:
                self._channels[address] = (
                    grpc.secure_channel(address, self._credentials, CHANNEL_OPTIONS)
                    if self._credentials
                    else grpc.insecure_channel(address, CHANNEL_OPTIONS)
                )
            return InferenceServiceStub(self._channels[address])


class AsyncClient:
    """`Client` for one event loop. Leaving a stream early cancels it: `async with aclosing(client.stream(...))`."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience = PATIENT,
    ):
        """As `Client`'s."""
        self._addresses = Addresses(addresses)
        self._metadata = call_metadata(api_key)
        self._credentials = credentials
        self._patience = patience
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def stream(self, request: Request) -> AsyncGenerator[pb.StreamResponse, None]:
        """As `Client.stream`."""
        reading = ResumingStream(signed(request), self._patience, time.monotonic())
        while True:
            address = self._addresses.choose(time.monotonic())
            call = _begin(self._stub(address), reading, self._metadata)
            try:
                async with aclosing(self._events(call, reading)) as events:
                    async for event in events:
                        yield event
                error: RaylineError = Unavailable(f"server {address} ended the stream before its end")
            except grpc.RpcError as end:
                error = error_of_call(end, address)
            finally:
                call.cancel()
            if reading.ended:
                return
            self._addresses.learn(_routers(await call.initial_metadata()))  # a call may end before its first event
            self._addresses.failed(address, time.monotonic())
            await asyncio.sleep(reading.lost(error, len(self._addresses), time.monotonic(), random.random()))

    async def _events(self, call: Any, reading: ResumingStream) -> AsyncGenerator[pb.StreamResponse, None]:
        is_first = True
        async for event in call:
            if is_first:
                self._addresses.learn(_routers(await call.initial_metadata()))
                is_first = False
            if reading.take(event):
                yield event
            if reading.ended:
                return

    async def models(self, timeout_s: float = ANSWER_TIMEOUT_S) -> pb.ListModelsResponse:
        """What is served."""
        return await self._ask(lambda stub: stub.ListModels, pb.ListModelsRequest(), timeout_s)

    async def routers(self, timeout_s: float = ANSWER_TIMEOUT_S) -> pb.ListRoutersResponse:
        """Who serves it."""
        return await self._ask(lambda stub: stub.ListRouters, pb.ListRoutersRequest(), timeout_s)

    async def tokenize(self, request: pb.TokenizeRequest, timeout_s: float = ANSWER_TIMEOUT_S) -> pb.TokenizeResponse:
        """Text, or a conversation, to token ids."""
        return await self._ask(lambda stub: stub.Tokenize, request, timeout_s)

    async def detokenize(
        self, request: pb.DetokenizeRequest, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> pb.DetokenizeResponse:
        """Token ids to text."""
        return await self._ask(lambda stub: stub.Detokenize, request, timeout_s)

    async def close(self) -> None:
        """Ends what still runs."""
        for channel in self._channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _ask(
        self, method: Callable[[InferenceServiceStub], Callable[..., Awaitable[T]]], request: Any, timeout_s: float
    ) -> T:
        """The answer of the first router that has one."""
        attempts = 0
        while True:
            attempts += 1
            address = self._addresses.choose(time.monotonic())
            try:
                return await method(self._stub(address))(request, metadata=self._metadata, timeout=timeout_s)
            except grpc.RpcError as end:
                error = error_of_call(end, address)
                self._addresses.failed(address, time.monotonic())
                if attempts >= len(self._addresses) or not isinstance(error, Unavailable):
                    raise error from None

    def _stub(self, address: str) -> InferenceServiceStub:
        if address not in self._channels:
            self._channels[address] = (
                grpc.aio.secure_channel(address, self._credentials, CHANNEL_OPTIONS)
                if self._credentials
                else grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
            )
        return InferenceServiceStub(self._channels[address])


def _begin(stub: InferenceServiceStub, reading: ResumingStream, metadata: Metadata) -> Any:
    """The call that brings the stream's next events."""
    message = reading.call()
    methods = {pb.GenerateRequest: stub.Generate, pb.ChatRequest: stub.Chat, pb.ResumeRequest: stub.Resume}
    return methods[type(message)](message, metadata=metadata, timeout=reading.left_s(time.monotonic()))


def call_metadata(api_key: str | None) -> Metadata:
    key = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    return ((CAN_RESUME, "1"), *key)


def _routers(metadata: Iterable[tuple[str, str | bytes]] | None) -> list[str]:
    """The addresses that a router named."""
    named = dict(metadata or ()).get(ROUTERS, "")
    return named.split(",") if isinstance(named, str) and named else []
