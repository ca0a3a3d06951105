"""Reports as tables for people; `--json` prints the records themselves."""

from collections.abc import Sequence

from rich.table import Table

from rayline.deploy.bench.grammar_speed import GrammarSpeed
from rayline.deploy.bench.long_prompt import LongPromptReport
from rayline.deploy.bench.memory import Memory
from rayline.deploy.bench.report import Added, BatchReport, LoadReport, Percentiles
from rayline.deploy.bench.stages import SamplingCost, StageIdle, StepGap
from rayline.workers.pipeline import RankStats


def load_table(title: str, report: LoadReport, memory: Memory | None) -> Table:
    """Latencies as rows of percentiles, then totals below."""
    table = Table("ms", "mean", "p50", "p90", "p99", title=title, caption=_totals(report, memory))
    rows = [("TTFT", report.ttft), ("TPOT", report.tpot), ("ITL", report.itl), ("end to end", report.e2e)]
    if report.server:
        server = report.server
        rows += [
            ("server: tokenize", server.tokenize),
            ("server: queue", server.queue),
            ("server: first token", server.first_token),
            ("transport: first token", server.transport),
        ]
    for name, values in rows:
        table.add_row(name, *_cells(values))
    return table


def long_prompt_table(report: LongPromptReport) -> Table:
    """The gaps of running streams around a long prompt."""
    title = f"{report.streams} streams beside a prompt of {report.prompt_tokens} tokens"
    caption = (
        f"during / before: {report.ratio_p50:.2f} at p50, {report.ratio_p99:.2f} at p99; "
        f"first token of the long prompt after {report.ttft_s:.1f} s"
    )
    table = Table("ITL, ms", "mean", "p50", "p90", "p99", title=title, caption=caption)
    for name, values in (("before", report.before), ("during", report.during), ("after", report.after)):
        table.add_row(name, *_cells(values))
    return table


def added_table(added: Added) -> Table:
    """What the server costs over the bare engine."""
    table = Table("router and transport add", "at the median")
    for name, value in (("TTFT", added.ttft_ms), ("TPOT", added.tpot_ms), ("end to end", added.e2e_ms)):
        table.add_row(name, "-" if value is None else f"{value:+.3f} ms")
    table.add_row("tokens/s", f"{added.throughput_share:.1%} of the engine's")
    return table


def batch_table(reports: Sequence[BatchReport], memory: Memory) -> Table:
    table = Table("batch", "prefill tok/s", "decode tok/s", "ms/step", caption=_memory(memory))
    for report in reports:
        decode, step = report.decode_tokens_per_s, report.decode_step_ms
        table.add_row(
            str(report.batch),
            f"{report.prefill_tokens_per_s:,.0f}",
            "-" if decode is None else f"{decode:,.0f}",
            "-" if step is None else f"{step:.2f}",
        )
    return table


def grammar_table(speeds: Sequence[GrammarSpeed]) -> Table:
    """Decoding with a grammar beside decoding without."""
    table = Table("batch", "free tok/s", "with the schema", "share")
    for speed in speeds:
        row = (f"{speed.free_tokens_per_s:,.0f}", f"{speed.grammar_tokens_per_s:,.0f}", f"{speed.share:.1%}")
        table.add_row(str(speed.batch), *row)
    return table


def stage_table(idle: Sequence[StageIdle]) -> Table:
    """Idle time of each stage beside what filling and draining the pipeline would cost."""
    stages = range(idle[0].stages)
    table = Table("batch", "plans", "(S-1)/(M+S-1)", *(f"stage {stage} idle" for stage in stages))
    for run in idle:
        table.add_row(str(run.batch), str(run.plans), f"{run.bubble:.1%}", *(f"{share:.1%}" for share in run.idle))
    return table


def gap_table(gaps: Sequence[StepGap]) -> Table:
    """What lies between the steps."""
    table = Table("batch", "gap ms/step", "of a step")
    for gap in gaps:
        table.add_row(str(gap.batch), f"{gap.gap_ms:.3f}", f"{gap.share:.1%}")
    return table


def sampling_table(costs: Sequence[SamplingCost]) -> Table:
    """What it takes to go from logits to tokens."""
    table = Table("batch", "sampling ms/step", "of a decode step")
    for cost in costs:
        table.add_row(str(cost.batch), f"{cost.step_ms:.2f}", "-" if cost.share is None else f"{cost.share:.1%}")
    return table


def rank_table(ranks: Sequence[RankStats]) -> Table:
    """What each rank holds."""
    table = Table("rank", "stage", "weights", "KV cache", "resident", "read from files")
    for rank in ranks:
        sizes = (rank.weight_bytes, rank.cache_bytes, rank.resident_bytes, rank.read_bytes)
        table.add_row(str(rank.rank), str(rank.stage), *(f"{size / 2**20:,.1f} MiB" for size in sizes))
    return table


def _cells(values: Percentiles | None) -> list[str]:
    if values is None:
        return ["-"] * 4
    return [f"{value:,.2f}" for value in (values.mean_ms, values.p50_ms, values.p90_ms, values.p99_ms)]


def _totals(report: LoadReport, memory: Memory | None) -> str:
    lines = [
        f"{report.requests} requests, {report.failed} failed, in {report.duration_s:.2f} s",
        f"{report.requests_per_s:.2f} requests/s, {report.output_tokens_per_s:,.1f} output tokens/s, "
        f"{report.total_tokens_per_s:,.1f} with prompts",
        *report.errors,
    ]
    if report.goodput:
        lines.append(f"goodput {report.goodput.requests_per_s:.2f} requests/s ({report.goodput.share:.1%} met the SLO)")
    if memory:
        lines.append(_memory(memory))
    return "\n".join(lines)


def _memory(memory: Memory) -> str:
    return f"peak memory {memory.pss_bytes / 2**20:,.0f} MiB PSS, {memory.rss_bytes / 2**20:,.0f} MiB RSS"
