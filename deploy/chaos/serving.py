"""`rayline serve` on a cluster of ours, as its users start it: in a process of its own."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rayline.cluster.config import ParallelSection
from rayline.deploy.chaos.nodes import Nodes
from rayline.protos.errors import Unavailable

READY = "Ctrl-C stops"
START_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.1
ROUTERS = 2  # where all are on one node; otherwise one a node
TRIES = 50


@contextmanager
def serving(model: str, parallel: ParallelSection, nodes: Nodes) -> Iterator[tuple[str, ...]]:
    """The gRPC addresses of its routers. Raises Unavailable when it does not start."""
    log = nodes.folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            _command(model, parallel, nodes),
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "RAY_ADDRESS": nodes.ray_address, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_TIMEOUT_S
        while READY not in (text := log.read_text()):
            if process.poll() is not None or time.monotonic() > end:
                raise Unavailable(f"rayline serve did not start: {text[-2000:]}")
            time.sleep(POLL_S)
        yield grpc_addresses(text)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def grpc_addresses(banner: str) -> tuple[str, ...]:
    """All doors that the banner names."""
    block = re.search(r"^ +gRPC(.*?)^ +HTTP", banner, re.MULTILINE | re.DOTALL)
    return tuple(re.findall(r"\S+:\d+", block[1])) if block else ()


def _command(model: str, parallel: ParallelSection, nodes: Nodes) -> list[str]:
    base = free_ports(2 * ROUTERS + 1)
    ports = {"grpc-port": base, "http-port": base + ROUTERS, "serve-port": base + 2 * ROUTERS}
    sizes = {"tp": parallel.tp, "pp": parallel.pp, "groups": parallel.groups}
    replicas = 0 if nodes.others else ROUTERS
    host = "0.0.0.0" if nodes.network else "127.0.0.1"
    flags = {**ports, **sizes, "router-replicas": replicas, "host": host}
    words = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-m", "rayline.deploy.cli", "serve", model, *words]


def free_ports(count: int) -> int:
    """The first of so many ports behind one another that nobody holds. They stay the same when a router is replaced."""
    for _ in range(TRIES):
        with ExitStack() as held:
            first = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for number in range(1, count):
                    held.enter_context(socket.create_server(("127.0.0.1", first + number)))
                return int(first)
            except (OSError, OverflowError):
                continue
    raise Unavailable(f"no {count} ports behind one another are free")
