"""`rayline status`: is a server well, and what does it serve?"""

import json
from dataclasses import asdict

import click

from rayline.deploy.client import Client, ModelStatus


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
        for model in models:
            click.echo(f"  {_line(model)}")
    return 0 if health == "SERVING" else 1


def _line(model: ModelStatus) -> str:
    """One model in one line, whatever the width of the terminal."""
    groups = f"{model.groups} group{'s' * (model.groups != 1)}"
    numerics = f"numerics {model.numerics}, exact={str(model.exact).lower()}"
    queue = f"{model.running} running, {model.waiting} waiting"
    blocks = f"{model.free_blocks} of {model.total_blocks} KV blocks of {model.block_tokens} tokens free"
    return f"{model.name}: {groups}, context {model.max_model_len} tokens, {numerics}, {queue}, {blocks}"
