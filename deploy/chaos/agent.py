"""What acts on a node: an actor on each, which sends signals, looks at processes and keeps cores busy."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CALL_TIMEOUT_S = 5.0
RAYS_OWN = ("gcs_server",)
T = TypeVar("T")
BUSY = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a process holds."""

    rss_bytes: int
    fds: int


class Agent:
    """Lives on one node. The process that started it is the node's raylet."""

    def __init__(self) -> None:
        self._raylet = os.getppid()

    def raylet(self) -> int:
        """The process id of this node's raylet. Raises RuntimeError once that has ended: so will this actor soon."""
        if not self.lives(self._raylet):
            raise RuntimeError(f"the raylet of this node, process {self._raylet}, has ended")
        return self._raylet

    def machine(self) -> str:
        """The same for all nodes of one machine."""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def beside(self) -> dict[str, int]:
        """Process ids of what Ray has beside the raylet, by name: gcs_server on the head."""
        raylet = psutil.Process(self._raylet)
        beside = raylet.parent()
        family = beside.children() if beside is not None and beside.pid > 1 else [raylet]
        return {process.name(): process.pid for process in family if process.name() in RAYS_OWN}

    def signal(self, pid: int, number: int) -> None:
        """An ended process is no error."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def freeze(self, pid: int, seconds: float) -> None:
        """Stop a process, and have it go on after `seconds` whatever becomes of this actor."""
        self.signal(pid, signal.SIGSTOP)
        command = ["sh", "-c", f"sleep {seconds}; kill -CONT {pid} 2>/dev/null"]
        subprocess.Popen(command, start_new_session=True)

    def lives(self, pid: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return False

    def vitals(self, pids: Sequence[int]) -> dict[int, Vitals]:
        """Of those that live."""
        found = {}
        for pid in pids:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                found[pid] = Vitals(process.memory_info().rss, process.num_fds())
        return found

    def leftovers(self) -> list[str]:
        """Shared memory with a name: groups that have started leave none."""
        shared = Path("/dev/shm")
        return sorted(path.name for path in shared.glob("rayline-*") if not path.name.startswith("rayline-core-"))

    def keep_busy(self, per_core: int, seconds: float) -> int:
        """Start so many busy loops for each core; returns how many."""
        loops = per_core * len(os.sched_getaffinity(0))
        for _ in range(loops):
            subprocess.Popen([sys.executable, "-c", BUSY, str(seconds)], start_new_session=True)
        return loops


class Agents:
    """One agent a node, made when it is first needed and again where it ended with its node."""

    def __init__(self) -> None:
        self._actors: dict[str, Any] = {}

    def ask(self, node_id: str, call: Callable[[Any], "ray.ObjectRef[T]"]) -> T:
        """What a node's agent answers. Raises ray.exceptions.RayError when none answers in time."""
        if node_id not in self._actors:
            place = NodeAffinitySchedulingStrategy(node_id, soft=False)
            self._actors[node_id] = ray.remote(Agent).options(num_cpus=0, scheduling_strategy=place).remote()
        try:
            return ray.get(call(self._actors[node_id]), timeout=CALL_TIMEOUT_S)
        except ray.exceptions.RayActorError:
            del self._actors[node_id]  # the next call makes another one
            raise
