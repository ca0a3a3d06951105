"""A running server, as its operators talk to it over gRPC."""

from typing import Self

import grpc

from rayline.protos import operator_pb2 as pb
from rayline.protos import operator_pb2_grpc as pb_grpc
from rayline.protos.addresses import check_address
from rayline.protos.call_error import error_of_call
from rayline.protos.client import call_metadata
from rayline.router.operations import Drained, GroupState

LIST_TIMEOUT_S = 5.0
ANSWER_S = 15.0  # beyond the time for the streams


class OperatorClient:
    """One connection. Every method raises the RaylineError the server answered with."""

    def __init__(self, address: str, key: str | None = None):
        self._address = check_address(address)
        self._metadata = call_metadata(key)
        self._channel = grpc.insecure_channel(address)
        self._service = pb_grpc.OperatorServiceStub(self._channel)

    def groups(self) -> tuple[GroupState, ...]:
        """The groups that live."""
        try:
            answer = self._service.ListGroups(pb.ListGroupsRequest(), metadata=self._metadata, timeout=LIST_TIMEOUT_S)
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
        return tuple(
            GroupState(g.group_id, g.model, g.running, g.waiting, g.draining, tuple(g.nodes)) for g in answer.groups
        )

    def drain(self, target: str, timeout_s: float) -> tuple[Drained, ...]:
        """Move all streams of a group or a node away and end it; returns when that is done."""
        request = pb.DrainRequest(target=target, timeout_s=timeout_s)
        try:
            answer = self._service.Drain(request, metadata=self._metadata, timeout=timeout_s + ANSWER_S)
        except grpc.RpcError as error:
            raise error_of_call(error, self._address) from None
        return tuple(Drained(g.group_id, g.streams, g.streams_left, g.seconds) for g in answer.groups)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
