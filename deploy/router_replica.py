"""The router as a Ray Serve replica, with our own gRPC and HTTP servers inside."""

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.util import get_node_ip_address

from rayline.cluster.config import ModelSection, SystemConfig
from rayline.deploy.actors import ask_each, by_grpc, controller_answers, kill_actor
from rayline.deploy.operations import OperatedModel, RayOperations
from rayline.deploy.router_watch import RouterWatch
from rayline.protos.errors import PortInUse
from rayline.protos.events import EngineEvent
from rayline.protos.group import GroupInfo, GroupLoad
from rayline.protos.journal import JournalAnswer, JournalCall
from rayline.protos.types import EngineRequest
from rayline.router.breaker import Trust
from rayline.router.directory import Directory, GroupAddress, Listing
from rayline.router.docket import BlameLimits, Docket
from rayline.router.doors import Doors
from rayline.router.group import Group
from rayline.router.grpc.api import build_grpc_server
from rayline.router.http.api import build_http_app
from rayline.router.http.server import http_server
from rayline.router.link import GroupLink
from rayline.router.output_form import chat_formats
from rayline.router.ports import listening_socket
from rayline.router.service import ServedModel, Service
from rayline.router.tokenizer import Tokenizer
from rayline.workers.loop_watch import LoopWatch

log = logging.getLogger(__name__)

DESCRIBE_TIMEOUT_S = 2.0
PING_TIMEOUT_S = 1.5
READY_POLL_S = 0.05
PORTS_TIMEOUT_S = 30.0  # a frozen router holds its ports until Serve has it killed
STOP_GRACE_S = 1.0


@dataclass(frozen=True, slots=True)
class RoutedModel:
    """One model a router serves: its name, its section, its tokenizer's directory, the deployment of its groups."""

    name: str
    section: ModelSection
    path: Path
    groups: Any  # a DeploymentHandle; Serve replaces the bound deployment by it


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
    def trust(self) -> Trust:
        return self._link.trust

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

    async def journal(self, call: JournalCall) -> JournalAnswer:
        return await self._link.journal(call)

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
        models = [replace(model, groups=by_grpc(model.groups)) for model in models]
        limits = BlameLimits(config.limits.poison_losses, config.limits.quarantine_s)
        dockets = {model.name: Docket(limits) for model in models}
        unread = config.limits.max_unread_tokens
        self._directories = {model.name: _directory(model, secret, dockets[model.name], unread) for model in models}
        served = {}
        for model in models:
            tokenizer = await asyncio.to_thread(Tokenizer.load, model.path)
            groups = self._directories[model.name].groups
            chat = chat_formats(tokenizer, model.section.tool_parser, model.section.reasoning_parser)
            log.info("%s writes tool calls as %s, thoughts as %s", model.name, *chat.names)
            served[model.name] = ServedModel(model.name, tokenizer, groups, int(time.time()), chat)
        patience_s = config.router.resume_wait_s
        self._service = Service(
            served, time.monotonic, lambda: secrets.randbits(63), patience_s, dockets, uuid.uuid4().hex[:12]
        )
        self._http_app = build_http_app(self._service, config)
        operated = {m.name: OperatedModel(self._directories[m.name], m.groups) for m in models}
        self._operations = RayOperations(operated)
        await self._open_doors()
        self._loop_watch = LoopWatch(_end)
        self._loop_watch.start()
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
        """All routers end: refuse new requests, wait for running streams. False when some were still running."""
        return await self._service.drain(timeout_s, is_last=True)

    async def __del__(self) -> None:
        """Serve ends this router, others go on: clients that can are sent to them."""
        if not self._service.draining:
            await self._service.drain(self._config.router.drain_timeout_s)
        self._loop_watch.close()
        await self._neighbours.close()
        await self._grpc.stop(STOP_GRACE_S)
        self._http.should_exit = True
        await self._http_task
        for directory in self._directories.values():
            await directory.close()
        self._service.close()

    async def _open_doors(self) -> None:
        """On the first free pair of ports: routers that share a node come one behind the other."""
        until_s = time.monotonic() + PORTS_TIMEOUT_S
        for grpc_port, http_port in itertools.cycle(self._config.router.ports):
            try:
                return await self._open(grpc_port, http_port)
            except PortInUse:
                if time.monotonic() > until_s:
                    raise
            await asyncio.sleep(READY_POLL_S)  # the router that this one replaces may not have ended yet

    async def _open(self, grpc_port: int, http_port: int) -> None:
        """Both doors, or PortInUse and neither."""
        host = self._config.router.host
        with contextlib.ExitStack() as undo:
            socket = undo.enter_context(listening_socket(host, http_port, "http_port"))
            config = replace(self._config, router=replace(self._config.router, grpc_port=grpc_port))
            self._grpc = build_grpc_server(self._service, config, lambda: self._neighbours.doors, self._operations)
            undo.pop_all()
        self._doors = Doors(_reached_by(host), self._grpc.port, socket.getsockname()[1])
        routers = serve.get_deployment_handle(serve.get_replica_context().deployment)
        self._neighbours = RouterWatch(lambda: _doors_of(routers), self._doors)
        self._neighbours.start()
        await self._grpc.start()
        self._http = http_server(self._http_app, self._config.limits.slow_reader_s)
        self._http_task = asyncio.create_task(self._http.serve([socket]))
        while not self._http.started:
            await asyncio.sleep(READY_POLL_S)


def _end() -> None:
    """The event loop stands still: clients go on elsewhere, Serve starts another router."""
    log.error("the event loop of this router stands still: ending it")
    os._exit(1)


def _reached_by(host: str) -> str:
    """The address that a door on `host` has for others."""
    return str(get_node_ip_address()) if host in ("0.0.0.0", "::", "") else host


async def _doors_of(routers: DeploymentHandle[Any]) -> Sequence[Doors]:
    """Of all routers there are. Raises when one does not answer."""
    return cast(list[Doors], await routers.broadcast("doors").results_async(timeout_s=DESCRIBE_TIMEOUT_S))


def _directory(model: RoutedModel, secret: str, docket: Docket, most_unread_tokens: int) -> Directory:
    handle: DeploymentHandle[Any] = model.groups

    async def describe() -> Listing:
        try:
            found = await ask_each(handle, "describe", DESCRIBE_TIMEOUT_S)
        except (DeploymentUnavailableError, TimeoutError) as error:  # none yet
            log.debug("looking for groups of %s: %s", model.name, error)
            return Listing()
        groups = tuple(address for address in found if isinstance(address, GroupAddress))
        return Listing(groups, is_whole=len(groups) == len(found))

    def counted(link: GroupLink) -> Group:
        return CountedGroup(link, handle)

    async def fence(address: GroupAddress) -> None:
        """Have Ray end a leader that answers neither Serve nor a new connection of ours, while Ray itself answers.

        Where it does not, it is this router that is cut off. It must not even try: Ray would carry the order out once
        the network is whole again, and end a group that serves. So it is asked before and afterwards.
        """

        async def is_reached() -> bool:
            return await asyncio.to_thread(controller_answers, PING_TIMEOUT_S)

        if not await is_reached() or await _lives(handle, address, secret) or not await is_reached():
            return
        log.warning("group %s answers on no way: ending its leader", address.group_id)
        await asyncio.to_thread(kill_actor, address.process)

    return Directory(describe, secret, counted, fence, docket, most_unread_tokens)


async def _lives(handle: DeploymentHandle[Any], address: GroupAddress, secret: str) -> bool:
    """Whether a leader answers on any way. A connection that was cut off is slow to come back: a new one is not."""

    async def is_called() -> bool:
        return bool(await asyncio.wait_for(handle.follow.remote("", group_id=address.group_id), PING_TIMEOUT_S))

    async def is_welcome() -> bool:
        await (await GroupLink.open(address.address, secret, timeout_s=PING_TIMEOUT_S)).close()
        return True

    return True in await asyncio.gather(is_called(), is_welcome(), return_exceptions=True)
