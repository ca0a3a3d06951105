"""A running `rayline serve`, as its users start it: the real command in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 60.0


@dataclass
class Server:
    """One `rayline serve` and what it printed until it was ready."""

    process: subprocess.Popen[str]
    banner: str
    ready_s: float

    @property
    def grpc_address(self) -> str:
        return _found(r"gRPC\s+(\S+)", self.banner)

    @property
    def grpc_addresses(self) -> list[str]:
        """Of all routers."""
        return _found(r"gRPC\s+(.*?)\n  HTTP", self.banner).replace("   (rayline.v1.InferenceService)", "").split()

    @property
    def http_url(self) -> str:
        return _found(r"HTTP\s+(\S+)", self.banner)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def stop(self) -> int:
        """Ctrl-C, then wait for the end."""
        if self.process.poll() is None:
            self.interrupt()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def environment() -> dict[str, str]:
    """The tests' own, with a path to the package where it is not installed."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests/typing"), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "rayline.deploy.cli", *args]


def answer_of(*args: str) -> dict[str, Any]:
    """What a command prints with `--json`."""
    done = subprocess.run(command(*args, "--json"), capture_output=True, text=True, env=environment(), timeout=180)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def start_server(*args: str) -> Server:
    """`rayline serve` with `args`, on ports of the system's choice; returns when it is ready."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--serve-port", "0"]
    began = time.monotonic()
    process = subprocess.Popen(
        command("serve", *ports, *args),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    limit = threading.Timer(READY_TIMEOUT_S, _end, (process,))
    limit.start()
    try:
        for line in process.stdout:
            lines.append(line)
            if "Ctrl-C stops" in line:
                return Server(process, "".join(lines), time.monotonic() - began)
    finally:
        limit.cancel()
    raise AssertionError(f"ended with {process.wait()} after {time.monotonic() - began:.0f} s: {''.join(lines)}")


def _end(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does, so that it ends its own processes too; by force when that does not help."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.DOTALL)
    assert match is not None, text
    return match.group(1)
