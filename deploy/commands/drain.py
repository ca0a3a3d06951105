"""`rayline drain`: empty a group or a node of a running server; its streams go on in other groups."""

import json
from dataclasses import asdict

import click

from rayline.deploy.operator_client import OperatorClient
from rayline.router.operations import Drained, GroupState


@click.command("drain")
@click.argument("target", required=False)
@click.option("--address", default="127.0.0.1:9000", show_default=True, metavar="HOST:PORT", help="gRPC address.")
@click.option("--operator-key", envvar="RAYLINE_OPERATOR_KEY", help="Bearer token; needed from other machines.")
@click.option(
    "--timeout-s", default=30.0, show_default=True, help="Seconds for streams to move; then the group ends anyway."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(target: str | None, address: str, operator_key: str | None, timeout_s: float, as_json: bool) -> int:
    """Move the streams of TARGET to other groups and end it.

    TARGET is a group, in whose place a new one is started, or a node (Ray's id, address or host name), where nothing
    is placed any more. Without TARGET the groups are listed. Exit status 1 if streams were left when time was up:
    they are lost with their group and go on as after any loss.
    """
    with OperatorClient(address, operator_key) as client:
        if target is None:
            groups = client.groups()
            lines = [_line(group) for group in groups]
            answer: dict[str, object] = {"address": address, "groups": [asdict(group) for group in groups]}
            left = 0
        else:
            drained = client.drain(target, timeout_s)
            lines = [_drained_line(group) for group in drained] or [f"{target} holds no group; nothing is placed there"]
            answer = {"address": address, "target": target, "drained": [asdict(group) for group in drained]}
            left = sum(group.streams_left for group in drained)
    for line in [json.dumps(answer)] if as_json else lines:
        click.echo(line)
    return 1 if left else 0


def _line(group: GroupState) -> str:
    state = "draining" if group.draining else "serving"
    nodes = ", ".join(node[:12] for node in group.nodes)
    return f"{group.group_id} of {group.model}: {state}, {group.running} running, {group.waiting} waiting, on {nodes}"


def _drained_line(group: Drained) -> str:
    end = f"{group.streams_left} were left" if group.streams_left else "all moved"
    return f"{group.group_id} ended after {group.seconds:.2f} s: {group.streams} streams, {end}"
