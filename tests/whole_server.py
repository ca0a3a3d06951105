"""All of a server but Ray, in one process: a real model, its leader, a router with both doors, real sockets between."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rayline.cluster.config import EngineSection, LimitsSection, ParallelSection, RouterSection, SystemConfig
from rayline.deploy.model_path import resolve_model
from rayline.protos.plan import StepResult
from rayline.router.grpc.api import build_grpc_server
from rayline.router.http.api import build_http_app
from rayline.router.http.server import http_server
from rayline.router.link import GroupLink
from rayline.router.output_form import chat_formats
from rayline.router.service import ServedModel, Service
from rayline.router.tokenizer import Tokenizer
from rayline.workers.group import GroupSpec, StartedGroup, start_group
from rayline.workers.journal import Journal
from rayline.workers.leader import Leader

SECRET = "correct horse"
NAME = "tiny"


@dataclass(frozen=True)
class WholeServer:
    """Every part, for a look inside."""

    group: StartedGroup
    leader: Leader
    link: GroupLink
    service: Service
    grpc_port: int
    http_port: int

    @property
    def is_idle(self) -> bool:
        """Nothing runs, and no block is held."""
        load = self.leader.load
        return not self.service.running and not load.running + load.waiting and load.free_blocks == load.total_blocks


@asynccontextmanager
async def whole_server(limits: LimitsSection, step_s: float = 0.0, **engine: object) -> AsyncIterator[WholeServer]:
    """One group of one rank with the embedded model. A step takes `step_s` at least, however fast the machine is."""
    config = SystemConfig(limits=limits, router=RouterSection(grpc_port=0, http_port=0))
    path = resolve_model("embedded")
    section = EngineSection(threads=1, **({"max_running": 64} | engine))  # type: ignore[arg-type]
    spec = GroupSpec("g0", NAME, path, "auto", 0, section, ParallelSection(), limits.max_waiting)
    group = await asyncio.to_thread(start_group, spec, None, lambda *_: None)
    _slow_down(group.engine.pipeline, step_s)
    leader = Leader(group.engine, group.info, SECRET, Journal(2**26, keep_s=1.0))
    await leader.start("127.0.0.1")
    link = await GroupLink.open(leader.address, SECRET, most_unread_tokens=limits.max_unread_tokens)
    tokenizer = Tokenizer.load(path)
    model = ServedModel(NAME, tokenizer, {"g0": link}, 0, chat_formats(tokenizer, "auto", "auto"))
    service = Service({NAME: model}, time.monotonic, lambda: 42)
    grpc_door = build_grpc_server(service, config)
    await grpc_door.start()
    http = http_server(build_http_app(service, config), limits.slow_reader_s)
    listener = _small_listener()
    port = listener.getsockname()[1]
    task = asyncio.create_task(http.serve([listener]))
    while not http.started:
        await asyncio.sleep(0.01)
    try:
        yield WholeServer(group, leader, link, service, grpc_door.port, port)
    finally:
        http.should_exit = True
        await task
        await grpc_door.stop(0)
        await link.close()
        await leader.stop(0)
        service.close()


def _slow_down(pipeline: Any, step_s: float) -> None:
    quick = pipeline.next_result

    def next_result() -> StepResult:
        time.sleep(step_s)
        return quick()

    if step_s:
        pipeline.next_result = next_result


def _small_listener() -> socket.socket:
    """Its connections hold little: a client that does not read is felt after some kilobytes, not megabytes."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    listener.bind(("127.0.0.1", 0))
    return listener


def deaf_socket(port: int) -> socket.socket:
    """A connection whose other end can send little before somebody reads here."""
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    return deaf
