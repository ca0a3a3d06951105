"""A deployment's front doors, as the streams of a chaos run use them: through the client that goes on by itself."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Self

from rayline.protos import inference_pb2 as pb
from rayline.protos.client import AsyncClient
from rayline.protos.event_wire import event_of
from rayline.protos.events import StreamEvent
from rayline.protos.request_wire import spec_to_pb
from rayline.protos.resuming import Patience
from rayline.protos.types import Spec

STATUS_TIMEOUT_S = 2.0
PATIENCE = Patience(connect_s=60.0, resume_s=150.0)  # faults may hit all routers of a crowded machine at once


class Door:
    """One client for all streams. Enter it inside the event loop."""

    def __init__(self, addresses: Sequence[str], api_key: str | None):
        self._client = AsyncClient(addresses, api_key=api_key, patience=PATIENCE)
        self._api_key = api_key

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def stream(self, spec: Spec) -> AsyncIterator[StreamEvent]:
        """Every event of a stream, whatever becomes of routers. Raises the RaylineError that nothing helps against."""
        async with aclosing(self._client.stream(spec_to_pb(spec))) as messages:
            async for message in messages:
                yield event_of(message)

    async def models(self) -> list[Sequence[pb.Model]]:
        """What each router of the present ones knows of its groups. Raises the RaylineError of the first that does not
        answer."""
        known = await self._client.routers(STATUS_TIMEOUT_S)
        return [await self._models_at(router.grpc_address) for router in known.routers]

    async def _models_at(self, address: str) -> Sequence[pb.Model]:
        """Over a connection of its own: one that was cut off is slow to come back."""
        async with AsyncClient([address], api_key=self._api_key) as client:
            return (await client.models(STATUS_TIMEOUT_S)).models
