"""Idle shares of stages: arithmetic on hand-made rank statistics, and the tables that show them."""

from dataclasses import replace

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rayline.deploy.bench.stages import StepGap, sampling_cost, stage_idle, step_gap, together
from rayline.deploy.bench.tables import gap_table, rank_table, sampling_table, stage_table
from rayline.deploy.commands.bench_engine import sampling_of
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import SamplingParams
from rayline.workers.pipeline import RankStats


def rank(number: int, stage: int, busy_s: float, wall_s: float = 10.0) -> RankStats:
    mib = 2**20
    return RankStats(number, stage, busy_s, wall_s, 3 * mib, 4 * mib, 500 * mib, 2 * mib, 3 * mib)


def test_a_single_stage_has_no_bubble() -> None:
    found = stage_idle(4, [rank(0, 0, 9.0)], plans=100)
    assert (found.stages, found.bubble) == (1, 0.0)
    assert found.idle == (pytest.approx(0.1),)


def test_the_bubble_is_gpipes_formula() -> None:
    found = stage_idle(4, [rank(0, 0, 8.0), rank(1, 1, 6.0)], plans=3)
    assert found.bubble == 1 / 4
    assert found.idle == (pytest.approx(0.2), pytest.approx(0.4))


def test_a_stages_least_busy_rank_counts() -> None:
    ranks = [rank(0, 0, 9.0), rank(1, 0, 7.0), rank(2, 1, 5.0), rank(3, 1, 6.0)]
    assert stage_idle(1, ranks, plans=10).idle == (pytest.approx(0.3), pytest.approx(0.5))


@given(st.integers(1, 8), st.integers(1, 1000))
def test_more_plans_make_the_bubble_smaller(stages: int, plans: int) -> None:
    ranks = [rank(stage, stage, 5.0) for stage in range(stages)]
    now, later = (stage_idle(1, ranks, count).bubble for count in (plans, plans + 1))
    assert 0.0 <= later <= now < 1.0


def test_the_tables_show_shares_and_mebibytes() -> None:
    ranks = [rank(0, 0, 8.0), rank(1, 1, 6.0)]
    console = Console(record=True, width=120)
    console.print(stage_table([stage_idle(4, ranks, plans=3)]))
    console.print(rank_table(ranks))
    shown = console.export_text()
    for text in ("25.0%", "20.0%", "40.0%", "500.0 MiB", "(S-1)/(M+S-1)"):
        assert text in shown


def test_the_gap_between_steps_is_that_of_the_rank_that_waits_most() -> None:
    ranks = [replace(rank(0, 0, 9.0), gap_s=1.0, steps=100), replace(rank(1, 0, 6.0), gap_s=2.0, steps=100)]
    assert step_gap(4, ranks) == StepGap(4, gap_ms=20.0, share=0.25)
    assert step_gap(1, [rank(0, 0, 0.0)]) == StepGap(1, 0.0, 0.0)
    console = Console(record=True, width=120)
    console.print(gap_table([step_gap(4, ranks)]))
    assert "25.0%" in console.export_text()
    twice = together([ranks, ranks])
    assert [(each.gap_s, each.steps) for each in twice] == [(2.0, 200), (4.0, 200)]


def test_the_times_of_several_runs_add_up_rank_by_rank() -> None:
    runs = [[rank(0, 0, 1.0, 2.0), rank(1, 1, 0.5, 2.0)], [rank(0, 0, 3.0, 4.0), rank(1, 1, 1.5, 4.0)]]
    assert together(runs) == (rank(0, 0, 4.0, 6.0), rank(1, 1, 2.0, 6.0))


def test_sampling_is_told_by_the_slowest_rank_beside_a_decode_step() -> None:
    ranks = [
        replace(rank(0, 0, 9.0), sample_s=0.2, sample_steps=100),
        replace(rank(1, 0, 9.0), sample_s=0.5, sample_steps=100),
    ]
    cost = sampling_cost(64, together([ranks, ranks]), decode_step_ms=50.0)
    assert (cost.step_ms, cost.share) == (pytest.approx(5.0), pytest.approx(0.1))
    assert sampling_cost(1, [rank(0, 0, 1.0)], None).share is None
    console = Console(record=True, width=120)
    console.print(sampling_table([cost]))
    assert "10.0%" in console.export_text()


def test_the_sampling_of_a_benchmark_is_read_by_name() -> None:
    params = sampling_of("top_p=0.9,presence_penalty=0.5,logprobs=5", 0.7)
    assert params == SamplingParams(temperature=0.7, top_p=0.9, presence_penalty=0.5, logprobs=5)
    assert sampling_of("", 0.0) == SamplingParams(temperature=0.0)


@pytest.mark.parametrize(
    ("text", "problem"), [("top_q=1", "top_q is no number to set"), ("stop=x", "stop"), ("top_k=many", "'many' is no")]
)
def test_sampling_that_is_no_number_is_refused_by_name(text: str, problem: str) -> None:
    with pytest.raises(click.UsageError, match=problem):
        sampling_of(text, 1.0)


def test_sampling_out_of_range_is_refused_as_in_any_request() -> None:
    with pytest.raises(InvalidRequest, match="top_p"):
        sampling_of("top_p=7", 1.0)
