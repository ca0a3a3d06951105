"""A whole answer, collected from the events of its stream: for HTTP, the command line and the offline LLM alike."""

from dataclasses import dataclass, field

from rayline.protos.conversation import ToolCall
from rayline.protos.events import (
    ChoiceEnded,
    Delta,
    DeltaLogprob,
    Failed,
    Finished,
    PromptScored,
    Started,
    StreamEvent,
)


@dataclass(slots=True)
class CollectedChoice:
    """One choice as far as it has come."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[DeltaLogprob] = field(default_factory=list)
    calls: dict[int, ToolCall] = field(default_factory=dict)
    ended: ChoiceEnded | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(call for _, call in sorted(self.calls.items()))

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.thoughts.append(delta.reasoning)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        for piece in delta.tool_calls:
            call = self.calls.get(piece.index, ToolCall("", "", ""))
            self.calls[piece.index] = ToolCall(
                call.id or piece.id, call.name or piece.name, call.arguments + piece.arguments
            )


@dataclass(slots=True)
class Collected:
    """One stream as far as it has come. prompt: the logprobs of its tokens, where asked for."""

    started: Started | None = None
    prompt: tuple[DeltaLogprob, ...] = ()
    choices: dict[int, CollectedChoice] = field(default_factory=dict)
    finished: Finished | None = None

    def add(self, event: StreamEvent) -> None:
        """Raises the error of a stream that failed."""
        match event:
            case Delta():
                self.choices.setdefault(event.choice, CollectedChoice()).add(event)
            case ChoiceEnded():
                self.choices.setdefault(event.choice, CollectedChoice()).ended = event
            case Started():
                self.started = event
            case PromptScored():
                self.prompt = event.tokens
            case Finished():
                self.finished = event
            case Failed():
                raise event.error
