"""Whether a stream is the undisturbed one, to the bit. Pure: transcripts in, complaints out."""

from collections.abc import Sequence
from dataclasses import dataclass

from rayline.deploy.chaos.transcript import Transcript
from rayline.protos.conversation import ToolCall
from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    FinishReason,
    PromptScored,
    Started,
    StreamEvent,
)
from rayline.router.collected import Collected, CollectedChoice


@dataclass(frozen=True, slots=True)
class ChoiceContent:
    """All that a client was told of one choice, however it was cut into events."""

    choice: int
    text: str
    reasoning: str
    token_ids: tuple[int, ...]
    logprobs: tuple[DeltaLogprob, ...]
    tool_calls: tuple[ToolCall, ...]
    ended: ChoiceEnded | None


@dataclass(frozen=True, slots=True)
class Content:
    """All that a client was told of one request, save names and times."""

    numerics: str
    prompt: tuple[DeltaLogprob, ...]
    choices: tuple[ChoiceContent, ...]
    reason: FinishReason | None
    prompt_tokens: int
    output_tokens: int
    exact: bool


def content_of(transcript: Transcript) -> Content:
    """Raises the error of a stream that failed."""
    found = Collected()
    for event in transcript.events:
        found.add(event)
    started, finished = found.started, found.finished
    return Content(
        numerics=started.numerics if started else "",
        prompt=found.prompt,
        choices=tuple(_choice(index, choice) for index, choice in sorted(found.choices.items())),
        reason=finished.reason if finished else None,
        prompt_tokens=finished.usage.prompt_tokens if finished else 0,
        output_tokens=finished.usage.output_tokens if finished else 0,
        exact=bool(started and started.exact and finished and finished.exact),
    )


def complaints(transcript: Transcript, reference: Content | None) -> tuple[str, ...]:
    """What is wrong with a stream: nothing, when it is well formed and says what `reference` says.

    A stream of a group that promises no exact bits, now or in the reference, is only asked to be well formed.
    """
    failure = transcript.failure()
    found = _form(transcript.events, is_failed=failure is not None)
    if failure is not None:
        return (*found, f"it failed: {failure.kind}: {failure.message}")
    if found or reference is None:
        return tuple(found)
    content = content_of(transcript)
    return tuple(_differences(content, reference)) if reference.exact else ()


def _form(events: Sequence[StreamEvent], is_failed: bool) -> list[str]:
    """Started, the prompt's scores, output of choices that go on, one end of each choice, one terminal event."""
    found: list[str] = []
    ends = [event for event in events if isinstance(event, Finished | Failed)]
    if len(ends) > 1 or (ends and events[-1] is not ends[0]):
        found.append(f"{len(ends)} terminal events, the last event is {type(events[-1]).__name__}")
    elif not ends and not is_failed:
        found.append("it ended without a terminal event")
    if sum(isinstance(event, Started) for event in events) > 1:
        found.append("it was started twice")
    if events and not isinstance(events[0], Started):
        found.append(f"it begins with {type(events[0]).__name__}")
    closed: set[int] = set()
    for event in events:
        if isinstance(event, ChoiceEnded):
            if event.choice in closed:
                found.append(f"choice {event.choice} ended twice")
            closed.add(event.choice)
        elif isinstance(event, Delta) and event.choice in closed:
            found.append(f"choice {event.choice} went on behind its end")
        elif isinstance(event, PromptScored) and any(isinstance(e, Delta) for e in events[: events.index(event)]):
            found.append("the prompt was scored behind the first output")
    return found


def _differences(content: Content, reference: Content) -> list[str]:
    """Where two contents part, in words."""
    found = []
    if not content.exact:
        found.append("it says that it is not exact")
    for field in ("numerics", "prompt", "reason", "prompt_tokens", "output_tokens"):
        mine, wanted = getattr(content, field), getattr(reference, field)
        if mine != wanted:
            found.append(f"{field} is {mine!r}, undisturbed {wanted!r}")
    if len(content.choices) != len(reference.choices):
        return [*found, f"{len(content.choices)} choices, undisturbed {len(reference.choices)}"]
    for mine, wanted in zip(content.choices, reference.choices, strict=True):
        if mine.token_ids != wanted.token_ids:
            found.append(f"choice {mine.choice}: {_parting(mine.token_ids, wanted.token_ids)}")
        elif mine != wanted:
            fields = [f for f in ChoiceContent.__slots__ if getattr(mine, f) != getattr(wanted, f)]
            found.append(f"choice {mine.choice}: other {', '.join(fields)}")
    return found


def _parting(ids: Sequence[int], wanted: Sequence[int]) -> str:
    """Where two runs of ids part."""
    same = next((i for i, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
    parts = f"{ids[same : same + 3]}, undisturbed {wanted[same : same + 3]}"
    return f"{len(ids)} ids, undisturbed {len(wanted)}; they part at {same}: {parts}"


def _choice(index: int, choice: CollectedChoice) -> ChoiceContent:
    return ChoiceContent(
        choice=index,
        text=choice.text,
        reasoning=choice.reasoning,
        token_ids=tuple(choice.token_ids),
        logprobs=tuple(choice.logprobs),
        tool_calls=choice.tool_calls,
        ended=choice.ended,
    )
