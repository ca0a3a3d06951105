"""`rayline bench`: the benchmarks, each in its own file."""

import click

from rayline.deploy.commands.bench_engine import command as engine
from rayline.deploy.commands.bench_kernels import command as kernels
from rayline.deploy.commands.bench_model import command as model
from rayline.deploy.commands.bench_serve import command as serve

command = click.Group(
    "bench",
    commands=[engine, kernels, model, serve],
    help="Measure the engine alone (engine), single operations (kernels) or a running server (serve); "
    "make a random model for it (model).",
)
