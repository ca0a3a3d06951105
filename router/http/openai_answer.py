"""Streams of events as OpenAI's answers: one JSON object, or server-sent chunks.

A chunk is put together from strings made once for the stream: only the new text is encoded for each token.
"""

import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayline.protos.errors import InternalError, RaylineError
from rayline.protos.events import ChoiceEnded, Delta, Failed, Finished, PromptScored, Started, StreamEvent, Usage
from rayline.protos.position import Reading
from rayline.router.collected import Collected, CollectedChoice
from rayline.router.http.errors import error_body
from rayline.router.http.last_event import event_id

Numbered = AsyncGenerator[tuple[int, StreamEvent], None]
log = logging.getLogger("rayline.router")
DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of an answer begin with."""

    request_id: str
    created_s: int
    model: str
    fingerprint: str

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True)
class Shown:
    """What an answer shows beside its text. choices: of each prompt. echoed: what each choice's text begins with."""

    choices: int = 1
    token_ids: bool = False
    tokens_as_ids: bool = False  # logprobs name tokens as "token_id:5", which tells those of equal text apart
    usage: bool = False
    continuous_usage: bool = False
    echoed: str = ""


class Style(Protocol):
    """How one of the two APIs writes choices. The methods named *_chunk give the JSON text of a choice.

    number: of a choice, counted over all prompts of the request.
    """

    kind: str
    chunk_kind: str

    def opening_chunks(self, numbers: range, started: Started) -> list[str]: ...

    def scored_chunks(self, numbers: range, scored: PromptScored) -> list[str]: ...

    def delta_chunk(self, number: int, delta: Delta) -> str | None: ...

    def closing_chunk(self, number: int, ended: ChoiceEnded) -> str: ...

    def choice(self, number: int, choice: CollectedChoice, of: Collected) -> dict[str, Any]: ...

    def extra(self, answers: list[Collected]) -> dict[str, Any]: ...


async def whole(events: Numbered, style: Style, head: Head, shown: Shown) -> dict[str, Any]:
    """The answer in one object. Raises the error of a stream that failed."""
    answers: dict[int, Collected] = {}
    async with aclosing(events):
        async for prompt, event in events:
            answers.setdefault(prompt, Collected()).add(event)
    choices = [
        style.choice(prompt * shown.choices + number, choice, answer)
        for prompt, answer in sorted(answers.items())
        for number, choice in sorted(answer.choices.items())
    ]
    ordered = [answer for _, answer in sorted(answers.items())]
    usages = [answer.finished.usage for answer in ordered if answer.finished is not None]
    return head.fields(style.kind) | {"choices": choices, "usage": usage_json(usages)} | style.extra(ordered)


async def chunks(
    events: Numbered, style: Style, head: Head, shown: Shown, readings: Sequence[Reading]
) -> AsyncGenerator[str, None]:
    """Server-sent events: what is new to a client who has read as far as `readings`, one for each prompt, say.

    The id comes with the last chunk of an event. An error is sent as a chunk without one, then [DONE].
    """
    counted = RunningUsage()
    before = "data: " + json.dumps(head.fields(style.chunk_kind))[:-1] + ', "choices": ['
    after = '], "usage": null}\n\n' if shown.usage else "]}\n\n"
    is_new = True
    try:
        async with aclosing(events):
            async for prompt, event in events:
                counted.add(prompt, event)
                if shown.continuous_usage:
                    after = f'], "usage": {json.dumps(usage_json(counted.usages()))}}}\n\n'
                choices = _choice_chunks(style, prompt * shown.choices, shown.choices, event)
                is_new = readings[prompt].take(event) is not None
                if choices and is_new:
                    *others, last = (f"{before}{choice}{after}" for choice in choices)
                    yield f"{''.join(others)}id: {event_id(readings)}\n{last}"
        if shown.usage and is_new:
            usage = json.dumps(usage_json(counted.usages()))
            yield f'id: {event_id(readings)}\n{before}], "usage": {usage}}}\n\n'
    except RaylineError as error:
        yield f"data: {json.dumps(error_body(error))}\n\n"
    except Exception as error:
        log.exception("%s failed", head.request_id)
        bug = InternalError(f"{type(error).__name__}: {error}")
        yield f"data: {json.dumps(error_body(bug))}\n\n"
    yield DONE


def _choice_chunks(style: Style, first: int, count: int, event: StreamEvent) -> list[str]:
    """The JSON of the choices that an event shows. Raises the error of a stream that failed."""
    match event:
        case Delta():
            chunk = style.delta_chunk(first + event.choice, event)
            return [] if chunk is None else [chunk]
        case Started():
            return style.opening_chunks(range(first, first + count), event)
        case PromptScored():
            return style.scored_chunks(range(first, first + count), event)
        case ChoiceEnded():
            return [style.closing_chunk(first + event.choice, event)]
        case Finished():
            return []
        case Failed():
            raise event.error


@dataclass(slots=True)
class RunningUsage:
    """Usage as far as a stream has come, prompt by prompt; what a finished one took is known exactly."""

    _prompt_tokens: dict[int, int] = field(default_factory=dict)
    _output_tokens: dict[int, int] = field(default_factory=dict)
    _finished: dict[int, Usage] = field(default_factory=dict)

    def add(self, prompt: int, event: StreamEvent) -> None:
        match event:
            case Started():
                self._prompt_tokens[prompt] = event.prompt_tokens
            case Delta() if not event.is_echo:
                self._output_tokens[prompt] = self._output_tokens.get(prompt, 0) + len(event.token_ids)
            case Finished():
                self._finished[prompt] = event.usage

    def usages(self) -> list[Usage]:
        return [
            self._finished.get(prompt) or Usage(tokens, self._output_tokens.get(prompt, 0))
            for prompt, tokens in self._prompt_tokens.items()
        ]


def fingerprint(first: StreamEvent) -> str:
    """OpenAI's `system_fingerprint`: the numerics class, marked where equal requests may not get equal bits."""
    if not isinstance(first, Started):
        return ""
    return first.numerics if first.exact else f"{first.numerics}-inexact"


async def after_first(events: Numbered, first: tuple[int, StreamEvent]) -> Numbered:
    """The stream whose first event was read already, to know that the request is accepted."""
    async with aclosing(events):
        yield first
        async for event in events:
            yield event


def usage_json(usages: list[Usage]) -> dict[str, Any]:
    """The sum over all choices' requests."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    output = sum(usage.output_tokens for usage in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages)},
        "completion_tokens_details": {"reasoning_tokens": sum(usage.reasoning_tokens for usage in usages)},
    }
