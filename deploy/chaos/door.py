"""A deployment's front doors, as the streams of a chaos run use them."""

from collections.abc import AsyncIterator, Sequence
from typing import Self

import grpc

from rayline.deploy.client import CHANNEL_OPTIONS, call_metadata, check_address, error_of_call
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.event_wire import event_of
from rayline.protos.events import StreamEvent
from rayline.protos.request_wire import spec_to_pb
from rayline.protos.types import Spec

STATUS_TIMEOUT_S = 2.0


class Door:
    """One channel for all streams. Enter it inside the event loop."""

    def __init__(self, addresses: Sequence[str], api_key: str | None):
        self.addresses = [check_address(address) for address in addresses]
        self._metadata = call_metadata(api_key)

    async def __aenter__(self) -> Self:
        self._channels = [grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) for address in self.addresses]
        self._services = [pb_grpc.InferenceServiceStub(channel) for channel in self._channels]
        return self

    async def __aexit__(self, *error: object) -> None:
        for channel in self._channels:
            await channel.close()

    async def stream(self, spec: Spec) -> AsyncIterator[StreamEvent]:
        """Every event that comes, what comes behind a terminal one too. Raises the RaylineError of the call."""
        request, service = spec_to_pb(spec), self._services[0]
        method = service.Chat if isinstance(request, pb.ChatRequest) else service.Generate
        try:
            async for message in method(request, metadata=self._metadata):
                yield event_of(message)
        except grpc.RpcError as error:
            raise error_of_call(error, self.addresses[0]) from None

    async def models(self) -> list[Sequence[pb.Model]]:
        """What each router knows of its groups. Raises the RaylineError of the first that does not answer."""
        found = []
        for address, service in zip(self.addresses, self._services, strict=True):
            request = pb.ListModelsRequest()
            try:
                answer = await service.ListModels(request, metadata=self._metadata, timeout=STATUS_TIMEOUT_S)
            except grpc.RpcError as error:
                raise error_of_call(error, address) from None
            found.append(answer.models)
        return found
