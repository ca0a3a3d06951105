"""`rayline bench kernels`: single operations as shares of what the machine allows, beside torch's."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console

from rayline.cluster.machine import usable_cores
from rayline.deploy.bench.limit_tables import kernel_table
from rayline.workers.bench.kernel_shapes import OPERATIONS, SHAPES
from rayline.workers.bench.roofline import CaseReport

Positive = click.IntRange(min=1)


@click.command("kernels")
@click.option(
    "--op", "operations", type=click.Choice(OPERATIONS), multiple=True, help="Which operations (may be repeated). All."
)
@click.option("--shape", "shapes", multiple=True, help="Only shapes that contain this text (may be repeated).")
@click.option(
    "--model-shape", type=click.Choice(tuple(SHAPES)), default="1b", show_default=True, help="Decoder to take sizes of."
)
@click.option("--rounds", type=Positive, default=9, show_default=True, help="Of each case; medians are shown.")
@click.option("--threads", type=Positive, help="Compute threads.  [default: the cores of this machine]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    operations: tuple[str, ...],
    shapes: tuple[str, ...],
    model_shape: str,
    rounds: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time each operation in turn with torch's and with probes of bandwidth and arithmetic."""
    threads = threads or usable_cores()
    reports = measured(operations or OPERATIONS, shapes, model_shape, rounds, threads)
    if as_json:
        cases = [asdict(report) for report in reports]
        click.echo(json.dumps({"threads": threads, "model_shape": model_shape, "cases": cases}))
    else:
        Console().print(kernel_table(reports, threads))


def measured(
    operations: Sequence[str], shapes: Sequence[str], model_shape: str, rounds: int, threads: int
) -> list[CaseReport]:
    """The cases that were asked for, with progress on standard error. Raises UsageError when there are none."""
    from rayline.workers.bench.kernel_bench import KernelBench  # torch takes a second to import: not for `--help`
    from rayline.workers.bench.kernel_cases import cases

    every = cases(SHAPES[model_shape], operations)
    wanted = [case for case in every if not shapes or any(shape in case.shape for shape in shapes)]
    if not wanted:
        there = ", ".join(case.shape for case in every)
        raise click.UsageError(f"no shape contains {' or '.join(shapes)}: there are {there}")
    progress = Console(stderr=True)
    bench = KernelBench.open(threads)
    reports: list[CaseReport] = []
    for case in wanted:
        report = bench.run(case, rounds)
        if report is None:
            progress.print(f"{case.operation} {case.shape}: left out, there is not enough memory")
        else:
            progress.print(f"{case.operation} {case.shape}: {report.rounds} rounds")
            reports.append(report)
    return reports
