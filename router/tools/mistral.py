"""Mistral's two formats:

[TOOL_CALLS] [{"name": "f", "arguments": {...}}, ...]        version 1 to 7 of its tokenizers
[TOOL_CALLS]f{...}[TOOL_CALLS]g[ARGS]{...}                   version 11 on, with [CALL_ID] and [ARGS] in some
"""

from rayline.router.tools.json_calls import MAX_NAME, is_name, read_arguments, read_call
from rayline.router.tools.output import Output
from rayline.router.tools.prose import give_up, read_prose
from rayline.router.tools.source import Reading, Source

CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


def mistral(source: Source, output: Output) -> Reading[None]:
    """Each marker begins a list of calls, or one named call."""
    while (yield from read_prose(source, output, (CALLS,))):
        source.skip(CALLS)
        yield from source.blanks()
        if (yield from source.peek()) == "[":
            yield from read_list(source, output)
        else:
            yield from _named(source, output)
        give_up(source, output)


def read_list(source: Source, output: Output) -> Reading[None]:
    """A JSON list of calls."""
    source.take(1)
    yield from source.blanks()
    while (yield from source.peek()) == "{" and (yield from read_call(source, output)):
        yield from source.blanks()
        marker = yield from source.marker(",", "]")
        if marker:
            source.skip(marker)
        if marker != ",":
            source.settle()
            return
        yield from source.blanks()


def _named(source: Source, output: Output) -> Reading[None]:
    name = yield from source.before((CALL_ID, ARGS, "{"), MAX_NAME)
    if name is None or not is_name(name.strip()):
        return
    if (yield from source.marker(CALL_ID)):
        source.skip(CALL_ID)
        if (yield from source.before((ARGS, "{"), MAX_NAME)) is None:  # the router gives its own ids
            return
    if (yield from source.marker(ARGS)):
        source.skip(ARGS)
        yield from source.blanks()
    if (yield from source.peek()) == "{":
        output.begin(name.strip())
        source.settle()
        yield from read_arguments(source, output)
