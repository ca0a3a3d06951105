"""How busy the pipeline's stages were: measured idle time beside the formula of GPipe (Huang et al. 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rayline.workers.pipeline import RankStats


@dataclass(frozen=True, slots=True)
class StageIdle:
    """One batch size on S stages, M plans (micro-batches) long.

    bubble: (S - 1) / (M + S - 1), the idle share that filling and draining alone would cost.
    idle: measured share of the time each stage did not compute, stage 0 first; its least busy rank counts.
    """

    batch: int
    stages: int
    plans: int
    bubble: float
    idle: tuple[float, ...]


def stage_idle(batch: int, ranks: Sequence[RankStats], plans: int) -> StageIdle:
    """From what the ranks tell of a run of `plans` plans (at least one)."""
    stages = 1 + max(rank.stage for rank in ranks)
    idle = tuple(
        max(1.0 - rank.busy_s / rank.wall_s for rank in ranks if rank.stage == stage) for stage in range(stages)
    )
    return StageIdle(batch, stages, plans, (stages - 1) / (plans + stages - 1), idle)


def together(runs: Sequence[Sequence[RankStats]]) -> tuple[RankStats, ...]:
    """The times of several runs added up, rank by rank; what a rank holds is as it was in the last run."""
    return tuple(
        replace(of_rank[-1], busy_s=sum(one.busy_s for one in of_rank), wall_s=sum(one.wall_s for one in of_rank))
        for of_rank in zip(*runs, strict=True)
    )
