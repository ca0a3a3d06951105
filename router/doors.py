"""Where clients reach the routers of a deployment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, order=True)
class Doors:
    """One router's: gRPC and HTTP, on one host."""

    host: str
    grpc_port: int
    http_port: int

    @property
    def grpc_address(self) -> str:
        return _address(self.host, self.grpc_port)

    @property
    def http_address(self) -> str:
        return _address(self.host, self.http_port)


Neighbours: TypeAlias = Callable[[], Sequence[Doors]]
"""The doors of all routers that are known at this moment, the asked one's among them."""


def alone() -> Sequence[Doors]:
    """The Neighbours of a router that knows of none."""
    return ()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
