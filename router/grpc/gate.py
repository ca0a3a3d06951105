"""What stands before every call of the service: an API key, and bytes that are a message."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from rayline.protos.errors import InvalidRequest, RaylineError, Unauthenticated
from rayline.router.auth import ApiKeys
from rayline.router.grpc.status import abort_with

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MaybeHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Gate(grpc.aio.ServerInterceptor):
    """Refuses calls without a known key or with a broken message.

    Methods outside `guarded` (health, reflection) are open to probes. grpc.aio alone would answer broken
    bytes with UNKNOWN and a stack trace in the log.
    """

    def __init__(self, keys: ApiKeys, guarded: str):
        self._keys = keys
        self._guarded = guarded

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MaybeHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MaybeHandler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._guarded):
            return handler
        try:
            self._keys.tenant(metadata_text(handler_call_details.invocation_metadata, "authorization"), None)
        except Unauthenticated as error:
            return _gated(handler, error)
        return _gated(handler, None)


def metadata_text(metadata: Any, key: str) -> str | None:
    """What a call's metadata says under `key`."""
    value = dict(metadata or ()).get(key)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _gated(handler: Handler, refusal: RaylineError | None) -> Handler:
    """`handler`, ending each call in `refusal` if there is one, or in InvalidRequest when its bytes are no message."""
    behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary
    parse: Any = handler.request_deserializer

    def parse_or_error(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError as error:
            return InvalidRequest(f"the request is not a protobuf message of its kind: {error}", field="request")

    async def behave(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if refusal is not None:
            await abort_with(context, refusal)
        if isinstance(request, RaylineError):
            await abort_with(context, request)
        return await behaviour(request, context)

    kind = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return kind(behave, parse_or_error, handler.response_serializer)
