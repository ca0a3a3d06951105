"""Machines of their own on one machine: a network namespace each, joined by a bridge, so that a wire can be cut.

this namespace:   bridge 10.213.X.1      the head
                    |          |
                  veth        veth       `cut` takes one of them down
                    |          |
others:      10.213.X.2   10.213.X.3     a Ray node each
"""

import os
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field

from rayline.protos.errors import Unavailable

NETS = 250
PREFIX_BITS = 24


def refusal() -> str | None:
    """Why this process can make no namespaces; None when it can."""
    if os.geteuid() != 0:
        return "cutting the network takes root"
    if shutil.which("ip") is None:
        return "cutting the network takes the command ip (iproute2)"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        return "this machine lets nobody make network namespaces"
    return None


@dataclass(slots=True)
class Network:
    """A bridge and the namespaces behind it. `close` takes all of it away."""

    number: int = field(default_factory=lambda: os.getpid() % NETS)
    namespaces: dict[str, str] = field(default_factory=dict)  # by address
    made: int = 0

    @property
    def bridge(self) -> str:
        return f"rlbr{self.number}"

    @property
    def head(self) -> str:
        """The address of this side."""
        return self._address(1)

    def open(self) -> None:
        """Raises Unavailable when the machine does not let us."""
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("addr", "add", f"{self.head}/{PREFIX_BITS}", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")

    def add(self) -> str:
        """A further namespace; returns its address."""
        self.made += 1
        address, name = self._address(1 + self.made), f"rl{self.number}-{self.made}"
        self.namespaces[address] = name
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", self.bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/{PREFIX_BITS}", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        return address

    def inside(self, address: str) -> list[str]:
        """How to start a command in a namespace: what to put before it."""
        return ["ip", "netns", "exec", self.namespaces[address]]

    def cut(self, address: str) -> None:
        """Nothing passes any more, and nobody is told: sockets stay open and silent."""
        _ip("link", "set", self.namespaces[address], "down")

    def join(self, address: str) -> None:
        """Undo `cut`."""
        _ip("link", "set", self.namespaces[address], "up")

    def close(self) -> None:
        for name in self.namespaces.values():
            with suppress(Unavailable):
                _ip("netns", "del", name)
        with suppress(Unavailable):
            _ip("link", "del", self.bridge)

    def _address(self, host: int) -> str:
        return f"10.213.{self.number}.{host}"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode != 0:
        raise Unavailable(f"ip {' '.join(words)}: {done.stderr.strip()}")
