"""`rayline generate`: one prompt, one answer."""

import json
import sys
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from rayline.deploy.commands.flags import config_flags
from rayline.deploy.commands.request_flags import params_from, request_flags
from rayline.deploy.commands.source import NOT_OFFLINE, OFFLINE_SECTIONS, open_source
from rayline.protos.events import Delta, Failed, Finished, Started, StreamEvent
from rayline.protos.types import Spec


@config_flags(OFFLINE_SECTIONS, without=NOT_OFFLINE)
@request_flags
@click.command("generate")
@click.argument("prompt", required=False)
def command(
    prompt: str | None, address: str | None, api_key: str | None, model: str, as_json: bool, **values: Any
) -> None:
    """Continue PROMPT (default: standard input) and print the text as it comes.

    Loads the model in this process, or asks the server at --address.
    """
    params = params_from(values)
    text = sys.stdin.read() if prompt is None else prompt
    name = model if address else ""
    with open_source(address, api_key, model, values) as stream:
        events = stream(Spec(f"cli-{uuid.uuid4().hex}", name, params, prompt=text))
        if as_json:
            click.echo(json.dumps(answer(events)))
        else:
            print_text(events)


def print_text(events: Iterable[StreamEvent]) -> str:
    """Print a stream's text as it comes, then a line end; the whole text is returned. Raises its failure."""
    parts = []
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Delta):
            parts.append(event.text)
            click.echo(event.text, nl=False)
            sys.stdout.flush()
    click.echo()
    return "".join(parts)


def answer(events: Iterable[StreamEvent]) -> dict[str, Any]:
    """A whole stream as one JSON object. Raises its failure."""
    found: dict[str, Any] = {}
    deltas: list[Delta] = []
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Delta):
            deltas.append(event)
        elif isinstance(event, Started):
            found |= {"request_id": event.request_id, "numerics": event.numerics, "exact": event.exact}
        elif isinstance(event, Finished):
            found |= _ending(event)
    found["text"] = "".join(delta.text for delta in deltas)
    found["token_ids"] = [token for delta in deltas for token in delta.token_ids]
    logprobs = [asdict(logprob) for delta in deltas for logprob in delta.logprobs]
    return found | ({"logprobs": logprobs} if logprobs else {})


def _ending(event: Finished) -> dict[str, Any]:
    return {
        "finish_reason": event.reason.value,
        "stop_reason": event.stop_reason,
        "usage": asdict(event.usage),
        "overhead": asdict(event.overhead) if event.overhead else None,
    }
