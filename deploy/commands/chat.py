"""`rayline chat`: a conversation, turn by turn."""

import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from rayline.deploy.commands.flags import config_flags
from rayline.deploy.commands.generate import as_object, collect, print_choices, print_text
from rayline.deploy.commands.request_flags import options_from, params_from, request_flags, text_or_file
from rayline.deploy.commands.source import NOT_OFFLINE, OFFLINE_SECTIONS, open_source
from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolChoice, ToolMode
from rayline.protos.errors import InvalidRequest
from rayline.protos.openai_chat import ToolBody
from rayline.protos.types import Spec
from rayline.router.collected import Collected

PROMPT = "> "
MODES: dict[str, ToolMode] = {"auto": "auto", "none": "none", "required": "required"}


@config_flags(OFFLINE_SECTIONS, without=NOT_OFFLINE)
@request_flags
@click.command("chat")
@click.argument("message", required=False)
@click.option("--system", help="What the system message says.")
@click.option("--tools", help="Functions the model may call, a JSON list as OpenAI has it; @FILE reads it from a file.")
@click.option("--tool-choice", default="auto", show_default=True, help="auto, none, required or a function's name.")
@click.option("--template-args", default="{}", help="Further variables of the chat template, a JSON object.")
def command(
    message: str | None,
    system: str | None,
    tools: str | None,
    tool_choice: str,
    template_args: str,
    address: str | None,
    api_key: str | None,
    model: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Talk to a model: one turn a line of standard input, or MESSAGE alone.

    The conversation ends with the input (Ctrl-D). Loads the model in this process, or asks the server
    at --address. Of several answers the first goes on.
    """
    empty = Conversation((), _tools(tools), _choice(tool_choice), template_args=template_args)
    plain = Spec("", model if address else "", params_from(values), return_prompt_ids=as_json, **options_from(values))
    history = [ChatMessage("system", system)] if system is not None else []
    with open_source(address, api_key, model, values) as stream:
        for turn in [message] if message is not None else turns():
            history.append(ChatMessage("user", turn))
            chat = replace(empty, messages=tuple(history))
            spec = replace(plain, request_id=f"cli-{uuid.uuid4().hex}", conversation=chat)
            spec.check()
            if as_json:
                found = collect(stream(spec))
                click.echo(json.dumps(as_object(found)))
            elif spec.params.n > 1:
                print_choices(found := collect(stream(spec)))
            else:
                found = print_text(stream(spec))
            history.append(_turn(found))


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


def _turn(found: Collected) -> ChatMessage:
    said = found.choices[0]
    return ChatMessage("assistant", said.text, reasoning=said.reasoning, tool_calls=said.tool_calls)


def _tools(text: str | None) -> tuple[Tool, ...]:
    if text is None:
        return ()
    try:
        bodies = TypeAdapter(list[ToolBody]).validate_json(text_or_file(text))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise InvalidRequest(f"tools {where}: {fault['msg']}", field="tools") from None
    return tuple(body.tool() for body in bodies)


def _choice(text: str) -> ToolChoice:
    return ToolChoice(MODES[text]) if text in MODES else ToolChoice("named", text)
