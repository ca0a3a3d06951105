"""`rayline status`: is a server well, who serves, and what?"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rayline.protos import inference_pb2 as pb
from rayline.protos.addresses import addresses_of
from rayline.protos.call_error import error_of_call
from rayline.protos.client import Client
from rayline.protos.errors import Unavailable

Status = health_pb2.HealthCheckResponse.ServingStatus


@click.command("status")
@click.option("--address", default="127.0.0.1:9000", show_default=True, metavar="HOST:PORT", help="gRPC address.")
@click.option("--api-key", envvar="RAYLINE_API_KEY", help="Bearer token.")
@click.option("--timeout-s", default=5.0, show_default=True, help="Seconds to wait for each answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(address: str, api_key: str | None, timeout_s: float, as_json: bool) -> int:
    """Show the health, the routers and the models of a running server. Exit status 1 unless all routers serve.

    --address may name several routers, with commas between them; those that they know of are asked, too.
    """
    named = addresses_of(address)
    with Client(named, api_key=api_key) as client:
        models = client.models(timeout_s).models
        known = {router.grpc_address: router.http_address for router in client.routers(timeout_s).routers}
    routers = known or dict.fromkeys(named, "")
    health = {router: health_of(router, timeout_s) for router in routers}
    if as_json:
        click.echo(json.dumps(as_object(routers, health, models)))
    else:
        for router, http in routers.items():
            click.echo(f"{router} is {health[router]}{f', HTTP at {http}' * bool(http)}")
        for model in models:
            click.echo(f"  {_line(model)}")
    return 0 if set(health.values()) == {"SERVING"} else 1


def health_of(router: str, timeout_s: float) -> str:
    """What one router says of itself: SERVING, NOT_SERVING... or UNREACHABLE, of one that does not answer in time."""
    with grpc.insecure_channel(router) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            refusal = error_of_call(error, router)
            if isinstance(refusal, Unavailable) or error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                return "UNREACHABLE"
            raise refusal from None
    return Status.Name(answer.status)


def as_object(routers: Mapping[str, str], health: Mapping[str, str], models: Sequence[pb.Model]) -> dict[str, object]:
    """What is shown, for JSON. All fields of a model are there, those of value 0 too."""
    return {
        "health": "SERVING" if set(health.values()) == {"SERVING"} else "NOT_SERVING",
        "routers": [{"address": at, "http_address": http, "health": health[at]} for at, http in routers.items()],
        "models": [
            {
                field.name: getattr(model, field.name)
                for field in pb.Model.DESCRIPTOR.fields
                if field.name != "created_s"
            }
            for model in models
        ],
    }


def _line(model: pb.Model) -> str:
    """One model in one line, whatever the width of the terminal."""
    groups = f"{model.groups} group{'s' * (model.groups != 1)}"
    numerics = f"numerics {model.numerics}, exact={str(model.exact).lower()}"
    queue = f"{model.running} running, {model.waiting} waiting"
    blocks = f"{model.free_blocks} of {model.total_blocks} KV blocks of {model.block_tokens} tokens free"
    return f"{model.name}: {groups}, context {model.max_model_len} tokens, {numerics}, {queue}, {blocks}"
