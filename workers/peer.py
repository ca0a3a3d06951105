"""The process at the other end of a Unix socket, known without asking it: to end it, and to see whether it works."""

import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Self

import psutil

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
        """In one word: running, sleeping, stopped, ended ..."""
        try:
            return psutil.Process(self.pid).status()
        except psutil.Error:
            return "ended"

    def wanted_s(self) -> float:
        """CPU time that it has used, and time that it waited for a core: on a crowded machine that is most of it.

        Linux tells both of each thread, in nanoseconds. Where it does not, the time used alone.
        """
        try:
            tasks = Path(f"/proc/{self.pid}/task").iterdir()
            return sum(map(_used_and_waited_ns, tasks)) * 1e-9
        except OSError:
            return self._used_s()

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
