"""A conversation: what a chat request brings before its template has made one prompt of it."""

import re
from dataclasses import dataclass
from typing import Literal

from rayline.protos.errors import InvalidRequest, out_of_range

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # what every notation of calls can hold

ToolMode = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the assistant made. `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation. `reasoning`: what the assistant thought before it answered."""

    role: str
    content: str
    name: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""  # of the call that a tool's turn answers


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call. `parameters` is a JSON schema as text; strict: calls must satisfy it."""

    name: str
    description: str = ""
    parameters: str = "{}"
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called: `name` with mode "named" alone."""

    mode: ToolMode = "auto"
    name: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, and how the chat template lays them out.

    add_generation_prompt: end the prompt where the assistant speaks. continue_final_message: leave the last message
    open, so that the output continues it. template_args: JSON object of further template variables.
    parallel_tool_calls: several calls may be made in one turn.
    """

    messages: tuple[ChatMessage, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_args: str = "{}"

    def check(self) -> None:
        """Raise InvalidRequest for what contradicts itself."""
        names = [tool.name for tool in self.tools]
        if wrong := [name for name in names if not FUNCTION_NAME.fullmatch(name)]:
            raise out_of_range("tools", wrong[0], "names of 1 to 128 letters, digits, dots, hyphens and underscores")
        if not self.messages:
            raise InvalidRequest("messages is empty: at least one message must be given", field="messages")
        if self.add_generation_prompt and self.continue_final_message:
            raise InvalidRequest(
                "continue_final_message = true needs add_generation_prompt = false: the last message stays open",
                field="continue_final_message",
            )
        if len(set(names)) < len(names):
            raise InvalidRequest(f"tools = {names}: each name may be given once", field="tools")
        if self.tool_choice.name and self.tool_choice.mode != "named":
            name, mode = self.tool_choice.name, self.tool_choice.mode
            raise InvalidRequest(
                f"tool_choice.name = {name!r} cannot be combined with mode = {mode!r}", field="tool_choice"
            )
        if self.tool_choice.mode in ("required", "named") and not names:
            raise InvalidRequest(f"tool_choice = {self.tool_choice.mode!r} needs tools", field="tool_choice")
        if self.tool_choice.mode == "named" and self.tool_choice.name not in names:
            raise InvalidRequest(
                f"tool_choice = {self.tool_choice.name!r} is not among the tools {names}", field="tool_choice"
            )
