"""A deployment's front door, as the streams of a chaos run use it."""

from collections.abc import AsyncIterator
from typing import Self

import grpc

from rayline.deploy.client import CHANNEL_OPTIONS, ModelStatus, call_metadata, check_address, error_of_call, status_of
from rayline.protos import inference_pb2 as pb
from rayline.protos import inference_pb2_grpc as pb_grpc
from rayline.protos.event_wire import event_of
from rayline.protos.events import StreamEvent
from rayline.protos.request_wire import spec_to_pb
from rayline.protos.types import Spec

STATUS_TIMEOUT_S = 2.0


class Door:
    """One channel for all streams. Enter it inside the event loop."""

    def __init__(self, address: str, api_key: str | None):
        self.address = check_address(address)
        self._metadata = call_metadata(api_key)

    async def __aenter__(self) -> Self:
        self._channel = grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS)
        self._service = pb_grpc.InferenceServiceStub(self._channel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._channel.close()

    async def stream(self, spec: Spec) -> AsyncIterator[StreamEvent]:
        """Every event that comes, what comes behind a terminal one too. Raises the RaylineError of the call."""
        request = spec_to_pb(spec)
        method = self._service.Chat if isinstance(request, pb.ChatRequest) else self._service.Generate
        try:
            async for message in method(request, metadata=self._metadata):
                yield event_of(message)
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None

    async def models(self) -> tuple[ModelStatus, ...]:
        """What this door's router knows of its groups. Raises the RaylineError of the call."""
        request = pb.ListModelsRequest()
        try:
            answer = await self._service.ListModels(request, metadata=self._metadata, timeout=STATUS_TIMEOUT_S)
        except grpc.RpcError as error:
            raise error_of_call(error, self.address) from None
        return tuple(status_of(model) for model in answer.models)
