"""A Ray cluster of our own on this machine, made to be broken: each node is a `ray start --block` of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rayline.deploy.chaos.network import Network
from rayline.protos.errors import Unavailable
from rayline.router.ports import free_port

OBJECT_STORE_BYTES = 80_000_000  # tokens never pass through it
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.1
STARTED = "block forever until terminated"


@dataclass(slots=True)
class Node:
    """A Ray node: its processes are children of one that does nothing but wait for them."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str

    @property
    def is_whole(self) -> bool:
        return self.process.poll() is None

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
        self.head = self._start(words, "head", self.network.head if self.network else "")
        self._wait([self.head])
        self.ray_address = (self.folder / "ray_current_cluster").read_text().strip()
        self.others = [self._other(number) for number in range(count)]
        self._wait(self.others)

    def repair(self) -> None:
        """A new node for each one that ended, as a cluster's operator would bring."""
        ended = [node for node in self.others if not node.is_whole]
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
        return self._start(words, f"node-{number}", address)

    def _start(self, words: list[str], name: str, address: str) -> Node:
        log = self.folder / f"{name}.log"
        inside = self.network.inside(address) if self.network and address in self.network.namespaces else []
        command = [
            *(*inside, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words),
            *("--object-store-memory", str(OBJECT_STORE_BYTES), "--disable-usage-stats"),
            *("--include-log-monitor", "false"),
            *(["--temp-dir", str(self.folder)] if "--head" in words else []),
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ), start_new_session=True
            )
        return Node(process, log, address)

    def _wait(self, nodes: list[Node]) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while waited := [node for node in nodes if STARTED not in node.log.read_text()]:
            if time.monotonic() > end or not waited[0].is_whole:
                raise Unavailable(f"a Ray node did not start: {waited[0].log.read_text()[-2000:]}")
            time.sleep(POLL_S)


def _end(node: Node) -> None:
    """End a node's processes, all by force that do not obey."""
    family = node.family()
    for process in family:
        process_ends = process.is_running()
        if process_ends:
            process.send_signal(signal.SIGCONT)
    if node.process.poll() is None:
        node.process.terminate()
    try:
        node.process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        node.process.kill()
    _, left = psutil.wait_procs(family, timeout=1.0)
    for process in left:
        process.kill()
