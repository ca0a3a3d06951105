"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes 2 and 3, Qwen 2.5 and 3.

Qwen 3 Coder writes the inside as tags:

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Paris
    </parameter>
    </function>
    </tool_call>
"""

import json
from collections.abc import Mapping

from rayline.router.tools.json_calls import MAX_NAME, is_name, read_call
from rayline.router.tools.output import Output
from rayline.router.tools.prose import give_up, read_prose
from rayline.router.tools.source import Reading, Source
from rayline.router.tools.values import json_of, parameter_types

CALL, CALL_END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
MAX_VALUE = 1 << 16  # characters of a parameter that is no string; strings are told as they come


def hermes(source: Source, output: Output) -> Reading[None]:
    """One JSON object in each pair of tags."""
    while (yield from read_prose(source, output, (CALL,))):
        source.skip(CALL)
        yield from source.blanks()
        called = (yield from source.peek()) == "{" and (yield from read_call(source, output))
        yield from _end(source, output, called)


def qwen3_coder(source: Source, output: Output) -> Reading[None]:
    """Tags in tags; also without the outer pair, which the model forgets at times, and with JSON inside."""
    while marker := (yield from read_prose(source, output, (CALL, FUNCTION))):
        if marker == CALL:
            source.skip(CALL)
            yield from source.blanks()
        called = False
        if (yield from source.marker(FUNCTION)):
            called = yield from _function(source, output)
        elif (yield from source.peek()) == "{":
            called = yield from read_call(source, output)
        yield from _end(source, output, called)


def _end(source: Source, output: Output, called: bool) -> Reading[None]:
    if called:
        source.settle()
        yield from source.blanks()
        if (yield from source.marker(CALL_END)):
            source.skip(CALL_END)
            source.settle()
    give_up(source, output)


def _function(source: Source, output: Output) -> Reading[bool]:
    source.skip(FUNCTION)
    name = yield from _attribute(source)
    if name is None:
        return False
    output.begin(name)
    output.arguments("{")
    source.settle()
    types = parameter_types(output.tools.get(name, {}))
    count = 0
    while True:
        yield from source.blanks()
        marker = yield from source.marker(PARAMETER, FUNCTION_END, CALL_END)
        if marker == PARAMETER:
            if (yield from _parameter(source, output, types, ", " if count else "")):
                count += 1
                continue
            marker = ""
        if marker or not source.ended:  # a forgotten </function> ends the call as well
            output.arguments("}")
        if marker == FUNCTION_END:
            source.skip(FUNCTION_END)
        return bool(marker)


def _parameter(source: Source, output: Output, types: Mapping[str, frozenset[str]], comma: str) -> Reading[bool]:
    source.skip(PARAMETER)
    key = yield from _attribute(source)
    if key is None:
        return False
    wanted = types.get(key, frozenset())
    head = f"{comma}{json.dumps(key, ensure_ascii=False)}: "
    if wanted <= {"string"}:
        return (yield from _string(source, output, head))
    text = yield from source.before((PARAMETER_END,), MAX_VALUE)
    if text is None:
        return False
    source.skip(PARAMETER_END)
    output.arguments(head + json_of(_trimmed(text), wanted))
    source.settle()
    return True


def _string(source: Source, output: Output, head: str) -> Reading[bool]:
    """Tell a string as it comes. The line breaks beside the tags are not its own."""
    if (yield from source.peek()) == "\n":
        source.take(1)
    output.arguments(head + '"')
    while True:
        text, found = yield from source.passage(PARAMETER_END, "\n")
        output.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        source.settle()
        if found:
            source.take(len("\n" + PARAMETER_END) if source.rest[0] == "\n" else len(PARAMETER_END))
            output.arguments('"')
            source.settle()
            return True
        if source.ended:
            return False


def _attribute(source: Source) -> Reading[str | None]:
    """The rest of an opening tag."""
    name = yield from source.before((">",), MAX_NAME)
    if name is None or not is_name(name):
        return None
    source.take(1)
    return name


def _trimmed(text: str) -> str:
    return text.removeprefix("\n").removesuffix("\n")
