"""A Ray cluster of several nodes on this machine, to lose parts of.

    RayNodes (the test)  --a line each way-->  `python ray_nodes.py`  -->  head: GCS, raylet; workers: a raylet each

Ray's own cluster utilities run in a process of their own: they change signal handlers and block while they start
things, which would show as pauses of the clients in the test. What they started ends with it, and it with the test.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from server import environment

HEALTH_CHECKS = {  # a node that does not answer is given up after about 5 s
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
SETTINGS = HEALTH_CHECKS | {  # what docs/ray-failures.md advises for `ray start`
    "RAY_AUTH_MODE": "disabled",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    "RAY_kill_worker_timeout_milliseconds": "500",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
}
NODE: dict[str, Any] = {"object_store_memory": 80_000_000, "include_dashboard": False}
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


class Redis:
    """A Redis server of our own whose tables are on disk: they outlive its process."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._port = free_port()
        self.start()

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("redis-server") is not None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes"]
        self._process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        self._wait_until_it_answers()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait_until_it_answers(self) -> None:
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1.0) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):  # not while it still reads its tables
                    return
            time.sleep(0.05)
        raise AssertionError("redis-server does not answer")


class RayNodes:
    """The cluster. The head has no CPUs, so it runs Serve's controller and nothing of ours."""

    def __init__(self, workers: int, cpus: int, redis: Redis | None):
        arguments = [sys.executable, __file__, str(free_port()), str(cpus), redis.address if redis else ""]
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment() | SETTINGS
        )
        self.address = ""
        self.head, self.workers = 0, list[int]()
        self._read()
        for _ in range(workers):
            self.add_worker()

    def add_worker(self) -> int:
        """Returns the id of its raylet's process, as a node is named here."""
        self._do("add_worker")
        return self.workers[-1]

    def lose_worker(self, raylet: int) -> None:
        """SIGKILL of a node's raylet: what runs on the node ends with it."""
        self._do("lose_worker", raylet)

    def name(self, raylet: int) -> str:
        """A node's id in Ray."""
        return next(
            word.partition("=")[2] for word in psutil.Process(raylet).cmdline() if word.startswith("--node_id=")
        )

    def lose_gcs(self) -> None:
        self._do("lose_gcs")

    def restart_gcs(self) -> None:
        self._do("restart_gcs")

    def lose_head(self) -> None:
        """SIGKILL of the head's GCS and raylet; Serve's controller ends with them."""
        self._do("lose_head")

    def restart_head(self) -> None:
        """At the same address, with what Redis knows."""
        self._do("restart_head")

    def processes(self, title: str, raylet: int | None = None) -> list[psutil.Process]:
        """Those of all nodes, or of one, that Ray has named `title`..."""
        found = []
        for pid in [self.head, *self.workers] if raylet is None else [raylet]:
            with suppress(psutil.Error):
                for process in psutil.Process(pid).children(recursive=True):
                    with suppress(psutil.Error):
                        if title in " ".join(process.cmdline()):
                            found.append(process)
        return found

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is started meanwhile finds this cluster in its environment, as `rayline serve` does."""
        with patch.dict(os.environ, SETTINGS | {"RAY_ADDRESS": self.address}):
            yield

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60.0)
        finally:
            self._process.kill()

    def _do(self, verb: str, raylet: int = 0) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {raylet}\n")
        self._process.stdin.flush()
        self._read()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # Ray writes lines of its own
                state = json.loads(line)
                self.address, self.head, self.workers = state["address"], state["head"], state["workers"]
                return
        raise AssertionError(f"the cluster's process ended with {self._process.wait()}")


def free_port() -> int:
    with socket.create_server(("", 0)) as probe:
        return int(probe.getsockname()[1])


# ---- in the cluster's own process


class _Host:
    def __init__(self, port: int, cpus: int, redis: str):
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        self._head = NODE | {"num_cpus": 0, "gcs_server_port": port}
        self._worker = NODE | {"num_cpus": cpus}
        self._redis = {"RAY_REDIS_ADDRESS": redis} if redis else {}
        self.restart_head()
        self._address = self._cluster.address  # the next head's too

    def state(self) -> dict[str, Any]:
        head = self._cluster.head_node
        workers = {_raylet(node): node for node in self._cluster.worker_nodes}
        by_age = sorted(workers, key=lambda pid: psutil.Process(pid).create_time())
        return {"address": self._address, "head": _raylet(head) if head else 0, "workers": by_age}

    def restart_head(self) -> None:
        with patch.dict(os.environ, self._redis):  # only the GCS may know it
            self._cluster.add_node(**self._head, **_agent_ports())

    def lose_head(self) -> None:
        self._cluster.remove_node(self._cluster.head_node, allow_graceful=False)

    def restart_gcs(self) -> None:
        self._cluster.head_node.start_gcs_server()

    def lose_gcs(self) -> None:
        self._cluster.head_node.kill_gcs_server(check_alive=False)

    def add_worker(self) -> None:
        self._cluster.add_node(**self._worker, **_agent_ports())

    def lose_worker(self, raylet: int) -> None:
        node = next(node for node in self._cluster.worker_nodes if _raylet(node) == raylet)
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


def _agent_ports() -> dict[str, int]:
    """A raylet ends itself when its agents do not say within 15 s which ports they took: it is told them instead."""
    return {name: free_port() for name in AGENT_PORTS}


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _main(port: str, cpus: str, redis: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the test's
    host = _Host(int(port), int(cpus), redis)
    print(json.dumps(host.state()), flush=True)
    for line in sys.stdin:
        verb, raylet = line.split()
        if verb == "lose_worker":
            host.lose_worker(int(raylet))
        else:
            {
                "add_worker": host.add_worker,
                "lose_gcs": host.lose_gcs,
                "restart_gcs": host.restart_gcs,
                "lose_head": host.lose_head,
                "restart_head": host.restart_head,
            }[verb]()
        print(json.dumps(host.state()), flush=True)
    host.close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
