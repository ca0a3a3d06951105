"""`rayline bench engine`: prefill and decode speed of the bare engine by batch size."""

import json
import os
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from rayline.deploy.bench.engine_load import measure_batch
from rayline.deploy.bench.memory import PeakMemory
from rayline.deploy.bench.report import BatchReport, batch_report
from rayline.deploy.bench.stages import StageIdle, stage_idle
from rayline.deploy.bench.tables import batch_table, rank_table, stage_table
from rayline.deploy.bench.workload import Shape
from rayline.deploy.commands.flags import config_flags, given
from rayline.deploy.commands.source import NOT_OFFLINE, OFFLINE_SECTIONS
from rayline.workers.engine import Engine

Positive = click.IntRange(min=1)


@config_flags(OFFLINE_SECTIONS, without=NOT_OFFLINE)
@click.command("engine")
@click.argument("model", default="embedded")
@click.option(
    "--batch",
    "batches",
    type=Positive,
    multiple=True,
    default=(1, 4, 16),
    show_default=True,
    help="Requests at once (may be repeated).",
)
@click.option("--input-tokens", type=Positive, default=128, show_default=True, help="Random prompt tokens of each.")
@click.option("--output-tokens", type=Positive, default=64, show_default=True, help="Output tokens of each.")
@click.option("--repeats", type=Positive, default=3, show_default=True, help="Runs of each batch; medians are shown.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    batches: tuple[int, ...],
    input_tokens: int,
    output_tokens: int,
    repeats: int,
    temperature: float,
    seed: int,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run batches of random prompts over the engine of MODEL, without router, transport or text."""
    from rayline.deploy.commands.offline import load_model  # torch takes a second to import: not for `--help`

    options = {"max_running": max(batches)} | given(flags)
    with PeakMemory(os.getpid()) as memory, load_model(model, options) as llm:
        shape = Shape(input_tokens, output_tokens, llm.info.vocab_size, seed)
        measurements = [measured(llm.engine, batch, repeats, shape, temperature) for batch in batches]
        ranks = llm.engine.pipeline.rank_stats()
    reports, idle = [report for report, _ in measurements], [stages for _, stages in measurements]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "numerics": llm.info.numerics,
                    "input_tokens": input_tokens,
                    "output_tokens": output_tokens,
                    "batches": [asdict(report) for report in reports],
                    "stages": [asdict(stages) for stages in idle],
                    "ranks": [asdict(rank) for rank in ranks],
                    "peak_memory": asdict(memory.peak),
                }
            )
        )
    else:
        console = Console()
        console.print(batch_table(reports, memory.peak))
        console.print(stage_table(idle))
        console.print(rank_table(ranks))


def measured(
    engine: Engine, batch: int, repeats: int, shape: Shape, temperature: float
) -> tuple[BatchReport, StageIdle]:
    """One batch size, after a run that is thrown away."""
    measure_batch(engine, shape.jobs(batch, 0), temperature)
    engine.pipeline.rank_stats()  # starts the ranks' clocks anew
    before = engine.scheduler.stats.steps
    runs = [measure_batch(engine, shape.jobs(batch, repeat), temperature) for repeat in range(1, repeats + 1)]
    plans = engine.scheduler.stats.steps - before
    return batch_report(batch, runs), stage_idle(batch, engine.pipeline.rank_stats(), plans)
