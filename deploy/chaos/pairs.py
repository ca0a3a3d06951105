"""What can be broken, and how."""

from dataclasses import dataclass
from enum import StrEnum


class Target(StrEnum):
    """A kind of process."""

    RANK = "rank"
    LEADER = "leader"
    ROUTER = "router"
    RAYLET = "raylet"
    CONTROLLER = "controller"


class Fault(StrEnum):
    """What is done to it."""

    KILL = "kill"  # SIGKILL
    STOP = "stop"  # SIGSTOP
    EXCEPTION = "exception"  # one that nobody expects, in the thread that does the work
    CUT = "cut"  # nothing reaches its node any more, nor leaves it


@dataclass(frozen=True, slots=True)
class Pair:
    """One kind of process, broken in one way."""

    target: Target
    fault: Fault

    @property
    def is_lasting(self) -> bool:
        """Whether the process is gone for good. Nobody ends a stopped raylet or controller, or what is cut off for a
        while: they go on."""
        frozen = self.fault is Fault.STOP and self.target in (Target.RAYLET, Target.CONTROLLER)
        return self.fault is not Fault.CUT and not frozen

    @property
    def takes_node(self) -> bool:
        """Whether all that is on the node is broken."""
        return self.target is Target.RAYLET or self.fault is Fault.CUT

    @property
    def pointless(self) -> str | None:
        """Why it means nothing; None where it means something."""
        if self.fault is Fault.EXCEPTION and self.target not in (Target.RANK, Target.LEADER):
            return f"a {self.target} has no thread that an exception would end"
        return None


def pairs(targets: tuple[str, ...], faults: tuple[str, ...]) -> tuple[Pair, ...]:
    """All that are asked for; () asks for every one."""
    return tuple(Pair(Target(target), Fault(fault)) for target in targets or Target for fault in faults or Fault)
