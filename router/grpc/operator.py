"""The operators' service, at the same port as the clients'."""

import hmac
import ipaddress
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any, TypeVar

import grpc

from rayline.protos import operator_pb2 as pb
from rayline.protos import operator_pb2_grpc as pb_grpc
from rayline.protos.errors import InvalidRequest, RaylineError, Unauthenticated, out_of_range
from rayline.router.grpc.gate import metadata_text
from rayline.router.grpc.status import abort_with
from rayline.router.operations import Operations

MOST_TIMEOUT_S = 3600.0

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")


class OperatorServicer(pb_grpc.OperatorServiceServicer):
    """Who may call: the owners of `keys`; where there are none, whoever calls from this machine."""

    def __init__(self, operations: Operations, keys: tuple[str, ...]):
        self._operations = operations
        self._keys = tuple(key.encode() for key in keys)

    async def ListGroups(self, request: pb.ListGroupsRequest, context: Context) -> pb.ListGroupsResponse:
        return await _answered(context, self._list(context))

    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        return await _answered(context, self._drain(request, context))

    async def _list(self, context: Context) -> pb.ListGroupsResponse:
        self._check(context)
        return pb.ListGroupsResponse(groups=[pb.Group(**asdict(group)) for group in self._operations.groups()])

    async def _drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:
        self._check(context)
        if not 0 <= request.timeout_s <= MOST_TIMEOUT_S:
            raise out_of_range("timeout_s", request.timeout_s, f"0 to {MOST_TIMEOUT_S:.0f} seconds")
        if not request.target:
            raise InvalidRequest("target is empty: it names a group or a node", field="target")
        drained = await self._operations.drain(request.target, request.timeout_s)
        return pb.DrainResponse(groups=[pb.Drained(**asdict(group)) for group in drained])

    def _check(self, context: Context) -> None:
        if not self._keys:
            if is_local(context.peer()):
                return
            raise Unauthenticated("security.operator_keys is empty: operators call from the router's own machine")
        shown = (metadata_text(context.invocation_metadata(), "authorization") or "").partition(" ")[2].strip()
        if not any([hmac.compare_digest(shown.encode(errors="replace"), key) for key in self._keys]):
            raise Unauthenticated("authorization does not hold an operator's key", field="authorization")


def is_local(peer: str) -> bool:
    """Whether a gRPC peer, such as ipv4:127.0.0.1:4711 or ipv6:%5B::1%5D:4711, is this machine by its loopback."""
    kind, _, rest = peer.partition(":")
    if kind == "unix":
        return True
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _answered(context: Context, answer: Awaitable[T]) -> T:
    try:
        return await answer
    except RaylineError as error:
        return await abort_with(context, error)
