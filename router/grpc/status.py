"""RaylineErrors as gRPC statuses: code, message and the details clients act on."""

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from rayline.protos.errors import RaylineError

Metadata = tuple[tuple[str, str | bytes], ...]


async def abort_with(context: grpc.aio.ServicerContext[Any, Any], error: RaylineError) -> NoReturn:
    """End the call with the error's code, message and details."""
    await context.abort(grpc.StatusCode[error.grpc_code], error.message, trailing_metadata(error))
    raise AssertionError("abort returned")


def trailing_metadata(error: RaylineError) -> Metadata:
    """`rayline-error-field`, `retry-after-ms`, and the same as a google.rpc.Status in `grpc-status-details-bin`."""
    metadata: list[tuple[str, str | bytes]] = [("rayline-error-kind", error.kind)]
    details: list[any_pb2.Any] = []
    if error.field is not None:
        metadata.append(("rayline-error-field", error.field))
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        metadata.append(("retry-after-ms", str(round(error.retry_after_s * 1000))))
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(_packed(retry))
    metadata.append(("grpc-status-details-bin", _status(error, details).SerializeToString()))
    return tuple(metadata)


def _status(error: RaylineError, details: Sequence[any_pb2.Any]) -> status_pb2.Status:
    return status_pb2.Status(code=code_pb2.Code.Value(error.grpc_code), message=error.message, details=details)


def _packed(message: error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
