"""`rayline status`: is a server well, and what does it serve?"""

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from rayline.deploy.client import Client


@click.command("status")
@click.option("--address", default="127.0.0.1:9000", show_default=True, metavar="HOST:PORT", help="gRPC address.")
@click.option("--api-key", envvar="RAYLINE_API_KEY", help="Bearer token.")
@click.option("--timeout-s", default=5.0, show_default=True, help="Seconds to wait for each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(address: str, api_key: str | None, timeout_s: float, as_json: bool) -> int:
    """Show the health and the models of a running server. Exit status 1 unless it is serving."""
    with Client(address, api_key) as client:
        health = client.health(timeout_s)
        models = client.models(timeout_s)
    if as_json:
        click.echo(json.dumps({"address": address, "health": health, "models": [asdict(model) for model in models]}))
    else:
        click.echo(f"{address} is {health}")
        table = Table("model", "groups", "context", "numerics", "exact", "running", "waiting", "KV blocks free")
        for model in models:
            exact, free = str(model.exact).lower(), f"{model.free_blocks} of {model.total_blocks}"
            counts = (str(n) for n in (model.groups, model.max_model_len))
            queue = (str(n) for n in (model.running, model.waiting))
            table.add_row(model.name, *counts, model.numerics, exact, *queue, free)
        Console().print(table)
    return 0 if health == "SERVING" else 1
