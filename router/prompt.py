"""From the prompt in a client's request to token ids: template, fill-in-the-middle, tokenisation, truncation. Pure."""

from rayline.protos.conversation import Conversation
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import Spec
from rayline.router.fill_in import fill_in_ids
from rayline.router.tokenizer import Tokenizer

LONG_CHARACTERS = 16_384  # from here on (a few ms) a prompt is prepared beside the event loop
LONG_TOKENS = 8_192


def is_long(spec: Spec) -> bool:
    """True when preparing this prompt would hold up an event loop."""
    if spec.conversation is not None:
        return conversation_characters(spec.conversation) >= LONG_CHARACTERS
    characters = len(spec.prompt or "") + len(spec.suffix or "")
    return characters >= LONG_CHARACTERS or len(spec.prompt_ids or ()) >= LONG_TOKENS


def conversation_characters(conversation: Conversation) -> int:
    """About how much text a chat template has to lay out."""
    turns = sum(len(turn.content) + len(turn.reasoning) for turn in conversation.messages)
    calls = sum(len(call.arguments) for turn in conversation.messages for call in turn.tool_calls)
    return turns + calls + sum(len(tool.parameters) + len(tool.description) for tool in conversation.tools)


def prompt_ids_of(spec: Spec, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The prompt's ids; bos alone for an empty text. Raises InvalidRequest naming the field."""
    if spec.conversation is not None:
        token_ids = conversation_ids(spec.conversation, tokenizer)
    elif spec.suffix is not None:
        token_ids = fill_in_ids(tokenizer, spec.prompt or "", spec.suffix)
    elif spec.prompt is not None:
        token_ids = tokenizer.encode(spec.prompt, add_special_tokens=True)
    else:
        token_ids = spec.prompt_ids or ()
    if spec.truncate_prompt_tokens is not None:
        token_ids = token_ids[-spec.truncate_prompt_tokens :]
    if token_ids:
        return token_ids
    if tokenizer.bos_id is None:
        raise InvalidRequest("prompt is empty and the model has no token to begin with", field="prompt")
    return (tokenizer.bos_id,)


def conversation_ids(conversation: Conversation, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The template writes the special tokens itself, so none are added."""
    return tokenizer.encode(tokenizer.render_chat(conversation), add_special_tokens=False)


def prompt_text_of(spec: Spec, prompt_ids: tuple[int, ...], tokenizer: Tokenizer) -> str:
    """What an echo shows: the text as it was given, or that of the ids where it is not whole or was not text."""
    if spec.prompt is not None and spec.suffix is None and spec.truncate_prompt_tokens is None:
        return spec.prompt
    return tokenizer.decode(prompt_ids, spec.params.skip_special_tokens)
