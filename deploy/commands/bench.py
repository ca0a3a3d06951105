"""`rayline bench`: the two benchmarks, each in its own file."""

import click

from rayline.deploy.commands.bench_engine import command as engine
from rayline.deploy.commands.bench_serve import command as serve

command = click.Group(
    "bench", commands=[engine, serve], help="Measure the engine alone (engine) or a running server (serve)."
)
