"""The HTTP and the gRPC door over loopback ports, and clients of the first."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import openai
from fakes import FakeGroup, service_of

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
        thread.join(10)


def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("did not happen within 5 s")


@contextmanager
def client_of(service: Service, api_key: str = "none", **options: Any) -> Iterator[openai.OpenAI]:
    with (
        serving(service, **options) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client,
    ):
        yield client


@contextmanager
def http_of(service: Service, **options: Any) -> Iterator[httpx.Client]:
    with serving(service, **options) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


@contextmanager
def served(*groups: FakeGroup, api_keys: Sequence[str] = ()) -> Iterator[str]:
    """The address of a gRPC door that runs in a thread of its own."""
    address: list[str] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        config = SystemConfig(router=RouterSection(grpc_port=0), security=SecuritySection(api_keys=tuple(api_keys)))
        server = build_grpc_server(service_of(*groups), config)
        await server.start()
        address.append(f"127.0.0.1:{server.port}")
        started.set()
        await stop.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert started.wait(10)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
