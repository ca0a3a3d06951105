"""`rayline chaos calm`: nothing is broken, everything is busy, and nobody may be given up."""

import asyncio
import json
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from rayline.deploy.commands.chaos_flags import SECONDS, aside, options_from, scene_flags
from rayline.deploy.ray_environment import prepare_ray


@scene_flags
@click.command("calm")
@click.option("--seconds", type=SECONDS, default=3600.0, show_default=True, help="How long.")
def command(seconds: float, as_json: bool, **values: Any) -> int:
    """Run streams beside two busy loops for each core, and count the processes that are given up for nothing.

    Exit status 1 when there was one, or a stream moved or was lost.
    """
    prepare_ray()
    from rayline.deploy.chaos.run import calm, deployment_of  # Ray, gRPC: not for `--help`
    from rayline.deploy.chaos.tables import WIDTH, calm_table

    options = options_from(values)
    with aside(as_json), deployment_of(options, ()) as deployment:
        report = asyncio.run(calm(deployment, options, seconds, click.echo))
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        Console(width=WIDTH).print(calm_table(report))
    return 0 if report.is_well else 1
