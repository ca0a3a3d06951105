"""The error that a call's end stands for: what the server meant, or what became of the connection."""

import grpc

from rayline.protos.errors import (
    DeadlineExceeded,
    InternalError,
    RaylineError,
    Unauthenticated,
    Unavailable,
    error_of,
)

_WITHOUT_KIND = {  # statuses that no code of ours made: the connection's, a proxy's
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,  # by the other side: its process ended
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
_RESET = "RST_STREAM"  # a stream that was cut is an INTERNAL error to gRPC


def error_of_call(error: grpc.RpcError, address: str) -> RaylineError:
    """`error` comes from a call to `address`, of either kind."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    details = error.details() or ""
    trailing = {name: value for name, value in error.trailing_metadata() or () if isinstance(value, str)}
    kind = trailing.get("rayline-error-kind")
    if kind is None:
        leaf = Unavailable if _RESET in details else _WITHOUT_KIND.get(error.code(), InternalError)
        return leaf(f"server {address} answered {error.code().name}: {details}")
    wait_ms = trailing.get("retry-after-ms")
    return error_of(
        kind,
        details,
        field=trailing.get("rayline-error-field"),
        retry_after_s=float(wait_ms) / 1000 if wait_ms else None,
    )
