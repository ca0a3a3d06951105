"""`rayline chaos matrix`: one fault after another, at every k-th token of every kind of stream."""

import asyncio
import json
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from rayline.deploy.chaos.pairs import pairs
from rayline.deploy.commands.chaos_flags import Positive, aside, options_from, pair_flags, scene_flags
from rayline.deploy.ray_environment import prepare_ray


@scene_flags
@pair_flags
@click.command("matrix")
@click.option("--every", type=Positive, default=40, show_default=True, help="Break at every so many tokens.")
@click.option("--cases", type=Positive, help="End after so many.")
def command(
    targets: tuple[str, ...], faults: tuple[str, ...], every: int, cases: int | None, as_json: bool, **values: Any
) -> int:
    """Break one process after another under running streams, and compare each stream with an undisturbed one.

    Exit status 1 when a stream was lost or the deployment did not become whole again.
    """
    prepare_ray()
    from rayline.deploy.chaos.report import MatrixReport, lost, rows  # Ray, gRPC: not for `--help`
    from rayline.deploy.chaos.run import deployment_of, matrix
    from rayline.deploy.chaos.tables import WIDTH, matrix_table, skipped_lines

    options, wanted = options_from(values), pairs(targets, faults)
    with aside(as_json), deployment_of(options, wanted) as deployment:
        plan, results = asyncio.run(matrix(deployment, options, wanted, every, cases, click.echo))
    if as_json:
        found = MatrixReport(tuple(rows(results)), tuple(results), plan.skipped)
        click.echo(json.dumps(asdict(found)))
    else:
        Console(width=WIDTH).print(matrix_table(rows(results)))
        click.echo("\n".join(skipped_lines(plan.skipped)))
    whole = all(result.back_s is not None and not result.bystanders for result in results)
    return 0 if whole and not lost(results) else 1
