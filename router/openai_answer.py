"""Streams of events as OpenAI's answers: one JSON object, or server-sent chunks.

A chunk is put together from strings made once for the stream: only the new text is encoded for each token.
"""

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayline.protos.errors import InternalError, RaylineError
from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    PromptScored,
    Started,
    StreamEvent,
    Usage,
)
from rayline.router.http_errors import error_body

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


@dataclass(slots=True)
class Answer:
    """One choice as far as it has come."""

    text: list[str] = field(default_factory=list)
    logprobs: list[DeltaLogprob] = field(default_factory=list)
    finished: Finished | None = None


class Style(Protocol):
    """How one of the two APIs writes choices. The methods named *_chunk give the JSON text of a choice."""

    kind: str
    chunk_kind: str

    def opening_chunk(self, number: int) -> str | None: ...

    def delta_chunk(self, number: int, delta: Delta) -> str: ...

    def closing_chunk(self, number: int, finished: Finished) -> str: ...

    def choice(self, number: int, answer: Answer) -> dict[str, Any]: ...


async def whole(events: Numbered, style: Style, head: Head) -> dict[str, Any]:
    """The answer in one object. Raises the error of a stream that failed."""
    answers: dict[int, Answer] = {}
    async with aclosing(events):
        async for number, event in events:
            answer = answers.setdefault(number, Answer())
            if isinstance(event, Delta):
                answer.text.append(event.text)
                answer.logprobs.extend(event.logprobs)
            elif isinstance(event, Finished):
                answer.finished = event
            elif isinstance(event, Failed):
                raise event.error
    ordered = sorted(answers.items())
    usages = [answer.finished.usage for _, answer in ordered if answer.finished is not None]
    choices = [style.choice(number, answer) for number, answer in ordered]
    return head.fields(style.kind) | {"choices": choices, "usage": usage_json(usages)}


async def chunks(events: Numbered, style: Style, head: Head, include_usage: bool) -> AsyncGenerator[str, None]:
    """Server-sent events, each with the stream's event index as its id; an error is sent as one, then [DONE]."""
    usages: list[Usage] = []
    before = json.dumps(head.fields(style.chunk_kind))[:-1] + ', "choices": ['
    after = '], "usage": null}\n\n' if include_usage else "]}\n\n"
    index = 0
    try:
        async with aclosing(events):
            async for number, event in events:
                choice = _choice_chunk(style, number, event)
                if choice is not None:
                    yield f"id: {index}\ndata: {before}{choice}{after}"
                if isinstance(event, Finished):
                    usages.append(event.usage)
                index += 1
        if include_usage:
            yield f'id: {index - 1}\ndata: {before}], "usage": {json.dumps(usage_json(usages))}}}\n\n'
    except RaylineError as error:
        yield f"id: {index}\ndata: {json.dumps(error_body(error))}\n\n"
    except Exception as error:
        log.exception("%s failed", head.request_id)
        bug = InternalError(f"{type(error).__name__}: {error}")
        yield f"id: {index}\ndata: {json.dumps(error_body(bug))}\n\n"
    yield DONE


def _choice_chunk(style: Style, number: int, event: StreamEvent) -> str | None:
    """The choice's JSON; None for an event that shows nothing. Raises the error of a stream that failed."""
    match event:
        case Delta():
            return style.delta_chunk(number, event) if event.text or event.logprobs else None
        case Started():
            return style.opening_chunk(number)
        case Finished():
            return style.closing_chunk(number, event)
        case Failed():
            raise event.error
        case PromptScored() | ChoiceEnded():
            return None


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
    }
