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
    """One client for all streams, and one for each router. Enter it inside the event loop."""

    def __init__(self, addresses: Sequence[str], api_key: str | None):
        self._client = AsyncClient(addresses, api_key=api_key, patience=PATIENCE)
        self._each = [AsyncClient([address], api_key=api_key) for address in addresses]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for client in (self._client, *self._each):
            await client.close()

    async def stream(self, spec: Spec) -> AsyncIterator[StreamEvent]:
        """Every event of a stream, whatever becomes of routers. Raises the RaylineError that nothing helps against."""
        async with aclosing(self._client.stream(spec_to_pb(spec))) as messages:
            async for message in messages:
                yield event_of(message)

    async def models(self) -> list[Sequence[pb.Model]]:
        """What each router knows of its groups. Raises the RaylineError of the first that does not answer."""
        return [(await client.models(STATUS_TIMEOUT_S)).models for client in self._each]
