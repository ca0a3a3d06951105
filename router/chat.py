"""Chat templates: a conversation to one prompt text, as transformers' apply_chat_template renders it."""

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Template, TemplateError

from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolCall
from rayline.protos.errors import InvalidRequest, ModelError
from rayline.router.chat_sandbox import ALLOWANCE, Allowance, ChatEnvironment

MAX_PROMPT_CHARACTERS = 1 << 24
OPEN_END = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers' own: marks where the last message stops
FIXED_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "continue_final_message"})
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}


class ChatTemplates:
    """A model's templates by name, with its special tokens (bos_token, eos_token...) as variables.

    The one called "tool_use" lays out conversations with tools, where there is one; "default" all others.
    """

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]):
        """Raises ModelError when a template is no valid jinja."""
        environment = ChatEnvironment()
        try:
            self._templates = {name: environment.from_string(source) for name, source in sources.items()}
        except (TemplateError, RecursionError) as error:
            raise ModelError(f"the model's chat template is broken: {error}", field="path") from None
        self._sources = dict(sources)
        self._special_tokens = dict(special_tokens)

    @property
    def text(self) -> str:
        """The source of the template that lays out tools."""
        return self._sources.get("tool_use") or self._sources.get("default", "")

    def render(self, conversation: Conversation) -> str:
        """The prompt. Raises InvalidRequest with the template's own words when it refuses."""
        conversation.check()
        tools = shown_tools(conversation)
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise InvalidRequest("messages cannot be used: this model has no chat template", field="messages")
        messages = [template_message(message) for message in conversation.messages]
        if conversation.continue_final_message:
            _open_last(messages, self._sources[name])
        variables = {
            **self._special_tokens,
            "documents": None,
            **_template_args(conversation.template_args),
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        text = _rendered(self._templates[name], variables)
        return _cut(text, conversation.messages[-1].content) if conversation.continue_final_message else text


def shown_tools(conversation: Conversation) -> list[dict[str, Any]]:
    """The tools as templates know them. With tool_choice none the model sees none: it then cannot call any."""
    if conversation.tool_choice.mode == "none":
        return []
    return [_template_tool(tool) for tool in conversation.tools]


def template_message(message: ChatMessage) -> dict[str, Any]:
    """A message as templates know it; what is not there is left out. Raises InvalidRequest for broken arguments."""
    optional: dict[str, Any] = {
        "name": message.name,
        "reasoning_content": message.reasoning,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [_template_call(call) for call in message.tool_calls],
    }
    given = {key: value for key, value in optional.items() if value}
    other_name = {"thinking": message.reasoning} if message.reasoning else {}  # what gpt-oss calls it
    return {**other_name, "role": message.role, "content": message.content, **given}


def _template_call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": _arguments(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def _template_tool(tool: Tool) -> dict[str, Any]:
    parameters = _json(tool.parameters or "{}", "tools") or NO_PARAMETERS
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": parameters}}


def _arguments(text: str) -> Any:
    """Templates write arguments as JSON themselves, so they get the object; text that is no JSON stays text."""
    try:
        return _json(text or "{}", "messages")
    except InvalidRequest:
        return text


def _template_args(text: str) -> dict[str, Any]:
    variables = _json(text or "{}", "template_args")
    if not isinstance(variables, dict):
        raise InvalidRequest(f"template_args = {text[:60]!r} must be a JSON object", field="template_args")
    if fixed := FIXED_VARIABLES & variables.keys():
        raise InvalidRequest(
            f"template_args holds {min(fixed)!r}, which is a field of the request itself", field="template_args"
        )
    if any(not name.isidentifier() for name in variables):
        raise InvalidRequest("template_args holds a name that no template can use", field="template_args")
    documents = variables.get("documents")
    if documents is not None and not _is_list_of_objects(documents):
        raise InvalidRequest("template_args: documents must be a list of objects", field="template_args")
    return variables


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _json(text: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidRequest(f"{field} holds {text[:60]!r}, which is no JSON", field=field) from None


def _rendered(template: Template, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    characters = 0
    try:
        for piece in template.generate(**variables, **{ALLOWANCE: Allowance()}):
            pieces.append(piece)
            characters += len(piece)
            if characters > MAX_PROMPT_CHARACTERS:
                raise TemplateError(f"the prompt is longer than {MAX_PROMPT_CHARACTERS} characters")
    except Exception as error:  # a template is a program of somebody else's: it may raise anything
        raise InvalidRequest(f"messages do not fit the chat template: {error}", field="messages") from None
    return "".join(pieces)


def _open_last(messages: list[dict[str, Any]], source: str) -> None:
    if "content" not in source:
        raise InvalidRequest(
            "continue_final_message cannot be used: the chat template shows no content", field="continue_final_message"
        )
    messages[-1]["content"] += OPEN_END


def _cut(text: str, message: str) -> str:
    """The prompt up to the end of the last message's text; a template that trims it has it trimmed here as well."""
    if message.strip() not in text or OPEN_END.strip() not in text:
        raise InvalidRequest(
            "continue_final_message cannot be used: the chat template does not show the whole last message",
            field="continue_final_message",
        )
    at = text.rindex(OPEN_END.strip())
    return text[:at] if text.startswith(OPEN_END, at) else text[:at].rstrip()
