"""A Ray cluster of our own on this machine, made to be broken: each node is a `ray start --block` of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from rayline.deploy.chaos.network import Network
from rayline.protos.errors import Unavailable
from rayline.router.ports import free_port

OBJECT_STORE_BYTES = 80_000_000  # tokens never pass through it
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
TRIES = 4
STARTED = "block forever until terminated"


@dataclass(slots=True)
class Node:
    """A Ray node: its processes are children of one that does nothing but wait for them."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes]
    tries: int = 1

    @classmethod
    def begun(cls, command: list[str], log: Path) -> Self:
        return cls(command, log, _begun(command, log))

    def begin_again(self) -> None:
        """Ray gives a node up that has not registered after 30 s, which on a crowded machine it may not have."""
        self.process, self.tries = _begun(self.command, self.log), self.tries + 1

    @property
    def is_whole(self) -> bool:
        return self.process.poll() is None

    @property
    def has_raylet(self) -> bool:
        """Without one it is lost to its cluster, though its other processes still take their time to end."""
        return any(process.name() == "raylet" and process.is_running() for process in self.family())

    def family(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@dataclass(slots=True)
class Nodes:
    """The head, and nodes that come and go. With a network each of them has a namespace of its own."""

    head_cpus: int
    node_cpus: int
    network: Network | None = None
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="rl-")))
    head: Node | None = None
    others: list[Node] = field(default_factory=list)
    ray_address: str = ""

    def start(self, count: int) -> None:
        """The head and `count` other nodes. Raises Unavailable when one does not start."""
        port = free_port("127.0.0.1")
        place = ["--node-ip-address", self.network.head] if self.network else []
        words = [
            *("--head", "--port", str(port), *place, "--num-cpus", str(self.head_cpus)),
            *("--ray-client-server-port", str(free_port("127.0.0.1")), "--include-dashboard", "false"),
        ]
        self.head = self._start(words, "head")
        self._wait([self.head])
        self.ray_address = (self.folder / "ray_current_cluster").read_text().strip()
        self.others = [self._other(number) for number in range(count)]
        self._wait(self.others)

    def repair(self) -> None:
        """A new node for each one that ended, as a cluster's operator would bring."""
        ended = [node for node in self.others if not node.has_raylet]
        for node in ended:
            _end(node)
            self.others.remove(node)
        fresh = [self._other(int(time.monotonic() * 1e3)) for _ in ended]
        self.others += fresh
        self._wait(fresh)

    def close(self) -> None:
        """End everything, stopped processes too."""
        for node in [*self.others, *([self.head] if self.head else [])]:
            _end(node)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _other(self, number: int) -> Node:
        address = self.network.add() if self.network else ""
        place = ["--node-ip-address", address] if address else []
        words = ["--address", self.ray_address, *place, "--num-cpus", str(self.node_cpus)]
        return self._start(words, f"node-{number}", self.network.inside(address) if self.network else ())

    def _start(self, words: list[str], name: str, inside: Sequence[str] = ()) -> Node:
        command = [
            *(*inside, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words),
            *("--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats"),
            *("--include-log-monitor", "false"),
            *(["--temp-dir", str(self.folder)] if "--head" in words else []),
        ]
        return Node.begun(command, self.folder / f"{name}.log")

    def _wait(self, nodes: list[Node]) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while waited := [node for node in nodes if STARTED not in node.log.read_text()]:
            for node in waited:
                if time.monotonic() > end or (not node.is_whole and node.tries == TRIES):
                    raise Unavailable(f"a Ray node did not start: {node.log.read_text()[-2000:]}")
                if not node.is_whole:
                    node.begin_again()
            time.sleep(POLL_S)


def _begun(command: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ), start_new_session=True
        )


def _end(node: Node) -> None:
    """End a node's processes, all by force that do not obey."""
    family = node.family()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
    if node.process.poll() is None:
        node.process.terminate()
    try:
        node.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        node.process.kill()
    _, left = psutil.wait_procs(family, timeout=1.0)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
