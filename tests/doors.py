"""The HTTP and the gRPC door over loopback ports, and clients of the first."""

import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import openai
from door_thread import door_of
from fakes import FakeGroup, service_of
from waiting import until

from rayline.cluster.config import LimitsSection, RouterSection, SecuritySection, SystemConfig
from rayline.router.grpc.api import build_grpc_server
from rayline.router.http.api import build_http_app
from rayline.router.http.server import http_server
from rayline.router.service import Service

HI: Any = [{"role": "user", "content": "hi"}]
COMPLETION = {"model": "tiny", "prompt": "the dog"}
CHAT = {"model": "tiny", "messages": HI}


@contextmanager
def serving(
    service: Service, *, api_keys: Sequence[str] = (), max_message_bytes: int = 2**20, slow_reader_s: float = 30.0
) -> Iterator[str]:
    """The address of a server that runs in a thread of its own."""
    config = SystemConfig(
        security=SecuritySection(api_keys=tuple(api_keys)), limits=LimitsSection(max_message_bytes=max_message_bytes)
    )
    server = http_server(build_http_app(service, config), slow_reader_s)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: server.run([listener]))
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def client_of(service: Service, api_key: str = "none", **options: Any) -> Iterator[openai.OpenAI]:
    with (
        serving(service, **options) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client,
    ):
        yield client


@contextmanager
def http_of(service: Service, **options: Any) -> Iterator[httpx.Client]:
    with serving(service, **options) as url, httpx.Client(base_url=url, timeout=120) as client:
        yield client


@contextmanager
def asking(url: str, path: str, body: dict[str, Any]) -> Iterator[None]:
    """A client that has sent a request, and goes away at the end of the block without having read anything."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode() + content)
        yield


@contextmanager
def served(*groups: FakeGroup, api_keys: Sequence[str] = ()) -> Iterator[str]:
    """The address of a gRPC door that runs in a thread of its own."""
    config = SystemConfig(router=RouterSection(grpc_port=0), security=SecuritySection(api_keys=tuple(api_keys)))
    with door_of(lambda: build_grpc_server(service_of(*groups), config)) as address:
        yield address
