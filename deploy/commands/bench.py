"""`rayline bench`: the benchmarks, each in a file that is imported when it runs: GPU machines have little installed."""

import click

from rayline.deploy.commands.lazy_group import Entry, LazyGroup


def _engine() -> click.Command:
    from rayline.deploy.commands.bench_engine import command

    return command


def _gpu() -> click.Command:
    from rayline.deploy.commands.bench_gpu import command

    return command


def _kernels() -> click.Command:
    from rayline.deploy.commands.bench_kernels import command

    return command


def _model() -> click.Command:
    from rayline.deploy.commands.bench_model import command

    return command


def _serve() -> click.Command:
    from rayline.deploy.commands.bench_serve import command

    return command


ENTRIES = {
    "engine": Entry("Prefill and decode speed of the bare engine by batch size.", _engine),
    "gpu": Entry("Check and measure the kernels of the GPU at hand.", _gpu),
    "kernels": Entry("Single operations as shares of what the machine allows.", _kernels),
    "model": Entry("Make a model of random weights to measure with.", _model),
    "serve": Entry("Latency and throughput of a running server.", _serve),
}
command = LazyGroup("bench", entries=ENTRIES, help="Measure the engine, single operations or a running server.")
