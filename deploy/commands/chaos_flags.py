"""What the chaos commands share: which deployment they break, and what runs on it meanwhile."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import click

from rayline.cluster.config import ParallelSection
from rayline.deploy.chaos.options import Options
from rayline.deploy.chaos.pairs import Fault, Target
from rayline.protos.addresses import addresses_of

Positive = click.IntRange(min=1)
SECONDS = click.FloatRange(0, min_open=True)
USUAL = Options()


def _number(flag: str, default: int, text: str, least: int = 1) -> click.Option:
    return click.Option([flag], type=click.IntRange(least), default=default, show_default=True, help=text)


def scene_flags(command: click.Command) -> click.Command:
    """Adds the deployment and its streams."""
    own = "Of a deployment of its own."
    command.params.extend(
        [
            click.Option(
                ["--address"],
                metavar="HOST:PORT,...",
                help="gRPC addresses of a deployment's routers; RAY_ADDRESS names its cluster. Default: start both.",
            ),
            click.Option(["--api-key"], envvar="RAYLINE_API_KEY", help="Bearer token."),
            click.Option(["--model"], default=USUAL.model, show_default=True, help=own),
            _number("--tp", USUAL.parallel.tp, own),
            _number("--pp", USUAL.parallel.pp, own),
            _number("--groups", USUAL.parallel.groups, own),
            click.Option(
                ["--workload", "workloads"],
                multiple=True,
                help="greedy, sampled, grammar, n4 or beam (may be repeated); default: all.",
            ),
            _number("--tokens", USUAL.tokens, "Output tokens of each choice."),
            _number("--copies", USUAL.copies, "Streams of each workload at once."),
            _number("--traffic", USUAL.traffic, "Other clients, each with one request after another.", least=0),
            _number("--seed", USUAL.seed, "Of what is left to chance: which process is hit.", least=0),
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
        ]
    )
    return command


def pair_flags(command: click.Command) -> click.Command:
    """Adds what is broken, and how."""
    for flag, name, kinds in (("--target", "targets", Target), ("--fault", "faults", Fault)):
        choice = click.Choice([kind.value for kind in kinds])
        text = "Only this (may be repeated); default: every one."
        command.params.append(click.Option([flag, name], multiple=True, type=choice, help=text))
    return command


def options_from(values: dict[str, Any]) -> Options:
    """The flags of `scene_flags`, read."""
    parallel = ParallelSection(values["tp"], values["pp"], values["groups"])
    addresses = addresses_of(values["address"]) if values["address"] else ()
    names = ("api_key", "model", "workloads", "tokens", "copies", "traffic", "seed")
    return Options(addresses, parallel=parallel, **{name: values[name] for name in names})


@contextmanager
def aside(as_json: bool) -> Iterator[None]:
    """With `--json` a run's lines, and what Ray prints of its own, go to stderr: stdout is the report's alone."""
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        yield
