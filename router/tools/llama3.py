"""`{"name": ..., "parameters": {...}}` as the whole answer, several separated by `;`: Llama 3.1 to 3.3.

`<|python_tag|>` may come first; behind it a call may also follow prose.
"""

from collections.abc import Collection

from rayline.router.tools.json_calls import read_call
from rayline.router.tools.output import Output
from rayline.router.tools.prose import give_up, read_prose
from rayline.router.tools.source import Reading, Source

TAG = "<|python_tag|>"


def llama3(source: Source, output: Output) -> Reading[None]:
    """Without the tag, an object at the very beginning is a call when it names one of the tools: JSON is also prose."""
    yield from source.blanks()
    yield from _calls(source, output)
    while (yield from read_prose(source, output, (TAG,))):
        yield from _calls(source, output)


def _calls(source: Source, output: Output) -> Reading[None]:
    known: Collection[str] | None = output.tools
    if (yield from source.marker(TAG)):
        source.skip(TAG)
        yield from source.blanks()
        known = None
    yield from _objects(source, output, known)
    give_up(source, output)


def _objects(source: Source, output: Output, known: Collection[str] | None) -> Reading[None]:
    while (yield from source.peek()) == "{":
        if not (yield from read_call(source, output, known)):
            return
        yield from source.blanks()
        if separator := (yield from source.marker(";", ",")):
            source.skip(separator)
            yield from source.blanks()
