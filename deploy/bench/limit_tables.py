"""Figures beside the machine's limits, as tables for people."""

from collections.abc import Iterator, Sequence
from statistics import median

from rich.table import Table

from rayline.workers.bench.roofline import BatchRoofline, CaseReport


def kernel_table(reports: Sequence[CaseReport], threads: int) -> Table:
    """Each case with the machine's limits in its own rounds, and below it what the contenders made of them."""
    caption = f"in brackets: the machine's limits meanwhile, and the least time they allow\n{_rates(reports)}"
    table = Table("operation", title=f"kernels, {threads} threads, caches cold", caption=caption)
    for heading in ("us", "GB/s", "GFLOP/s", "of the limit"):
        table.add_column(heading, justify="right")
    for report in reports:
        for row in _rows(report):
            table.add_row(*row)
        table.add_section()
    return table


def _rows(report: CaseReport) -> Iterator[tuple[str, ...]]:
    reading, computing = f"({report.limits.read_bytes_per_s / 1e9:.1f})", f"({report.flops_limit_per_s / 1e9:,.0f})"
    yield f"{report.operation} {report.shape}", f"({report.roofline_s * 1e6:,.0f})", reading, computing, report.binds
    for each in report.contenders:
        flops = f"{each.flops_per_s / 1e9:,.0f}" if report.flops else "-"
        speed = (f"{each.median_s * 1e6:,.0f}", f"{each.bytes_per_s / 1e9:.1f}", flops)
        yield f"  {each.name}", *speed, f"{each.fraction:.0%}"


def roofline_table(rooflines: Sequence[BatchRoofline]) -> Table:
    """What each batch size could reach at most, and how much of it was."""
    table = Table("batch", title="the machine's limits in the same minutes")
    for heading in ("GB/s", "GFLOP/s", "prefill at most", "reached", "decode at most", "reached"):
        table.add_column(heading, justify="right")
    for each in rooflines:
        table.add_row(
            str(each.batch),
            f"{each.limits.read_bytes_per_s / 1e9:.1f}",
            f"{each.limits.flops_per_s / 1e9:,.0f}",
            f"{each.prefill_tokens_per_s:,.0f} ({each.prefill_binds})",
            f"{each.prefill_fraction:.1%}",
            f"{each.decode_tokens_per_s:,.1f} ({each.decode_binds})",
            "-" if each.decode_fraction is None else f"{each.decode_fraction:.1%}",
        )
    return table


def _rates(reports: Sequence[CaseReport]) -> str:
    """What the threads could compute at most, over all rounds."""
    limits = [report.limits for report in reports]
    rates = (
        ("fp32 fma", [each.fma_flops_per_s for each in limits]),
        ("bf16 dot products", [each.bf16_flops_per_s for each in limits]),
        ("int8 dot products", [each.int8_ops_per_s for each in limits]),
    )
    known = ((name, [value for value in values if value is not None]) for name, values in rates)
    return ", ".join(f"{name} {median(values) / 1e9:,.0f} G/s" if values else f"no {name}" for name, values in known)
