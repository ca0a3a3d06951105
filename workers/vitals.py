"""What the processes of a group's ranks do while the leader waits for them: evidence beside the clock."""

from collections.abc import Mapping

from rayline.workers.peer import PeerProcess
from rayline.workers.thread_times import ThreadTimes, wanted_s

JUDGE_S = 0.5
WORKING_SHARE = 0.2  # of a core, used or waited for; a rank that waits for another one of its stage asks for less


class Vitals:
    """The ranks' processes; None stands for one that cannot be seen from here. `stages`: of each rank."""

    def __init__(self, processes: Mapping[int, PeerProcess | None], stages: Mapping[int, int]):
        self._processes = dict(processes)
        self._stages = dict(stages)
        self._threads: dict[int, ThreadTimes] = {}
        self._wanted_s: dict[int, float] = {}  # since the last verdict
        self._looked_s = self._judged_s = 0.0
        self._works = False

    def begin(self, now_s: float) -> None:
        """Start watching."""
        self._threads, self._wanted_s = self._look(), {}
        self._looked_s = self._judged_s = now_s
        self._works = False

    def working(self, now_s: float) -> bool:
        """Whether in the last JUDGE_S seconds that are over all ranks of some stage have computed, or would have, had
        they got a core. To be asked often: a wait for a core that begins between two looks is not seen before the next.

        One rank that does not is enough to hold up its stage, and the others of that stage wait actively; a stage
        whose ranks all compute gets on.
        """
        threads = self._look()
        for rank, now in threads.items():
            more_s = wanted_s(self._threads.get(rank, {}), now, now_s - self._looked_s)
            self._wanted_s[rank] = self._wanted_s.get(rank, 0.0) + more_s
        self._threads, self._looked_s = threads, now_s
        if (judged_s := now_s - self._judged_s) >= JUDGE_S:
            least_s = WORKING_SHARE * judged_s
            idle = {stage for rank, stage in self._stages.items() if self._wanted_s.get(rank, 0.0) < least_s}
            self._works = bool(set(self._stages.values()) - idle)
            self._wanted_s, self._judged_s = {}, now_s
        return self._works

    def summary(self) -> str:
        """One clause for each rank, for people."""
        return ", ".join(
            f"rank {rank} is out of sight" if process is None else f"rank {rank} is {process.state()}"
            for rank, process in sorted(self._processes.items())
        )

    def kill(self) -> None:
        """End those that can be seen."""
        for process in self._processes.values():
            if process is not None:
                process.kill()

    def close(self) -> None:
        for process in self._processes.values():
            if process is not None:
                process.close()
        self._processes = dict.fromkeys(self._processes)

    def _look(self) -> dict[int, ThreadTimes]:
        return {rank: process.threads() for rank, process in self._processes.items() if process is not None}
