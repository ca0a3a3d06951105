"""Answers of a running server, in the words that commands share with models loaded here."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from rayline.protos.addresses import addresses_of
from rayline.protos.client import Client
from rayline.protos.event_wire import event_of
from rayline.protos.events import StreamEvent
from rayline.protos.request_wire import spec_to_pb
from rayline.protos.resuming import Patience
from rayline.protos.types import Spec

PATIENCE = Patience(connect_s=0.0)  # who types a wrong address is told so at once


@contextmanager
def open_server(address: str, api_key: str | None) -> Iterator[Callable[[Spec], Iterator[StreamEvent]]]:
    """address: of its routers, with commas between them. Raises ConfigError for what is none."""
    with Client(addresses_of(address), api_key=api_key, patience=PATIENCE) as client:

        def stream(spec: Spec) -> Iterator[StreamEvent]:
            with closing(client.stream(spec_to_pb(spec))) as events:
                for event in events:
                    yield event_of(event)

        yield stream
