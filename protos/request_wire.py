"""Clients' requests <-> the messages of inference.proto: total both ways, checked by round-trip property tests."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from rayline.protos import inference_pb2 as pb
from rayline.protos.conversation import ChatMessage, Conversation, Tool, ToolCall, ToolChoice, ToolMode
from rayline.protos.errors import out_of_range
from rayline.protos.params_wire import params_of, params_to_pb
from rayline.protos.types import Spec

MODE_TO_PB: dict[ToolMode, pb.ToolChoice.Mode] = {
    "auto": pb.ToolChoice.AUTO,
    "none": pb.ToolChoice.NONE,
    "required": pb.ToolChoice.REQUIRED,
    "named": pb.ToolChoice.NAMED,
}
MODE_OF = {number: mode for mode, number in MODE_TO_PB.items()}


def spec_to_pb(spec: Spec) -> pb.GenerateRequest | pb.ChatRequest:
    """A ChatRequest when the spec holds a conversation, a GenerateRequest otherwise."""
    params = params_to_pb(spec.params)
    if spec.conversation is not None:
        return _chat_to_pb(spec, spec.conversation, params)
    return pb.GenerateRequest(
        model=spec.model,
        text=spec.prompt,
        token_ids=None if spec.prompt_ids is None else pb.TokenIds(ids=spec.prompt_ids),
        params=params,
        priority=spec.priority,
        request_id=spec.request_id,
        suffix=spec.suffix,
        echo=spec.echo,
        truncate_prompt_tokens=spec.truncate_prompt_tokens,
        tenant=spec.tenant,
        cache_salt=spec.cache_salt,
        return_prompt_ids=spec.return_prompt_ids,
        timeout_s=spec.timeout_s,
    )


def spec_of(message: pb.GenerateRequest | pb.ChatRequest, new_id: Callable[[], str]) -> Spec:
    """The spec of either request; `new_id` names one that comes without a name."""
    spec = Spec(
        message.request_id or new_id(),
        message.model,
        params_of(message.params),
        echo=message.echo,
        truncate_prompt_tokens=message.truncate_prompt_tokens if message.HasField("truncate_prompt_tokens") else None,
        priority=message.priority,
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        return_prompt_ids=message.return_prompt_ids,
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
    )
    if isinstance(message, pb.ChatRequest):
        return replace(spec, conversation=conversation_of(message))
    form = message.WhichOneof("prompt")
    return replace(
        spec,
        prompt=message.text if form == "text" else None,
        prompt_ids=tuple(message.token_ids.ids) if form == "token_ids" else None,
        suffix=message.suffix if message.HasField("suffix") else None,
    )


def _chat_to_pb(spec: Spec, chat: Conversation, params: pb.SamplingParams) -> pb.ChatRequest:
    return pb.ChatRequest(
        model=spec.model,
        messages=messages_to_pb(chat.messages),
        params=params,
        priority=spec.priority,
        request_id=spec.request_id,
        tools=_tools_to_pb(chat),
        tool_choice=_tool_choice_to_pb(chat),
        parallel_tool_calls=chat.parallel_tool_calls,
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        template_args=chat.template_args,
        echo=spec.echo,
        truncate_prompt_tokens=spec.truncate_prompt_tokens,
        tenant=spec.tenant,
        cache_salt=spec.cache_salt,
        return_prompt_ids=spec.return_prompt_ids,
        timeout_s=spec.timeout_s,
    )


def conversation_of(message: pb.ChatRequest | pb.Conversation) -> Conversation:
    """Raises InvalidRequest for an unknown mode of tool_choice."""
    choice = message.tool_choice
    return Conversation(
        messages_of(message.messages),
        tuple(Tool(tool.name, tool.description, tool.parameters or "{}", tool.strict) for tool in message.tools),
        ToolChoice(_mode_of(choice.mode), choice.name),
        message.parallel_tool_calls if message.HasField("parallel_tool_calls") else True,
        message.add_generation_prompt
        if message.HasField("add_generation_prompt")
        else not message.continue_final_message,
        message.continue_final_message,
        message.template_args or "{}",
    )


def _mode_of(number: pb.ToolChoice.Mode) -> ToolMode:
    if number not in MODE_OF:
        raise out_of_range("tool_choice", number, "0 (auto), 1 (none), 2 (required) or 3 (named)")
    return MODE_OF[number]


def conversation_to_pb(chat: Conversation) -> pb.Conversation:
    return pb.Conversation(
        messages=messages_to_pb(chat.messages),
        tools=_tools_to_pb(chat),
        tool_choice=_tool_choice_to_pb(chat),
        parallel_tool_calls=chat.parallel_tool_calls,
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        template_args=chat.template_args,
    )


def _tools_to_pb(chat: Conversation) -> list[pb.Tool]:
    return [
        pb.Tool(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
        for tool in chat.tools
    ]


def _tool_choice_to_pb(chat: Conversation) -> pb.ToolChoice:
    return pb.ToolChoice(mode=MODE_TO_PB[chat.tool_choice.mode], name=chat.tool_choice.name)


def messages_to_pb(messages: tuple[ChatMessage, ...]) -> list[pb.ChatMessage]:
    return [
        pb.ChatMessage(
            role=message.role,
            content=message.content,
            name=message.name,
            reasoning=message.reasoning,
            tool_calls=[pb.ToolCall(id=c.id, name=c.name, arguments=c.arguments) for c in message.tool_calls],
            tool_call_id=message.tool_call_id,
        )
        for message in messages
    ]


def messages_of(messages: Iterable[pb.ChatMessage]) -> tuple[ChatMessage, ...]:
    return tuple(
        ChatMessage(
            message.role,
            message.content,
            message.name,
            message.reasoning,
            tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls),
            message.tool_call_id,
        )
        for message in messages
    )
