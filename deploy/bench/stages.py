"""How busy the pipeline's stages were: measured idle time beside the formula of GPipe (Huang et al. 2019), what lay
between steps, and what sampling took of them."""

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
        replace(
            of_rank[-1],
            busy_s=sum(one.busy_s for one in of_rank),
            wall_s=sum(one.wall_s for one in of_rank),
            sample_s=sum(one.sample_s for one in of_rank),
            sample_steps=sum(one.sample_steps for one in of_rank),
            gap_s=sum(one.gap_s for one in of_rank),
            steps=sum(one.steps for one in of_rank),
        )
        for of_rank in zip(*runs, strict=True)
    )


@dataclass(frozen=True, slots=True)
class StepGap:
    """What a rank's device did not compute between the first and the last step of a run, prompts and decoding together.

    gap_ms: a step's, on the rank with the largest share. share: of the time from one step to the next.
    """

    batch: int
    gap_ms: float
    share: float


def step_gap(batch: int, ranks: Sequence[RankStats]) -> StepGap:
    """From what the ranks tell of a run."""
    share, gap_ms = max(
        (rank.gap_s / (rank.gap_s + rank.busy_s) if rank.busy_s else 0.0, 1e3 * rank.gap_s / max(1, rank.steps))
        for rank in ranks
    )
    return StepGap(batch, gap_ms, share)


@dataclass(frozen=True, slots=True)
class SamplingCost:
    """From logits to tokens at one batch size: a step's time on the slowest rank, and its share of a decode step."""

    batch: int
    step_ms: float
    share: float | None


def sampling_cost(batch: int, ranks: Sequence[RankStats], decode_step_ms: float | None) -> SamplingCost:
    """decode_step_ms: of the whole step; None where nothing was decoded."""
    step_ms = max(1e3 * rank.sample_s / max(1, rank.sample_steps) for rank in ranks)
    return SamplingCost(batch, step_ms, step_ms / decode_step_ms if decode_step_ms else None)
