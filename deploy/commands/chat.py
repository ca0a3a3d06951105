"""`rayline chat`: a conversation, turn by turn."""

import json
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import click

from rayline.deploy.commands.flags import config_flags
from rayline.deploy.commands.generate import answer, print_text
from rayline.deploy.commands.request_flags import params_from, request_flags
from rayline.deploy.commands.source import NOT_OFFLINE, OFFLINE_SECTIONS, open_source
from rayline.protos.conversation import ChatMessage, Conversation
from rayline.protos.types import Spec

PROMPT = "> "


@config_flags(OFFLINE_SECTIONS, without=NOT_OFFLINE)
@request_flags
@click.command("chat")
@click.argument("message", required=False)
@click.option("--system", help="What the system message says.")
def command(
    message: str | None,
    system: str | None,
    address: str | None,
    api_key: str | None,
    model: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Talk to a model: one turn a line of standard input, or MESSAGE alone.

    The conversation ends with the input (Ctrl-D). Loads the model in this process, or asks the server
    at --address.
    """
    params = params_from(values)
    name = model if address else ""
    history = [ChatMessage("system", system)] if system is not None else []
    with open_source(address, api_key, model, values) as stream:
        for turn in [message] if message is not None else turns():
            history.append(ChatMessage("user", turn))
            events = stream(Spec(f"cli-{uuid.uuid4().hex}", name, params, conversation=Conversation(tuple(history))))
            if as_json:
                result = answer(events)
                click.echo(json.dumps(result))
                text = str(result["text"])
            else:
                text = print_text(events)
            history.append(ChatMessage("assistant", text))


def turns() -> Iterator[str]:
    """Lines of standard input that say something; a person at a terminal is asked for each."""
    while True:
        if sys.stdin.isatty():
            click.echo(PROMPT, nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")
