"""The benchmark's arithmetic, on timelines made by hand."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.deploy.bench.memory import Memory
from rayline.deploy.bench.report import (
    BatchRun,
    Percentiles,
    Slo,
    added,
    batch_report,
    load_report,
    percentile,
    percentiles,
)
from rayline.deploy.bench.tables import added_table, batch_table, load_table
from rayline.deploy.bench.timeline import Arrival, Timeline
from rayline.protos.events import Overhead


def timeline(
    due_s: float, *arrivals_s: float, tokens: int = 1, prompt_tokens: int = 10, error: str | None = None
) -> Timeline:
    """Sent when due; each arrival brings `tokens`; it ends with the last one."""
    arrived = tuple(Arrival(at_s, tokens) for at_s in arrivals_s)
    return Timeline(due_s, due_s, arrived, (due_s, *arrivals_s)[-1], prompt_tokens, error)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent), rel=1e-9, abs=1e-6)


def test_percentiles_are_in_milliseconds() -> None:
    found = percentiles([0.001 * n for n in range(1, 101)])
    assert found is not None
    assert found.mean_ms == pytest.approx(50.5)
    assert found.p50_ms == pytest.approx(50.5)
    assert found.p90_ms == pytest.approx(90.1)
    assert found.p99_ms == pytest.approx(99.01)


def test_nothing_has_no_percentiles() -> None:
    assert percentiles([]) is None


def test_a_timeline_tells_its_latencies() -> None:
    one = timeline(10.0, 10.5, 10.6, 10.8)
    assert one.ttft_s == pytest.approx(0.5)
    assert one.e2e_s == pytest.approx(0.8)
    assert one.tpot_s == pytest.approx(0.15)
    assert one.itls_s == pytest.approx((0.1, 0.2))
    assert one.output_tokens == 3


def test_tokens_that_came_first_take_no_time_per_token() -> None:
    arrived = (Arrival(1.0, 3), Arrival(2.0, 4))
    assert Timeline(0.0, 0.0, arrived, 2.0, 1).tpot_s == pytest.approx(0.25)
    assert timeline(0.0, 1.0, tokens=5).tpot_s is None


def test_in_an_open_loop_waiting_for_the_sender_counts() -> None:
    late = Timeline(due_s=1.0, sent_s=1.4, arrivals=(Arrival(1.5, 1),), ended_s=1.5, prompt_tokens=1)
    assert late.ttft_s == pytest.approx(0.5)
    assert late.e2e_s == pytest.approx(0.5)


def test_a_report_counts_requests_tokens_and_time() -> None:
    report = load_report([timeline(0.0, 1.0, 2.0), timeline(1.0, 2.0, 3.0, 4.0)], Slo())
    assert report.requests == 2
    assert report.failed == 0
    assert report.duration_s == pytest.approx(4.0)
    assert report.prompt_tokens == 20
    assert report.output_tokens == 5
    assert report.requests_per_s == pytest.approx(0.5)
    assert report.output_tokens_per_s == pytest.approx(1.25)
    assert report.total_tokens_per_s == pytest.approx(6.25)
    assert report.ttft == Percentiles(1000.0, 1000.0, 1000.0, 1000.0)
    assert report.goodput is None
    assert report.server is None


def test_failed_requests_count_but_have_no_latencies() -> None:
    runs = [timeline(0.0, 1.0), timeline(0.0, 9.0, error="Overloaded: full"), timeline(0.0, error=None)]
    report = load_report(runs, Slo(e2e_ms=20_000))
    assert report.failed == 2
    assert report.errors == ("Overloaded: full", "no output")
    assert report.output_tokens == 1
    assert report.ttft is not None
    assert report.ttft.p99_ms == pytest.approx(1000.0)
    assert report.goodput is not None
    assert report.goodput.share == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (Slo(ttft_ms=500), True),
        (Slo(ttft_ms=499), False),
        (Slo(tpot_ms=187.5), True),
        (Slo(tpot_ms=187), False),
        (Slo(e2e_ms=875), True),
        (Slo(e2e_ms=874), False),
        (Slo(ttft_ms=500, tpot_ms=200, e2e_ms=1), False),
    ],
)
def test_every_limit_of_the_slo_must_hold(slo: Slo, met: bool) -> None:
    assert slo.met_by(timeline(0.0, 0.5, 0.625, 0.875)) is met


def test_one_token_has_no_tpot_to_miss() -> None:
    assert Slo(tpot_ms=0.001).met_by(timeline(0.0, 5.0))


def test_goodput_is_requests_within_the_slo_a_second() -> None:
    runs = [timeline(0.0, 0.1 * n, 2.0) for n in range(1, 11)]
    report = load_report(runs, Slo(ttft_ms=350))
    assert report.goodput is not None
    assert report.goodput.requests_per_s == pytest.approx(1.5)
    assert report.goodput.share == pytest.approx(0.3)


def test_the_servers_own_times_split_the_time_to_first_token() -> None:
    overhead = Overhead(tokenize_s=0.002, queue_s=0.01, first_token_s=0.3, total_s=1.0)
    one = Timeline(0.0, 0.1, (Arrival(0.45, 1),), 1.2, 4, overhead=overhead)
    server = load_report([one, timeline(0.0, 1.0)], Slo()).server
    assert server is not None
    assert server.tokenize.p50_ms == pytest.approx(2.0)
    assert server.queue.p50_ms == pytest.approx(10.0)
    assert server.first_token.p50_ms == pytest.approx(300.0)
    assert server.transport.p50_ms == pytest.approx(50.0)


def test_what_the_server_adds_is_the_difference_of_medians() -> None:
    served = load_report([timeline(0.0, 0.2, 0.3, 0.4)], Slo())
    engine = load_report([timeline(0.0, 0.15, 0.2, 0.25)], Slo())
    difference = added(served, engine)
    assert difference.ttft_ms == pytest.approx(50.0)
    assert difference.tpot_ms == pytest.approx(50.0)
    assert difference.e2e_ms == pytest.approx(150.0)
    assert difference.throughput_share == pytest.approx(0.625)


def test_batches_report_medians() -> None:
    runs = [BatchRun(80, prefill_s, 24, 6, decode_s) for prefill_s, decode_s in ((1.0, 2.0), (2.0, 3.0), (9.0, 12.0))]
    random.Random(1).shuffle(runs)
    report = batch_report(4, runs)
    assert report.prefill_tokens_per_s == pytest.approx(40.0)
    assert report.decode_tokens_per_s == pytest.approx(8.0)
    assert report.decode_step_ms == pytest.approx(500.0)
    assert report.repeats == 3


def test_a_batch_of_single_tokens_decodes_nothing() -> None:
    report = batch_report(2, [BatchRun(8, 1.0, 0, 0, 0.0)])
    assert report.decode_tokens_per_s is None
    assert report.decode_step_ms is None


def test_tables_hold_every_figure_and_a_dash_for_what_is_not_there() -> None:
    report = load_report([timeline(0.0, 1.0)], Slo(ttft_ms=2000))
    table = load_table("server", report, Memory(rss_bytes=2**21, pss_bytes=2**20))
    assert list(table.columns[0].cells) == ["TTFT", "TPOT", "ITL", "end to end"]
    assert list(table.columns[2].cells) == ["1,000.00", "-", "-", "1,000.00"]
    assert "goodput 1.00 requests/s (100.0% met the SLO)" in str(table.caption)
    assert "1 MiB PSS, 2 MiB RSS" in str(table.caption)
    assert list(added_table(added(report, report)).columns[1].cells) == [
        "+0.000 ms",
        "-",
        "+0.000 ms",
        "100.0% of the engine's",
    ]
    batches = batch_table([batch_report(2, [BatchRun(8, 1.0, 0, 0, 0.0)])], Memory(0, 0))
    assert [next(iter(column.cells)) for column in batches.columns] == ["2", "8", "-", "-"]
