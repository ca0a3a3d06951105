"""`rayline generate`: one prompt, its answers."""

import json
import sys
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from rayline.deploy.commands.flags import config_flags
from rayline.deploy.commands.request_flags import options_from, params_from, request_flags
from rayline.deploy.commands.source import NOT_OFFLINE, OFFLINE_SECTIONS, open_source
from rayline.protos.errors import InvalidRequest
from rayline.protos.events import Delta, Failed, StreamEvent
from rayline.protos.types import Spec
from rayline.router.collected import Collected, CollectedChoice


@config_flags(OFFLINE_SECTIONS, without=NOT_OFFLINE)
@request_flags
@click.command("generate")
@click.argument("prompt", required=False)
@click.option("--token-ids", help="The prompt as token ids, with commas between them.")
@click.option("--suffix", help="Text after the gap that the output fills.")
def command(
    prompt: str | None,
    token_ids: str | None,
    suffix: str | None,
    address: str | None,
    api_key: str | None,
    model: str,
    as_json: bool,
    **values: Any,
) -> None:
    """Continue PROMPT (default: standard input) and print the text as it comes.

    Loads the model in this process, or asks the server at --address. Several answers are printed one after the other.
    """
    ids = None if token_ids is None else _ids(token_ids)
    text = sys.stdin.read() if prompt is None and ids is None else prompt
    spec = Spec(
        f"cli-{uuid.uuid4().hex}",
        model if address else "",
        params_from(values),
        prompt=text,
        prompt_ids=ids,
        suffix=suffix,
        return_prompt_ids=as_json,
        **options_from(values),
    )
    spec.check()
    with open_source(address, api_key, model, values) as stream:
        if as_json:
            click.echo(json.dumps(as_object(collect(stream(spec)))))
        elif spec.params.n > 1:
            print_choices(collect(stream(spec)))
        else:
            print_text(stream(spec))


def print_text(events: Iterable[StreamEvent]) -> Collected:
    """Print a stream's one choice as it comes, thoughts and calls too, then a line end. Raises its failure."""
    found = Collected()
    for event in events:
        found.add(event)
        if isinstance(event, Delta):
            called = "".join(f"\n{call.name}" * bool(call.name) + call.arguments for call in event.tool_calls)
            click.echo(event.reasoning + event.text + called, nl=False)
            sys.stdout.flush()
    click.echo()
    return found


def collect(events: Iterable[StreamEvent]) -> Collected:
    """A whole stream. Raises its failure."""
    found = Collected()
    for event in events:
        found.add(event)
        if isinstance(event, Failed):
            break
    return found


def print_choices(found: Collected) -> None:
    """All choices, each under its number and, where choices were ranked, its score."""
    for number, choice in sorted(found.choices.items()):
        score = "" if choice.ended is None or choice.ended.score is None else f" score {choice.ended.score:.4f}"
        click.echo(f"[{number}]{score}\n{choice.text}")


def as_object(found: Collected) -> dict[str, Any]:
    """All that a stream brought, for JSON. The fields of choice 0 are at the top, too."""
    result: dict[str, Any] = {}
    if found.started is not None:
        result |= {
            "request_id": found.started.request_id,
            "numerics": found.started.numerics,
            "exact": found.started.exact,
            "prompt_ids": found.started.prompt_ids,
        }
    if found.prompt:
        result["prompt_logprobs"] = [asdict(entry) for entry in found.prompt]
    choices = [{"index": number, **_choice(choice)} for number, choice in sorted(found.choices.items())]
    if choices:
        result |= {name: value for name, value in choices[0].items() if name != "index"}
    result["choices"] = choices
    if found.finished is not None:
        overhead = found.finished.overhead
        result |= {"usage": asdict(found.finished.usage), "overhead": asdict(overhead) if overhead else None}
    return result


def _choice(choice: CollectedChoice) -> dict[str, Any]:
    """What a choice has; what was not asked for, or is not there, is left out."""
    result: dict[str, Any] = {"text": choice.text, "token_ids": choice.token_ids}
    optional: dict[str, Any] = {
        "logprobs": [asdict(entry) for entry in choice.logprobs],
        "reasoning": choice.reasoning,
        "tool_calls": [asdict(call) for call in choice.tool_calls],
    }
    if (ended := choice.ended) is not None:
        result |= {"finish_reason": ended.reason.value, "stop_reason": ended.stop_reason}
        if ended.score is not None:
            result["score"] = ended.score
    return result | {name: value for name, value in optional.items() if value}


def _ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError:
        raise InvalidRequest(f"token_ids = {text!r}: allowed are numbers with commas", field="token_ids") from None
