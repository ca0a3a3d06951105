"""The router as a Ray Serve replica: one a node, with our own gRPC and HTTP servers inside."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from rayline.cluster.config import ModelSection, SystemConfig
from rayline.deploy.actors import kill_actor
from rayline.deploy.operations import OperatedModel, RayOperations
from rayline.protos.events import EngineEvent
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.types import EngineRequest
from rayline.router.directory import Directory, GroupAddress, Listing
from rayline.router.group import Group
from rayline.router.grpc.api import build_grpc_server
from rayline.router.http.api import build_http_app
from rayline.router.link import GroupLink
from rayline.router.output_form import chat_formats
from rayline.router.ports import probe_port
from rayline.router.service import ServedModel, Service
from rayline.router.tokenizer import Tokenizer

log = logging.getLogger(__name__)

DESCRIBE_TIMEOUT_S = 2.0
PING_TIMEOUT_S = 1.5
READY_POLL_S = 0.05
STOP_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """One model a router serves: its name, its section, its tokenizer's directory, the deployment of its groups."""

    name: str
    section: ModelSection
    path: Path
    groups: Any  # a DeploymentHandle; Serve replaces the bound deployment by it


@dataclass(frozen=True, slots=True)
class Doors:
    """Where clients reach this router."""

    grpc_port: int
    http_port: int


class CountedGroup:
    """A linked group whose streams Serve knows of: beside each goes one handle call that ends with it."""

    def __init__(self, link: GroupLink, handle: DeploymentHandle[Any]):
        self._link = link
        self._handle = handle
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def info(self) -> GroupInfo:
        return self._link.info

    @property
    def load(self) -> GroupLoad:
        return self._link.load

    @property
    def alive(self) -> bool:
        return self._link.alive

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineEvent, None]:
        events = self._link.generate(request)
        call = asyncio.create_task(self._count(request.request_id))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        async with contextlib.aclosing(events):
            async for event in events:
                yield event

    def abort(self, request_id: str) -> None:
        self._link.abort(request_id)

    async def _count(self, request_id: str) -> None:
        """The stream does not depend on this call: a loss is told by the link."""
        with contextlib.suppress(Exception):
            await self._handle.follow.remote(request_id, group_id=self.info.group_id)


class RouterReplica:
    """Wrapped by `serve.ingress()` and `serve.deployment` in app.py."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: SystemConfig, models: Sequence[RoutedModel], secret: str
    ) -> None:
        logging.getLogger("rayline").setLevel(config.observability.log_level.upper())
        self._config = config
        self._directories = {model.name: _directory(model, secret) for model in models}
        served = {}
        for model in models:
            tokenizer = await asyncio.to_thread(Tokenizer.load, model.path)
            groups = self._directories[model.name].groups
            chat = chat_formats(tokenizer, model.section.tool_parser, model.section.reasoning_parser)
            log.info("%s writes tool calls as %s, thoughts as %s", model.name, *chat.names)
            served[model.name] = ServedModel(model.name, tokenizer, groups, int(time.time()), chat)
        self._service = Service(served, time.monotonic, lambda: secrets.randbits(63), config.router.resume_wait_s)
        self._http_app = build_http_app(self._service, config)
        operated = {m.name: OperatedModel(self._directories[m.name], m.groups) for m in models}
        await self._open_doors(RayOperations(operated))
        for directory in self._directories.values():
            directory.start()
        self._service.start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The same HTTP app behind Ray Serve's own proxy."""
        return self._http_app

    def doors(self) -> Doors:
        return self._doors

    async def wait_ready(self, groups: int) -> None:
        """Return once every model has `groups` linked groups."""
        while any(len(directory.groups) < groups for directory in self._directories.values()):
            await asyncio.sleep(READY_POLL_S)

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, wait for running streams. False when some were still running."""
        return await self._service.drain(timeout_s)

    async def __del__(self) -> None:
        await self._grpc.stop(STOP_GRACE_S)
        self._http.should_exit = True
        await self._http_task
        for directory in self._directories.values():
            await directory.close()
        self._service.close()

    async def _open_doors(self, operations: RayOperations) -> None:
        router = self._config.router
        self._grpc = build_grpc_server(self._service, self._config, operations)
        await self._grpc.start()
        if router.http_port:
            probe_port(router.host, router.http_port, "http_port")
        self._http = uvicorn.Server(
            uvicorn.Config(
                self._http_app, router.host, router.http_port, log_level="warning", access_log=False, lifespan="off"
            )
        )
        self._http_task = asyncio.create_task(self._http.serve())
        while not self._http.started:
            await asyncio.sleep(READY_POLL_S)
        self._doors = Doors(self._grpc.port, self._http.servers[0].sockets[0].getsockname()[1])


def _directory(model: RoutedModel, secret: str) -> Directory:
    handle: DeploymentHandle[Any] = model.groups

    async def describe() -> Listing:
        try:
            call = handle.broadcast("describe")
            found = await call.results_async(timeout_s=DESCRIBE_TIMEOUT_S, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError) as error:  # none yet, or one that hangs
            log.debug("looking for groups of %s: %s", model.name, error)
            return Listing()
        groups = tuple(address for address in found if isinstance(address, GroupAddress))
        return Listing(groups, is_whole=len(groups) == len(found))

    def counted(link: GroupLink) -> Group:
        return CountedGroup(link, handle)

    async def fence(address: GroupAddress) -> None:
        """Two ways lead to a leader, our link and Ray's calls: only one that answers on neither is ended."""
        try:
            await asyncio.wait_for(_answer(handle, address.group_id), PING_TIMEOUT_S)
        except Exception:
            log.warning("group %s answers on no way: ending its leader", address.group_id)
            await asyncio.to_thread(kill_actor, address.process)

    return Directory(describe, secret, counted, fence)


async def _answer(handle: DeploymentHandle[Any], group_id: str) -> None:
    await handle.follow.remote("", group_id=group_id)
