"""The leader's view of a group's ranks: plans go in, results come out in the same order."""

from dataclasses import dataclass
from typing import Protocol

from rayline.protos.plan import Plan, StepResult


@dataclass(frozen=True, slots=True)
class RankStats:
    """One rank's share of the work. busy_s: its device computed; wall_s: since the statistics were last reset.

    step_bytes: of the weights, those every step reads: all but a table of which it takes single rows.
    sample_s: of busy_s, from logits to tokens, in the `sample_steps` steps that had any to choose.
    gap_s: the device had nothing to do between the first and the last of the `steps` steps.
    """

    rank: int
    stage: int
    busy_s: float
    wall_s: float
    weight_bytes: int
    cache_bytes: int
    resident_bytes: int
    read_bytes: int
    step_bytes: int
    sample_s: float = 0.0
    sample_steps: int = 0
    gap_s: float = 0.0
    steps: int = 0


class Pipeline(Protocol):
    """What the engine needs of its ranks."""

    @property
    def window(self) -> int:
        """How many plans should be in flight at once."""
        ...

    @property
    def in_flight(self) -> int: ...

    def submit(self, plan: Plan) -> None:
        """Hand a plan to all ranks. Never waits for its result."""
        ...

    def next_result(self) -> StepResult:
        """Wait for the oldest plan's result. Raises Unavailable when a rank is gone or makes no progress."""
        ...

    @property
    def limit_s(self) -> float:
        """What the next call may take: after more, whoever made it is stuck. For other threads to watch."""
        ...

    def check(self) -> None:
        """Raise Unavailable when a rank is gone, without waiting for anything."""
        ...

    def rank_stats(self) -> tuple[RankStats, ...]:
        """Ask every rank; only between steps. Resets their clocks."""
        ...

    def fence(self) -> None:
        """End all processes of the ranks now, by force: nothing they compute reaches anybody. From any thread."""
        ...

    def close(self) -> None:
        """End all ranks. No process is left behind."""
        ...
