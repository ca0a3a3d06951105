"""What a grammar must hold the output to, so that tools are called as a request demands."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rayline.protos.conversation import Conversation, Tool
from rayline.protos.errors import InvalidRequest
from rayline.protos.types import StructuredOutput
from rayline.router.grammars.grammar import TaggedSchema
from rayline.router.tools.formats import ToolFormat

ANY_OBJECT = '{"type": "object"}'
NO_PARAMETERS = '{"type": "object", "properties": {}}'


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """Without triggers: prefix, one to `most` of the tags with `separator` between them, suffix. With triggers: free
    text without the `banned` texts, in which a trigger begins one of the tags. With an opener: the same as without
    triggers, at the beginning or behind one; all other text begins with another character than the opener."""

    tags: tuple[TaggedSchema, ...]
    triggers: tuple[str, ...] = ()
    opener: str = ""
    banned: tuple[str, ...] = ()
    separator: str = ""
    prefix: str = ""
    suffix: str = ""
    most: int | None = None


def call_grammar(
    format: ToolFormat, conversation: Conversation, answer: StructuredOutput | None = None
) -> CallGrammar | None:
    """The grammar that a conversation's tools ask for, None for none. `answer`: the form of an answer without calls.

    tool_choice required and named force calls; under auto, strict tools bind the arguments of calls that the model
    makes by itself, and an answer's form leaves the choice between such an answer and one call.
    Raises InvalidRequest when the answer's form and the tools contradict each other.
    """
    mode = conversation.tool_choice.mode
    if not conversation.tools or mode == "none":
        return None
    if mode == "auto":
        return _optional(format, conversation, answer)
    if answer is not None:
        raise InvalidRequest(
            f"structured_output cannot be combined with tool_choice = {mode!r}: the output is calls alone",
            field="structured_output",
        )
    name = conversation.tool_choice.name
    tools = [tool for tool in conversation.tools if mode == "required" or tool.name == name]
    one = mode == "named" or not conversation.parallel_tool_calls
    tags = [TaggedSchema(format.begin_of(tool.name), schema_of(tool), format.end) for tool in tools]
    return _calls(format, tags, one)


def schema_of(tool: Tool) -> str:
    """A tool's parameters as a JSON schema of an object; none at all means that it takes none."""
    return NO_PARAMETERS if tool.parameters.strip() in ("", "{}", "null") else tool.parameters


def _optional(format: ToolFormat, conversation: Conversation, answer: StructuredOutput | None) -> CallGrammar | None:
    schemas = [(tool, schema_of(tool) if tool.strict else ANY_OBJECT) for tool in conversation.tools]
    whole = tuple(_whole(format, tool, schema) for tool, schema in schemas)
    if answer is not None:
        return CallGrammar((TaggedSchema("", _answer_schema(answer)), *whole), most=1)
    if not any(tool.strict for tool in conversation.tools):
        return None
    if not format.opener:
        return CallGrammar(whole, triggers=(format.trigger,), banned=format.banned)
    tags = [TaggedSchema(format.begin_of(tool.name), schema, format.end) for tool, schema in schemas]
    calls = _calls(format, tags, not conversation.parallel_tool_calls)
    return replace(calls, triggers=(format.trigger,), opener=format.opener)


def _calls(format: ToolFormat, tags: Sequence[TaggedSchema], one: bool) -> CallGrammar:
    """Calls that are the whole output."""
    return CallGrammar(
        tuple(tags),
        separator=format.separator,
        prefix=format.prefix,
        suffix=format.suffix,
        most=1 if one else None,
    )


def _whole(format: ToolFormat, tool: Tool, schema: str) -> TaggedSchema:
    """A call that stands alone, the frame of all calls around it."""
    return TaggedSchema(format.prefix + format.begin_of(tool.name), schema, format.end + format.suffix)


def _answer_schema(answer: StructuredOutput) -> str:
    if answer.kind == "json_schema":
        return answer.text
    if answer.kind == "json_object":
        return json.dumps({"type": "object"})
    raise InvalidRequest(
        f"structured_output = {answer.kind!r} cannot be combined with tools that the model may call: "
        "allowed are json_schema and json_object",
        field="structured_output",
    )
