"""The gRPC door: rayline.v1.InferenceService, and the server around it with health, reflection and API keys."""

import asyncio
import logging
import math
import uuid
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rayline.cluster.config import SystemConfig
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos import operator_pb2_grpc
from rayline.protos.errors import InternalError, InvalidRequest, PortInUse, RaylineError
from rayline.protos.event_wire import event_to_pb
from rayline.protos.events import Failed, StreamEvent
from rayline.protos.metadata import CAN_RESUME, ROUTERS
from rayline.protos.position import Position, Reading
from rayline.protos.request_wire import conversation_of, spec_of
from rayline.router.auth import TENANT_HEADER, ApiKeys
from rayline.router.doors import Neighbours, alone
from rayline.router.grpc.gate import Gate, metadata_text
from rayline.router.grpc.health import LiveHealth
from rayline.router.grpc.operator import OperatorServicer
from rayline.router.grpc.status import abort_with
from rayline.router.grpc.unknown import refuse_unknown
from rayline.router.operations import Operations
from rayline.router.ports import probe_port
from rayline.router.service import ServedModel, Service
from rayline.router.slow_readers import Reader, SlowReaders

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
ABORT_TIMEOUT_S = 2.0
KEEPALIVE_MS = 20_000
MAX_CONNECTION_AGE_MS = 3_600_000  # clients behind a balancer find new routers within the hour; streams may end first

log = logging.getLogger("rayline.router")
Context = grpc.aio.ServicerContext[Any, Any]
Opened = tuple[int, AsyncGenerator[StreamEvent, None]]
"""A stream, and how many choices it shows."""


class InferenceServicer(pb_grpc.InferenceServiceServicer):
    """Writes the service's events as messages.

    An error before the first event is the RPC's status. A failure after acceptance is sent as a `failed`
    event, and then the RPC ends with the error's code. grpc.aio cancels the handler of a call that was
    cancelled or is past its deadline; that closes the stream's generator, which aborts the request.
    """

    def __init__(self, service: Service, keys: ApiKeys, neighbours: Neighbours, slow_reader_s: float):
        self._service = service
        self._keys = keys
        self._neighbours = neighbours
        self._slow = SlowReaders(slow_reader_s)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:
        await self._stream(request, context)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> None:
        await self._stream(request, context)

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> None:
        await self._events(self._resumed(request, context), Position(request.next_index, tuple(request.seen)), context)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        try:
            token_ids = await self._token_ids(request)
            limit = self._service.model(request.model).info.max_model_len
            return pb.TokenizeResponse(token_ids=token_ids, max_model_len=limit)
        except RaylineError as error:
            return await abort_with(context, error)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        try:
            return pb.DetokenizeResponse(text=self._service.detokenize(request.model, request.token_ids))
        except RaylineError as error:
            return await abort_with(context, error)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[_model_to_pb(model) for model in self._service.models()])

    async def ListRouters(self, request: pb.ListRoutersRequest, context: Context) -> pb.ListRoutersResponse:
        return pb.ListRoutersResponse(
            routers=[
                pb.Router(grpc_address=doors.grpc_address, http_address=doors.http_address)
                for doors in self._neighbours()
            ]
        )

    async def _stream(self, request: pb.GenerateRequest | pb.ChatRequest, context: Context) -> None:
        await self._events(self._generated(request, context), Position(), context)

    async def _generated(self, request: pb.GenerateRequest | pb.ChatRequest, context: Context) -> Opened:
        refuse_unknown(request)
        metadata = context.invocation_metadata()
        named = metadata_text(metadata, TENANT_HEADER)
        spec = self._keys.sign(spec_of(request, _new_id), metadata_text(metadata, "authorization"), named)
        can_resume = await self._tell_routers(context)
        is_known = None if request.request_id else False
        return spec.params.n, self._service.generate(
            spec, within_s=_seconds_left(context), is_known=is_known, can_resume=can_resume
        )

    async def _resumed(self, request: pb.ResumeRequest, context: Context) -> Opened:
        metadata = context.invocation_metadata()
        named = request.tenant or metadata_text(metadata, TENANT_HEADER)
        tenant = self._keys.tenant(metadata_text(metadata, "authorization"), named)
        found = await self._service.find(tenant, request.request_id)
        can_resume = await self._tell_routers(context)
        return found.record.spec.params.n, self._service.resume(
            found, within_s=_seconds_left(context), can_resume=can_resume
        )

    async def _tell_routers(self, context: Context) -> bool:
        """Whether the caller resumes by itself: then it is told where else it may."""
        if metadata_text(context.invocation_metadata(), CAN_RESUME) is None:
            return False
        addresses = ",".join(doors.grpc_address for doors in self._neighbours())
        await context.send_initial_metadata(((ROUTERS, addresses),) if addresses else ())
        return True

    async def _events(self, opening: Awaitable[Opened], start: Position, context: Context) -> None:
        with self._slow.reader() as reader:
            failure = await self._send(opening, start, context, reader)
        if failure is None:
            return
        with suppress(TimeoutError):  # behind what a slow reader has not taken, the end would wait for ever
            await asyncio.wait_for(abort_with(context, failure), ABORT_TIMEOUT_S)

    async def _send(
        self, opening: Awaitable[Opened], start: Position, context: Context, reader: Reader
    ) -> RaylineError | None:
        """Write what is new to a caller who has read up to `start`; the error that the call ends with."""
        failure: RaylineError | None = None
        try:
            choices, stream = await opening
            reading = Reading(start, choices)
            async with aclosing(stream) as events:
                async for event in events:
                    if (index := reading.take(event)) is not None:
                        reader.sending = True
                        await context.write(event_to_pb(index, event))
                        reader.sending = False
                        reader.sent += 1
                    if isinstance(event, Failed):
                        failure = event.error
        except asyncio.CancelledError:
            if not reader.swallows_cancellation():
                raise
            failure = self._slow.error
        except RaylineError as error:
            failure = error
        except Exception as error:
            log.exception("a call failed")
            failure = InternalError(f"{type(error).__name__}: {error}")
        return failure

    async def _token_ids(self, request: pb.TokenizeRequest) -> tuple[int, ...]:
        refuse_unknown(request)
        match request.WhichOneof("input"):
            case "text":
                special = request.add_special_tokens if request.HasField("add_special_tokens") else True
                return await self._service.tokenize(request.model, request.text, special)
            case "messages":
                if request.add_special_tokens:
                    raise InvalidRequest(
                        "add_special_tokens cannot be combined with messages", field="add_special_tokens"
                    )
                return await self._service.tokenize_chat(request.model, conversation_of(request.messages))
            case _:
                raise InvalidRequest("exactly one of text and messages must be given", field="text")


class GrpcDoor:
    """A gRPC server and the port it listens on. Built inside the event loop that runs it."""

    def __init__(self, server: grpc.aio.Server, port: int):
        self._server = server
        self.port = port

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; cancel those that still run after `grace_s`."""
        await self._server.stop(grace_s)


def build_grpc_server(
    service: Service,
    config: SystemConfig,
    neighbours: Neighbours = alone,
    operations: Operations | None = None,
) -> GrpcDoor:
    """The door for `service` on config.router's host and grpc_port. Raises PortInUse.

    operations: what operators may ask for; None: nothing.
    """
    host, port = config.router.host, config.router.grpc_port
    probe_port(host, port, "grpc_port")
    keys = ApiKeys(config.security)
    gate = Gate(keys, f"/{SERVICE_NAME}/")
    server = grpc.aio.server(interceptors=[gate], options=_options(config.limits.max_message_bytes))
    pb_grpc.add_InferenceServiceServicer_to_server(
        InferenceServicer(service, keys, neighbours, config.limits.slow_reader_s), server
    )
    if operations is not None:
        operator = OperatorServicer(operations, config.security.operator_keys)
        operator_pb2_grpc.add_OperatorServiceServicer_to_server(operator, server)
    health_pb2_grpc.add_HealthServicer_to_server(LiveHealth(service, SERVICE_NAME), server)
    reflection.enable_server_reflection((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise PortInUse(f"grpc_port = {port} cannot be bound on {host}: {error}", field="grpc_port") from None
    return GrpcDoor(server, bound)


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Channel arguments. A client may ping while a long answer is computed; misspelt names are ignored silently."""
    return [
        ("grpc.so_reuseport", 0),  # a port that another server holds is an error, not shared
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_MS),
        # A client that is gone without a word answers no ping. What gRPC calls keepalive_timeout ends nothing.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
    ]


def _seconds_left(context: Context) -> float:
    """Until the call's own deadline."""
    left_s = context.time_remaining()
    return math.inf if left_s is None else left_s


def _new_id() -> str:
    return f"gen-{uuid.uuid4().hex}"


def _model_to_pb(model: ServedModel) -> pb.Model:
    groups = [group for group in model.groups.values() if group.alive]
    alive, loads = [group.info for group in groups], [group.load for group in groups]
    return pb.Model(
        name=model.name,
        created_s=model.created_s,
        max_model_len=alive[0].max_model_len if alive else 0,
        vocab_size=alive[0].vocab_size if alive else 0,
        groups=len(alive),
        numerics=alive[0].numerics if alive else "",
        exact=bool(alive) and all(info.exact for info in alive),
        running=sum(load.running for load in loads),
        waiting=sum(load.waiting for load in loads),
        free_blocks=sum(load.free_blocks for load in loads),
        total_blocks=sum(load.total_blocks for load in loads),
        block_tokens=alive[0].block_tokens if alive else 0,
    )
