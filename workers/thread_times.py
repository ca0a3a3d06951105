"""What the threads of a process ask of the cores, as Linux tells others of it."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """One thread. wanted_ns: CPU time used, and time waited for a core up to the last time it got one.

    is_runnable: it computes, or waits for a core, right now.
    """

    wanted_ns: int
    is_runnable: bool

    @classmethod
    def read(cls, task: Path) -> Self:
        """Of /proc/PID/task/TID. Raises OSError when it has ended. A kernel without sched-stats tells no waits."""
        fields = (task / "stat").read_text().rpartition(")")[2].split()  # a name before them may contain anything
        try:
            used, waited, _ = (task / "schedstat").read_text().split()
            wanted_ns = int(used) + int(waited)
        except FileNotFoundError:
            wanted_ns = (int(fields[11]) + int(fields[12])) * TICK_NS
        return cls(wanted_ns, fields[0] == "R")


ThreadTimes = Mapping[int, ThreadTime]
"""Of all threads of a process, by their ids."""


def thread_times(pid: int) -> ThreadTimes:
    """Empty when the process has ended, or where this is not Linux."""
    times = {}
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                times[int(task.name)] = ThreadTime.read(task)
    return times


def wanted_s(before: ThreadTimes, now: ThreadTimes, elapsed_s: float) -> float:
    """Seconds of cores that a process has used or waited for between two looks, `elapsed_s` apart.

    A wait is counted when it ends. So a thread that was ready to run at both looks, and has no more to its name than
    at the first, has waited all the time: it would have had to run to do anything else.
    """
    seconds = 0.0
    for thread, time in now.items():
        last = before.get(thread, ThreadTime(0, False))
        if time == last and time.is_runnable:
            seconds += elapsed_s
        else:
            seconds += (time.wanted_ns - last.wanted_ns) * 1e-9
    return seconds
