"""uvicorn's protocol with one thing more: the system ends the connection of a client that reads nothing."""

import asyncio
import os
import socket

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def door_protocol(patience_s: float) -> type[asyncio.Protocol]:
    """For uvicorn.Config(http=...). A client that does not read, or is not there any more, is given up after
    `patience_s`: what waits for it is dropped with the connection, streamed or not, and the app sees a disconnect.

    Linux counts for us, from the first byte that finds no room (RFC 5482 and tcp(7), TCP_USER_TIMEOUT); each byte that
    the client takes starts it again. Other systems have no such option, and wait as long as TCP does.
    """
    option = getattr(socket, "TCP_USER_TIMEOUT", None)

    class DoorProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            if option is not None:
                _set(transport, option, round(patience_s * 1000))
            super().connection_made(transport)

    return DoorProtocol


def _set(transport: asyncio.Transport, option: int, value: int) -> None:
    """On a duplicate of the descriptor: what uvloop calls a socket has no options."""
    with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as own:
        own.setsockopt(socket.IPPROTO_TCP, option, value)
