"""A running server, as the command line talks to it over gRPC."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import grpc
from grpc_health.v1 import health_pb2

from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.errors import ConfigError, InternalError, RaylineError, Unauthenticated, Unavailable, error_of
from rayline.protos.event_wire import event_of
from rayline.protos.events import StreamEvent
from rayline.protos.request_wire import spec_to_pb
from rayline.protos.types import Spec

CHANNEL_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
_WITHOUT_KIND = {  # statuses that no code of ours made: the connection's, a proxy's
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as a server lists it. Lengths and sizes in tokens, 0 while no group serves it; counts of all groups."""

    name: str
    max_model_len: int
    vocab_size: int
    groups: int
    numerics: str = ""
    exact: bool = False
    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    block_tokens: int = 0


def check_address(address: str) -> str:
    """`address` if it reads host:port. Raises ConfigError otherwise."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"address = {address!r} is not host:port, such as 127.0.0.1:9000", field="address")
    return address


def call_metadata(api_key: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def error_of_call(error: grpc.RpcError, address: str) -> RaylineError:
    """The error that the server meant, or that the connection had. `error` comes from a call, of either kind."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    details = error.details() or ""
    trailing = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    kind = trailing.get("rayline-error-kind")
    if kind is None:
        leaf = _WITHOUT_KIND.get(error.code(), InternalError)
        return leaf(f"server {address} answered {error.code().name}: {details}")
    wait_ms = trailing.get("retry-after-ms")
    return error_of(
        kind,
        details,
        field=trailing.get("rayline-error-field"),
        retry_after_s=float(wait_ms) / 1000 if wait_ms else None,
    )


class Client:
    """One connection. Every method raises the RaylineError the server answered with."""

    def __init__(self, address: str, api_key: str | None = None):
        self._address = check_address(address)
        self._metadata = call_metadata(api_key)
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._service = pb_grpc.InferenceServiceStub(self._channel)
        self._check_health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    def stream(self, spec: Spec) -> Iterator[StreamEvent]:
        """Events of one request, the last one Finished or Failed. Closing the iterator cancels it."""
        request = spec_to_pb(spec)
        method = self._service.Chat if isinstance(request, pb.ChatRequest) else self._service.Generate
        call = method(request, metadata=self._metadata)
        try:
            for message in call:
                yield event_of(message)
                if message.WhichOneof("event") in ("finished", "failed"):
                    return
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
        finally:
            call.cancel()

    def models(self, timeout_s: float) -> tuple[ModelStatus, ...]:
        try:
            answer = self._service.ListModels(pb.ListModelsRequest(), metadata=self._metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
        return tuple(_status_of(model) for model in answer.models)

    def health(self, timeout_s: float) -> str:
        """The state of the whole server: SERVING, NOT_SERVING..."""
        try:
            answer = self._check_health(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _status_of(model: pb.Model) -> ModelStatus:
    return ModelStatus(
        name=model.name,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        groups=model.groups,
        numerics=model.numerics,
        exact=model.exact,
        running=model.running,
        waiting=model.waiting,
        free_blocks=model.free_blocks,
        total_blocks=model.total_blocks,
        block_tokens=model.block_tokens,
    )
