"""Servers that system tests start end with the session."""

from collections.abc import Callable, Iterator

import pytest
from server import Server, start_server


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Server]]:
    """serve("--tp", "2", ...) -> Server; whatever still runs at the end is stopped."""
    servers: list[Server] = []

    def start(*args: str) -> Server:
        servers.append(start_server(*args))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
