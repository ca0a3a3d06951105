"""DeepSeek's calls, of R1 and V3 and of V3.1:

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f
```json
{...}
```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{...}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
"""

from rayline.router.tools.json_calls import MAX_NAME, is_name, read_arguments
from rayline.router.tools.output import Output
from rayline.router.tools.prose import give_up, read_prose
from rayline.router.tools.source import Reading, Source

CALLS, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
FENCE, FENCE_END = "```json", "```"


def deepseek(source: Source, output: Output) -> Reading[None]:
    """One call in each inner pair of markers; the outer ones are layout."""
    while marker := (yield from read_prose(source, output, (CALLS, CALL, CALLS_END))):
        source.skip(marker)
        if marker == CALL:
            yield from _call(source, output)
        elif marker == CALLS_END and output.calls:
            source.settle()
        elif marker == CALLS:
            yield from source.blanks()
            if (yield from source.marker(CALL)):
                source.settle()
        give_up(source, output)


def _call(source: Source, output: Output) -> Reading[None]:
    name = yield from source.before((SEPARATOR,), MAX_NAME)
    if name is None:
        return
    source.skip(SEPARATOR)
    fenced = name.strip() == "function"
    if fenced:
        name = yield from source.before((FENCE,), MAX_NAME)
        if name is None:
            return
        source.skip(FENCE)
    yield from source.blanks()
    if not is_name(name.strip()) or (yield from source.peek()) != "{":
        return
    output.begin(name.strip())
    source.settle()
    if (yield from read_arguments(source, output)):
        yield from _skip_next(source, FENCE_END if fenced else "")
        yield from _skip_next(source, CALL_END)


def _skip_next(source: Source, marker: str) -> Reading[None]:
    """Read blanks and the marker, if it comes next."""
    yield from source.blanks()
    if marker and (yield from source.marker(marker)):
        source.skip(marker)
        source.settle()
