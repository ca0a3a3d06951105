"""`rayline bench serve`: latency and throughput of a running server under load."""

import asyncio
import json
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from rayline.cluster.config import EngineSection
from rayline.cluster.machine import usable_cores
from rayline.deploy.bench.long_prompt import LONG_OUTPUT_TOKENS, LongPromptPlan, LongPromptReport, run_long_prompt
from rayline.deploy.bench.memory import Memory, PeakMemory
from rayline.deploy.bench.report import LoadReport, Slo, added, load_report
from rayline.deploy.bench.server_load import LoadPlan, ServerTarget, checked_vocab_size, refuse_all_failed
from rayline.deploy.bench.tables import added_table, load_table, long_prompt_table
from rayline.deploy.bench.workload import Shape
from rayline.deploy.commands.flags import config_flags, given
from rayline.deploy.commands.source import NOT_OFFLINE, OFFLINE_SECTIONS

DEFAULT_ADDRESS = {"grpc": "127.0.0.1:9000", "http": "127.0.0.1:8080"}
Positive = click.IntRange(min=1)


def slo_flags(command: click.Command) -> click.Command:
    """Adds the limits that goodput counts by."""
    command.params.extend(
        click.Option([f"--slo-{name}-ms"], type=float, help=f"Goodput: {text}, in milliseconds.")
        for name, text in (("ttft", "time to first token"), ("tpot", "time per output token"), ("e2e", "whole request"))
    )
    return command


def load_flags(command: click.Command) -> click.Command:
    """Adds what is asked of the server, and how fast."""
    command.params.extend(
        [
            click.Option(["--requests"], type=Positive, default=64, show_default=True, help="Requests to measure."),
            click.Option(["--concurrency"], type=Positive, default=8, show_default=True, help="Closed loop: callers."),
            click.Option(["--rate"], type=click.FloatRange(0, min_open=True), help="Open loop: requests/s, Poisson."),
            click.Option(
                ["--input-tokens"], type=Positive, default=128, show_default=True, help="Random prompt tokens."
            ),
            click.Option(
                ["--output-tokens"], type=Positive, default=64, show_default=True, help="Output tokens of each."
            ),
            click.Option(["--vocab-size"], type=Positive, help="Prompt ids are below; default: as the server tells."),
            click.Option(["--temperature"], type=float, default=0.0, show_default=True, help="0 is greedy."),
            click.Option(["--seed"], type=int, default=0, show_default=True, help="Of prompts and arrivals."),
            click.Option(["--warm-up"], type=click.IntRange(0), default=2, show_default=True, help="Requests before."),
        ]
    )
    return command


@config_flags(OFFLINE_SECTIONS, without=NOT_OFFLINE)
@slo_flags
@load_flags
@click.command("serve")
@click.option("--api", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True, help="Which front door.")
@click.option("--address", metavar="HOST:PORT", help="Of that door; default: 127.0.0.1 and its usual port.")
@click.option("--api-key", envvar="RAYLINE_API_KEY", help="Bearer token.")
@click.option("--model", default="", help="Served name; default: the only model.")
@click.option("--server-pid", type=int, help="Report peak memory of this process and its descendants.")
@click.option(
    "--long-prompt-tokens",
    type=Positive,
    help="Instead: --concurrency endless streams, in their midst one prompt of so many tokens.",
)
@click.option(
    "--long-prompt-lead-s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to measure streams before and after it.",
)
@click.option("--compare-engine", metavar="MODEL", help="Load MODEL here, run the same load on the bare engine.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    api: str,
    address: str | None,
    api_key: str | None,
    model: str,
    server_pid: int | None,
    compare_engine: str | None,
    long_prompt_tokens: int | None,
    long_prompt_lead_s: float,
    as_json: bool,
    **values: Any,
) -> None:
    """Put a load on a running server, in a closed loop of callers or (--rate) an open loop of arrivals.

    The flags of the sections models, engine and parallel are those of the engine of --compare-engine.
    """
    target = make_target(api, address or DEFAULT_ADDRESS[api], model, api_key, values["temperature"])
    if long_prompt_tokens:
        report = asyncio.run(beside_long_prompt(target, values, long_prompt_tokens, long_prompt_lead_s))
        if as_json:
            click.echo(json.dumps(asdict(report)))
        else:
            Console().print(long_prompt_table(report))
        return
    slo = Slo(values["slo_ttft_ms"], values["slo_tpot_ms"], values["slo_e2e_ms"])
    with PeakMemory(server_pid) if server_pid else nullcontext() as memory:
        plan, served = asyncio.run(measure(target, values, slo))
    bare = compare(plan, compare_engine, values, slo) if compare_engine else None
    show(served, bare, memory.peak if memory else None, as_json)


def make_target(api: str, address: str, model: str, api_key: str | None, temperature: float) -> ServerTarget:
    """The client of one front door; the other's packages are not imported."""
    if api == "http":
        from rayline.deploy.bench.http_target import HttpTarget

        return HttpTarget(address, model, api_key, temperature)
    from rayline.deploy.bench.grpc_target import GrpcTarget

    return GrpcTarget(address, model, api_key, temperature)


async def measure(target: ServerTarget, values: dict[str, Any], slo: Slo) -> tuple[LoadPlan, LoadReport]:
    """Ask the server what it serves, fit the load to it, run it."""
    async with target:
        lengths = values["input_tokens"], values["output_tokens"]
        vocab_size = checked_vocab_size(await target.describe(), values["vocab_size"], *lengths)
        plan = LoadPlan(
            shape=Shape(*lengths, vocab_size, values["seed"]),
            requests=values["requests"],
            concurrency=values["concurrency"],
            rate_per_s=values["rate"],
            warm_up=values["warm_up"],
        )
        timelines = await plan.run_on(target)
    refuse_all_failed(timelines)
    return plan, load_report(timelines, slo)


async def beside_long_prompt(
    target: ServerTarget, values: dict[str, Any], prompt_tokens: int, lead_s: float
) -> LongPromptReport:
    """Streams of the usual shape, as many as there are callers, and one long prompt."""
    async with target:
        model = await target.describe()
        checked_vocab_size(model, None, prompt_tokens, LONG_OUTPUT_TOKENS)
        lengths = values["input_tokens"], values["output_tokens"]
        vocab_size = checked_vocab_size(model, values["vocab_size"], *lengths)
        shape = Shape(*lengths, vocab_size, values["seed"])
        return await run_long_prompt(target, LongPromptPlan(shape, values["concurrency"], prompt_tokens, lead_s))


def compare(plan: LoadPlan, model: str, values: dict[str, Any], slo: Slo) -> LoadReport:
    """The same load on an engine in this process, while the server idles.

    It gets the threads that a group of `rayline serve` has, which leaves one core to the router.
    """
    from rayline.deploy.commands.offline import load_model  # torch takes a second to import: not for `--help`

    options = given(values)
    ranks = options.get("tp", 1) * options.get("pp", 1)
    threads = max(1, (usable_cores() - 1) // ranks)
    usual = {"threads": threads, "decode_stretch": EngineSection().decode_stretch}
    with load_model(model, usual | options) as llm:
        timelines = plan.run_on_engine(llm.engine, values["temperature"])
    refuse_all_failed(timelines)
    return load_report(timelines, slo)


def show(served: LoadReport, bare: LoadReport | None, memory: Memory | None, as_json: bool) -> None:
    """Print one JSON object, or tables."""
    if as_json:
        found: dict[str, Any] = {"served": asdict(served), "peak_memory": asdict(memory) if memory else None}
        if bare:
            found |= {"engine": asdict(bare), "added": asdict(added(served, bare))}
        click.echo(json.dumps(found))
        return
    console = Console()
    console.print(load_table("server", served, memory))
    if bare:
        console.print(load_table("bare engine", bare, None), added_table(added(served, bare)))
