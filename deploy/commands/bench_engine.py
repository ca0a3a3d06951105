"""`rayline bench engine`: prefill and decode speed of the bare engine by batch size."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rayline.cluster.machine import usable_cores
from rayline.deploy.bench.engine_load import measure_batch
from rayline.deploy.bench.grammar_speed import grammar_speed
from rayline.deploy.bench.limit_tables import roofline_table
from rayline.deploy.bench.memory import PeakMemory
from rayline.deploy.bench.report import BatchReport, batch_report
from rayline.deploy.bench.stages import SamplingCost, StageIdle, StepGap, sampling_cost, stage_idle, step_gap, together
from rayline.deploy.bench.tables import batch_table, gap_table, grammar_table, rank_table, sampling_table, stage_table
from rayline.deploy.bench.workload import Shape
from rayline.deploy.commands.flags import config_flags, given
from rayline.deploy.commands.source import NOT_OFFLINE, OFFLINE_SECTIONS
from rayline.deploy.model_path import resolve_model
from rayline.protos.types import SamplingParams, StructuredOutput
from rayline.router.grammars.grammar import grammar_text
from rayline.workers.bench.limit_sampler import LimitSampler
from rayline.workers.bench.roofline import BatchRoofline, EngineCost, Speeds, batch_roofline, engine_cost
from rayline.workers.engine import Engine
from rayline.workers.models.config import ModelConfig

Positive = click.IntRange(min=1)
_NUMBERS: dict[Any, Callable[[str], float]] = {
    float: float,
    int: int,
    int | None: int,
}  # types of numbers in SamplingParams


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
@click.option(
    "--sampling", default="", metavar="NAME=VALUE,...", help="Other sampling parameters: top_p=0.9,logprobs=5."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the prompts.")
@click.option(
    "--json-schema",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also decode with this JSON schema, in turns with free text. It must not let outputs end early.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str,
    batches: tuple[int, ...],
    input_tokens: int,
    output_tokens: int,
    repeats: int,
    temperature: float,
    sampling: str,
    seed: int,
    json_schema: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Run batches of random prompts over the engine of MODEL, without router, transport or text."""
    from rayline.deploy.commands.offline import open_engine  # torch takes a second to import: not for `--help`
    from rayline.workers.bench.machine_probe import open_sampler

    params = sampling_of(sampling, temperature)
    options = {"max_running": max(batches)} | given(flags)
    with PeakMemory(os.getpid()) as memory, open_engine(model, options) as group:
        info, pipeline = group.info, group.engine.pipeline
        shape = Shape(input_tokens, output_tokens, info.vocab_size, seed)
        loaded = memory.peak
        sampler = open_sampler(group_cores(options))
        cost = engine_cost(ModelConfig.load(resolve_model(model)), info, pipeline.rank_stats())
        runs = [measured(group.engine, batch, repeats, shape, params, sampler, cost) for batch in batches]
        grammar = "" if json_schema is None else grammar_of(json_schema)
        shares = [grammar_speed(group.engine, batch, repeats, shape, params, grammar) for batch in batches if grammar]
        probe_bytes = sampler.close()
        ranks = pipeline.rank_stats()
    peak = memory.peak.less(probe_bytes).larger(loaded)
    rooflines = [run.roofline for run in runs if run.roofline]
    if as_json:
        click.echo(
            json.dumps(
                {
                    "numerics": info.numerics,
                    "input_tokens": input_tokens,
                    "output_tokens": output_tokens,
                    "batches": [asdict(run.report) for run in runs],
                    "rooflines": [asdict(roofline) for roofline in rooflines],
                    "limits_missing": sampler.missing,
                    "json_schema": [asdict(share) for share in shares],
                    "stages": [asdict(run.idle) for run in runs],
                    "gaps": [asdict(run.gap) for run in runs],
                    "sampling": [asdict(run.sampling) for run in runs],
                    "ranks": [asdict(rank) for rank in ranks],
                    "peak_memory": asdict(peak),
                }
            )
        )
        return
    console = Console()
    console.print(batch_table([run.report for run in runs], peak))
    console.print(roofline_table(rooflines) if rooflines else f"limits not measured: {sampler.missing}")
    _print_steps(console, runs)
    if shares:
        console.print(grammar_table(shares))
    console.print(rank_table(ranks))


def grammar_of(file: Path) -> str:
    """The grammar of a JSON schema. Raises InvalidRequest."""
    return grammar_text(StructuredOutput("json_schema", file.read_text(encoding="utf-8")), {}, field="json_schema")


def _print_steps(console: Console, runs: Sequence["Measured"]) -> None:
    console.print(stage_table([run.idle for run in runs]))
    console.print(gap_table([run.gap for run in runs]))
    console.print(sampling_table([run.sampling for run in runs]))


@dataclass(frozen=True, slots=True)
class Measured:
    """All about one batch size. roofline is None where the limits cannot be measured."""

    report: BatchReport
    idle: StageIdle
    roofline: BatchRoofline | None
    gap: StepGap
    sampling: SamplingCost


def measured(
    engine: Engine,
    batch: int,
    repeats: int,
    shape: Shape,
    params: SamplingParams,
    sampler: LimitSampler,
    cost: EngineCost,
) -> Measured:
    """One batch size, after a run that is thrown away."""
    measure_batch(engine, shape.jobs(batch, 0), params)
    plans = engine.scheduler.stats.steps
    runs, busy = [], []
    sampler.sample()
    for repeat in range(1, repeats + 1):
        engine.pipeline.rank_stats()  # starts the ranks' clocks anew
        runs.append(measure_batch(engine, shape.jobs(batch, repeat), params))
        busy.append(engine.pipeline.rank_stats())
        sampler.sample()
    report = batch_report(batch, runs)
    ranks = together(busy)
    idle = stage_idle(batch, ranks, engine.scheduler.stats.steps - plans)
    limits = sampler.taken()
    speeds = Speeds(report.prefill_tokens_per_s, report.decode_tokens_per_s)
    lengths = (shape.input_tokens, shape.output_tokens)
    roofline = batch_roofline(cost, limits, batch, *lengths, speeds) if limits else None
    sampling = sampling_cost(batch, ranks, report.decode_step_ms)
    return Measured(report, idle, roofline, step_gap(batch, ranks), sampling)


def sampling_of(text: str, temperature: float) -> SamplingParams:
    """Parameters out of "top_p=0.9,logprobs=5". Raises UsageError for what is no number, InvalidRequest as always."""
    values: dict[str, Any] = {"temperature": temperature}
    numbers = {field.name: field.type for field in fields(SamplingParams) if field.type in _NUMBERS}
    for pair in filter(None, text.split(",")):
        name, _, value = pair.partition("=")
        if name not in numbers:
            raise click.UsageError(f"--sampling {name} is no number to set: there are {', '.join(numbers)}")
        try:
            values[name] = _NUMBERS[numbers[name]](value)
        except ValueError:
            raise click.UsageError(f"--sampling {pair}: {value!r} is no {numbers[name]}") from None
    params = SamplingParams(**values)
    params.check()
    return params


def group_cores(options: Mapping[str, Any]) -> int:
    """Cores that the ranks of the group compute on, all together."""
    cores, ranks = usable_cores(), options.get("tp", 1) * options.get("pp", 1)
    threads = options.get("threads") or max(1, cores // ranks)
    return int(min(cores, threads * ranks))
