"""The process at the other end of a Unix socket, known without asking it: to end it, and to see whether it works."""

import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

import psutil

T = TypeVar("T")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class PeerProcess:
    """A process of this machine, held by a pidfd: what `kill` ends is never another one with the same number."""

    def __init__(self, pid: int, pidfd: int):
        self.pid = pid
        self._pidfd = pidfd

    @classmethod
    def of(cls, fd: int) -> Self | None:
        """The peer of socket `fd`; None when it is on another machine, this process, or not to be known."""
        if sys.platform != "linux":
            return None
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.family != socket.AF_UNIX:
                return None
            pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if pid in (0, os.getpid()):
            return None
        try:
            return cls(pid, os.pidfd_open(pid))
        except OSError:
            return None

    def kill(self) -> None:
        """SIGKILL, which ends a stopped process too. Nothing happens when it has ended before."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except OSError:
            return

    def state(self) -> str:
        """In one word: running, which one thread is enough for, or sleeping, stopped, ended ..."""
        if self.is_runnable():
            return "running"
        try:
            return psutil.Process(self.pid).status()
        except psutil.Error:
            return "ended"

    def wanted_s(self) -> float:
        """CPU time that it has used, and time that it waited for a core: on a crowded machine that is most of it.

        Linux tells both of each thread, in nanoseconds, a wait as it ends. Where it does not, the time used alone.
        """
        threads = self._of_threads(_used_and_waited_ns)
        return sum(threads) * 1e-9 if threads else self._used_s()

    def is_runnable(self) -> bool:
        """Whether a thread of it computes, or waits for a core, right now."""
        return any(self._of_threads(_is_runnable))

    def _of_threads(self, read: Callable[[Path], T]) -> list[T]:
        """What `read` finds in the folder of each thread that lives."""
        found = []
        with suppress(OSError):
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                with suppress(OSError):  # it has ended meanwhile
                    found.append(read(task))
        return found

    def _used_s(self) -> float:
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return times.user + times.system

    def close(self) -> None:
        """Let go of it; `kill` does nothing from now on."""
        pidfd, self._pidfd = self._pidfd, -1
        os.close(pidfd)


def _used_and_waited_ns(task: Path) -> int:
    """Of one thread. See sched-stats in the kernel's documentation."""
    used, waited, _ = (task / "schedstat").read_text().split()
    return int(used) + int(waited)


def _is_runnable(task: Path) -> bool:
    """The state stands behind the name, which may contain anything, a closing parenthesis too."""
    return (task / "stat").read_text().rpartition(")")[2].split(maxsplit=1)[0] == "R"
