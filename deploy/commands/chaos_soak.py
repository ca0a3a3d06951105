"""`rayline chaos soak`: streams without end, faults all the time, and then a look for leaks."""

import asyncio
import json
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from rayline.deploy.chaos.pairs import pairs
from rayline.deploy.commands.chaos_flags import SECONDS, aside, options_from, pair_flags, scene_flags
from rayline.deploy.ray_environment import prepare_ray


@scene_flags
@pair_flags
@click.command("soak")
@click.option("--seconds", type=SECONDS, default=1800.0, show_default=True, help="How long.")
@click.option("--fault-every-s", type=SECONDS, default=20.0, show_default=True, help="Seconds between faults.")
def command(
    targets: tuple[str, ...],
    faults: tuple[str, ...],
    seconds: float,
    fault_every_s: float,
    as_json: bool,
    **values: Any,
) -> int:
    """Break one process after another, chosen by chance, and look for whatever is left behind at the end.

    Exit status 1 when a stream was lost, or a request, a KV block, an actor, a file descriptor or memory stayed.
    """
    prepare_ray()
    from rayline.deploy.chaos.run import deployment_of, soak  # Ray, gRPC: not for `--help`
    from rayline.deploy.chaos.tables import WIDTH, soak_table

    options, wanted = options_from(values), pairs(targets, faults)
    with aside(as_json), deployment_of(options, wanted) as deployment:
        report = asyncio.run(soak(deployment, options, wanted, seconds, fault_every_s, click.echo))
    if as_json:
        click.echo(json.dumps(asdict(report)))
    else:
        Console(width=WIDTH).print(soak_table(report))
    return 0 if report.is_well else 1
