"""What a model's output is made of, for one request: an answer alone, or with thoughts before it and calls in it."""

import json
from dataclasses import dataclass
from typing import Any

from rayline.cluster.config import ReasoningParser, ToolParser
from rayline.protos.conversation import Conversation, Tool
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import Spec, Thinking
from rayline.router import reasoning
from rayline.router.reasoning import ReasoningFormat
from rayline.router.tokenizer import Tokenizer
from rayline.router.tools import formats
from rayline.router.tools.formats import ToolFormat

PROMPT_TAIL = 32  # tokens in which an opening mark at the prompt's end is looked for


@dataclass(frozen=True, slots=True)
class ChatFormats:
    """How one model writes calls and thoughts; None where it does not."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

    @property
    def names(self) -> tuple[str, str]:
        """Of the two formats, for people to read."""
        return self.tools.name if self.tools else "none", self.reasoning.name if self.reasoning else "none"


NO_FORMATS = ChatFormats()


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How one request's output is read. is_open: it begins inside of a thought. max_calls None: any number."""

    reasoning: ReasoningFormat | None = None
    is_open: bool = False
    tools: ToolFormat | None = None
    functions: tuple[Tool, ...] = ()
    max_calls: int | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts the parsers look for: shown to them even where they are special tokens."""
        marks = () if self.reasoning is None else (self.reasoning.start, self.reasoning.end)
        return marks if self.tools is None else (*marks, *self.tools.markers)

    def schemas(self) -> dict[str, dict[str, Any]]:
        """JSON schema of each function's parameters by name."""
        return {tool.name: _object(tool.parameters) for tool in self.functions}


PLAIN_OUTPUT = OutputForm()


def chat_formats(
    tokenizer: Tokenizer, tool_parser: ToolParser = "auto", reasoning_parser: ReasoningParser = "auto"
) -> ChatFormats:
    """The formats that a model's configuration names, or that its chat templates and its vocabulary show."""
    template = tokenizer.template_text
    tools = formats.detected(template) if tool_parser == "auto" else formats.FORMATS.get(tool_parser)
    marks = [mark for format in reasoning.FORMATS.values() for mark in (format.start, format.end)]
    tokens = [mark for mark in marks if tokenizer.token_id(mark) is not None]
    if reasoning_parser == "auto":
        return ChatFormats(tools, reasoning.detected(template, tokens) if template else None)
    return ChatFormats(tools, reasoning.FORMATS.get(reasoning_parser))


def output_form(spec: Spec, prompt_ids: tuple[int, ...], tokenizer: Tokenizer, chat: ChatFormats) -> OutputForm:
    """How the output of this request is read: as plain text unless it answers a conversation.

    Raises InvalidRequest when tools may be called and nothing is known of how this model calls them.
    """
    conversation = spec.conversation
    if conversation is None:
        return PLAIN_OUTPUT
    is_open = chat.reasoning is not None and _is_open(chat.reasoning, conversation, prompt_ids, tokenizer)
    if not conversation.tools or conversation.tool_choice.mode == "none":
        return OutputForm(chat.reasoning, is_open)
    if chat.tools is None:
        raise InvalidRequest(
            "tools cannot be used: it is not known how this model calls them. Its chat template shows no format that "
            "is read here, or models[].tool_parser is none",
            field="tools",
        )
    one = not conversation.parallel_tool_calls or conversation.tool_choice.mode == "named"
    return OutputForm(chat.reasoning, is_open, chat.tools, conversation.tools, 1 if one else None)


def thinking_of(spec: Spec, prompt_ids: tuple[int, ...], tokenizer: Tokenizer, chat: ChatFormats) -> Thinking | None:
    """What those who know token ids alone need to bound thinking and to see its end; None for a model without.

    Raises InvalidRequest for a thinking_budget that nothing can keep.
    """
    budget, format = spec.params.thinking_budget, chat.reasoning
    if format is None:
        if budget is not None:
            raise InvalidRequest(
                f"thinking_budget = {budget} (reasoning_effort none asks for 0) cannot be kept: this model does not "
                "mark what it thinks, or models[].reasoning_parser is none",
                field="thinking_budget",
            )
        return None
    if spec.conversation is None and budget is None:
        return None
    start, end = (tokenizer.encode(mark, add_special_tokens=False) for mark in (format.start, format.end))
    return Thinking(start, end, budget, _is_open(format, spec.conversation, prompt_ids, tokenizer))


def _is_open(
    format: ReasoningFormat, conversation: Conversation | None, prompt_ids: tuple[int, ...], tokenizer: Tokenizer
) -> bool:
    if format.is_open(tokenizer.decode(prompt_ids[-PROMPT_TAIL:], skip_special_tokens=False)):
        return True
    if conversation is None or not conversation.continue_final_message:
        return False
    return format.is_open_in(conversation.messages[-1].content)


def _object(text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return tree if isinstance(tree, dict) else {}
