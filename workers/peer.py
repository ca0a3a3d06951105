"""The process at the other end of a Unix socket, known without asking it: to end it, and to see whether it works."""

import os
import signal
import socket
import struct
import sys
from typing import Self

import psutil

from rayline.workers.thread_times import ThreadTimes, thread_times

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
        if any(time.is_runnable for time in self.threads().values()):
            return "running"
        try:
            return psutil.Process(self.pid).status()
        except psutil.Error:
            return "ended"

    def threads(self) -> ThreadTimes:
        """What its threads have asked of the cores so far; empty once it has ended."""
        return thread_times(self.pid)

    def close(self) -> None:
        """Let go of it; `kill` does nothing from now on."""
        pidfd, self._pidfd = self._pidfd, -1
        os.close(pidfd)
