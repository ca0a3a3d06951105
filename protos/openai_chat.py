"""The bodies of /v1/chat/completions and /tokenize: conversations with tools."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import model_validator

from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolCall, ToolChoice
from rayline.protos.errors import InvalidRequest, out_of_range
from rayline.protos.openai import NEUTRAL, Allowed, Body
from rayline.protos.openai_sampling import SamplingBody
from rayline.protos.types import MAX_LOGPROBS, Spec

NEUTRAL_CHAT: dict[str, Allowed] = {
    **NEUTRAL,
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "include_reasoning": (True,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "documents": ([],),
}
NEUTRAL_MESSAGE: dict[str, Allowed] = {"refusal": (), "annotations": ([],), "audio": (), "function_call": ()}


OF_CHATS = {"tools", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"}  # in /tokenize
OF_PROMPTS = {"add_special_tokens"}


class TextPart(Body):
    """A piece of a message; only text is served."""

    type: str
    text: str

    @model_validator(mode="after")
    def only_text(self) -> "TextPart":
        if self.type != "text":
            raise InvalidRequest(f"messages: content type = {self.type!r}: allowed is 'text'", field="messages")
        return self


class CalledBody(Body):
    """What a tool call calls."""

    name: str
    arguments: str = "{}"


class ToolCallBody(Body):
    """A call in a turn of the assistant's."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledBody
    index: int | None = None  # of clients that send back what they collected from deltas


class MessageBody(Body):
    """One turn. `content` may come in parts, whose texts are joined; a turn of tool calls needs none."""

    neutral = NEUTRAL_MESSAGE

    role: str
    content: str | list[TextPart] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None

    def message(self) -> ChatMessage:
        parts = self.content if isinstance(self.content, list) else []
        return ChatMessage(
            self.role,
            self.content if isinstance(self.content, str) else "".join(part.text for part in parts),
            name=self.name or "",
            reasoning=self.reasoning or self.reasoning_content or "",
            tool_calls=tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ()),
            tool_call_id=self.tool_call_id or "",
        )


class FunctionBody(Body):
    """A function the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """A tool; only functions are served."""

    type: Literal["function"]
    function: FunctionBody

    def tool(self) -> Tool:
        function = self.function
        parameters = json.dumps(function.parameters or {})
        return Tool(function.name, function.description or "", parameters, bool(function.strict))


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


ToolChoiceBody = Literal["none", "auto", "required"] | NamedTool


class ChatCompletionBody(SamplingBody):
    """POST /v1/chat/completions."""

    neutral = NEUTRAL_CHAT

    messages: list[MessageBody]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolBody] | None = None
    tool_choice: ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    echo: bool | None = None

    @property
    def echoed(self) -> str:
        return self.messages[-1].message().content if self.echo and self.messages else ""

    def spec(self, request_id: str) -> Spec:
        """Raises InvalidRequest for top_logprobs without logprobs or out of range, and for an echo of nothing."""
        if self.echo and not self.continue_final_message:
            raise InvalidRequest(
                "echo = True needs continue_final_message = true: the answer begins with the message it goes on with",
                field="echo",
            )
        top = self.top_logprobs or 0
        if top and not self.logprobs:
            raise InvalidRequest(f"top_logprobs = {top} needs logprobs = true", field="top_logprobs")
        if not 0 <= top <= MAX_LOGPROBS:
            raise out_of_range("top_logprobs", top, f"0 to {MAX_LOGPROBS}")
        wanted = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.reasoning_effort == "none" and self.thinking_budget is None:
            self.thinking_budget = 0
        return Spec(
            request_id,
            self.model,
            self.params(wanted, top if self.logprobs else None),
            conversation=conversation_of(
                self.messages,
                self.tools or (),
                _tool_choice(self.tool_choice),
                self._template_args(),
                add_generation_prompt=self.add_generation_prompt,
                continue_final_message=bool(self.continue_final_message),
                parallel_tool_calls=self.parallel_tool_calls is not False,
            ),
            **self.options(),
        )

    def _template_args(self) -> dict[str, Any]:
        """Templates that know of effort (gpt-oss) read reasoning_effort, those that can do without (Qwen 3)
        enable_thinking."""
        given = self.chat_template_kwargs or {}
        if self.reasoning_effort is None:
            return given
        effort: dict[str, Any] = {"reasoning_effort": self.reasoning_effort}
        if self.reasoning_effort == "none":
            effort["enable_thinking"] = False
        return effort | given


class TokenizeBody(Body):
    """POST /tokenize, as vLLM has it: a prompt or messages."""

    model: str = ""
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    tools: list[ToolBody] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None

    def conversation(self) -> Conversation | None:
        """None for a prompt. Raises InvalidRequest unless exactly one of prompt and messages is given, and for what
        belongs to the other."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("exactly one of prompt and messages must be given", field="prompt")
        form, others = ("prompt", OF_CHATS) if self.messages is None else ("messages", OF_PROMPTS)
        given = self.model_dump(include=others, exclude_none=True, exclude_unset=True)
        if strange := sorted(field for field, value in given.items() if value):
            raise InvalidRequest(f"{strange[0]} cannot be combined with {form}", field=strange[0])
        if self.messages is None:
            return None
        return conversation_of(
            self.messages,
            self.tools or (),
            ToolChoice(),
            self.chat_template_kwargs or {},
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=bool(self.continue_final_message),
        )


def conversation_of(
    messages: Sequence[MessageBody],
    tools: Sequence[ToolBody],
    tool_choice: ToolChoice,
    template_args: dict[str, Any],
    *,
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    parallel_tool_calls: bool = True,
) -> Conversation:
    """Raises InvalidRequest for a turn that says nothing."""
    for number, message in enumerate(messages):
        if message.content is None and not message.tool_calls:
            raise InvalidRequest(f"messages.{number}.content is missing", field="messages")
    return Conversation(
        tuple(message.message() for message in messages),
        tuple(tool.tool() for tool in tools),
        tool_choice,
        parallel_tool_calls,
        not continue_final_message if add_generation_prompt is None else add_generation_prompt,
        continue_final_message,
        json.dumps(template_args),
    )


def _tool_choice(choice: ToolChoiceBody | None) -> ToolChoice:
    if isinstance(choice, NamedTool):
        return ToolChoice("named", choice.function.name)
    return ToolChoice(choice or "auto")
