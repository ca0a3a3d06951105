"""What a parser has found out so far: prose, and calls in pieces."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rayline.protos.events import ToolCallDelta

IdStyle = Literal["openai", "mistral"]


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a piece of text brought. text: for the reader; reasoning: thought before; calls: pieces of tool calls."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class Output:
    """Collects what a parser tells. Calls beyond `max_calls` are dropped, their arguments too."""

    def __init__(
        self,
        tools: Mapping[str, Mapping[str, Any]],
        call_ids: "CallIds",
        hidden: frozenset[str] = frozenset(),
        max_calls: int | None = None,
    ):
        """`tools`: JSON schema of the parameters of each function by name. `hidden`: see Source."""
        self.tools = tools
        self.calls = 0
        self._call_ids = call_ids
        self._hidden = hidden
        self._max_calls = max_calls
        self._text: list[str] = []
        self._pieces: list[ToolCallDelta] = []

    def say(self, text: str) -> None:
        for name in self._hidden:
            text = text.replace(name, "")
        self._text.append(text)

    def begin(self, name: str) -> None:
        """A call begins; its arguments follow."""
        if self._takes(self.calls):
            self._pieces.append(ToolCallDelta(self.calls, self._call_ids.of(self.calls), name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the last call's arguments."""
        if text and self._takes(self.calls - 1):
            self._pieces.append(ToolCallDelta(self.calls - 1, arguments=text))

    def drain(self) -> Parsed:
        """What has been told since the last time, the pieces of one call joined."""
        parsed = Parsed("".join(self._text), "", tuple(_joined(self._pieces)))
        self._text.clear()
        self._pieces.clear()
        return parsed

    def _takes(self, index: int) -> bool:
        return self._max_calls is None or index < self._max_calls


@dataclass(frozen=True, slots=True)
class CallIds:
    """Ids of the calls of one choice: a function of the prompt, so a stream that is run again names them alike.

    A conversation that goes on has another prompt, so its calls have ids of their own.
    """

    prompt_ids: Sequence[int] = ()
    choice: int = 0
    style: IdStyle = "openai"

    def of(self, index: int) -> str:
        """ "call_" and 24 characters, or the 9 that Mistral's templates insist on."""
        digest = hashlib.sha256(json.dumps([list(self.prompt_ids), self.choice, index]).encode()).hexdigest()
        return digest[:9] if self.style == "mistral" else f"call_{digest[:24]}"


def _joined(pieces: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    joined: list[ToolCallDelta] = []
    for piece in pieces:
        if joined and joined[-1].index == piece.index:
            last = joined.pop()
            piece = ToolCallDelta(last.index, last.id, last.name, last.arguments + piece.arguments)
        joined.append(piece)
    return joined
