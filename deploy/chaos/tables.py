"""Chaos reports as tables for people; `--json` prints the records themselves."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from rayline.deploy.chaos.calm import CalmReport
from rayline.deploy.chaos.case import StreamResult
from rayline.deploy.chaos.footprint import Holding
from rayline.deploy.chaos.matrix import Skipped
from rayline.deploy.chaos.report import Row, Spread, spread
from rayline.deploy.chaos.soak import SoakReport

WIDTH = 100


def matrix_table(rows: Sequence[Row]) -> Table:
    """A line a pair; seconds as p50 / p99 / most. WIDTH columns wide."""
    table = Table("broken", "cases", "streams", "lost", "refused", "moved", "next token, s", "whole again, s", box=None)
    for row in rows:
        counts = (str(number) for number in (row.cases, row.streams, row.lost, row.refused, row.moved))
        table.add_row(f"{row.pair.target} {row.pair.fault}", *counts, _seconds(row.next_token), _seconds(row.back))
    return table


def skipped_lines(skipped: Sequence[Skipped]) -> list[str]:
    """Pairs that were not run, and why."""
    return [f"skipped: {each.pair.target} {each.pair.fault}: {each.reason}" for each in skipped]


def soak_table(report: SoakReport) -> Table:
    """What ran, what was lost, what was left."""
    table = Table("soak", "", show_header=False)
    counts = Counter(f"{pair.target} {pair.fault}" for pair in report.faults)
    table.add_row("seconds", f"{report.seconds:.0f}")
    table.add_row("faults", ", ".join(f"{count} x {pair}" for pair, count in sorted(counts.items())))
    table.add_row("leaked", "\n".join(report.leaked) or "nothing")
    table.add_row("trouble", report.trouble or "none")
    _add_streams(table, report.streams)
    for kind, now in sorted(report.after.holdings.items() if report.after else ()):
        was = report.before.holdings.get(kind)
        table.add_row(kind, f"{_holding(was)} -> {_holding(now)}")
    return table


def calm_table(report: CalmReport) -> Table:
    """What ran, and who was given up for nothing."""
    table = Table("calm", "", show_header=False)
    table.add_row("seconds", f"{report.seconds:.0f}, beside {report.loops} busy loops")
    table.add_row("given up", "\n".join(report.fenced) or "nobody")
    table.add_row("hanging", str(report.hanging))
    _add_streams(table, report.streams)
    return table


def _add_streams(table: Table, streams: Sequence[StreamResult]) -> None:
    pauses = spread([stream.pause_s for stream in streams if stream.pause_s is not None])
    table.add_row("streams", str(len(streams)))
    table.add_row("lost", str(sum(bool(stream.complaints) for stream in streams)))
    table.add_row("refused before they began", str(sum(stream.is_refused for stream in streams)))
    table.add_row("moved", str(sum(bool(stream.losses) for stream in streams)))
    table.add_row("longest pause of a stream, s", _seconds(pauses))


def _holding(holding: Holding | None) -> str:
    if holding is None:
        return "-"
    return f"{holding.processes} of at most {holding.rss_bytes / 2**20:.0f} MiB and {holding.fds} file descriptors"


def _seconds(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.p50_s:.2f} / {spread.p99_s:.2f} / {spread.max_s:.2f}"
