"""What stands between calls."""

from collections.abc import Sequence

from rayline.router.tools.output import Output
from rayline.router.tools.source import Reading, Source


def read_prose(source: Source, output: Output, markers: Sequence[str]) -> Reading[str]:
    """Tell the text up to the next of `markers`, which is not read; "" at the end.

    Blanks before a marker, and at the very end behind a call, belong to the layout of calls: they are left out.
    """
    while True:
        text, marker = yield from source.prose(markers)
        at_end = source.ended and not source.rest
        if not (at_end and not marker and output.calls and text.isspace()):
            output.say(text)
        if marker or at_end:
            return marker


def give_up(source: Source, output: Output) -> None:
    """Tell as plain text what was read and is no call; blanks behind a call are layout."""
    raw = source.raw()
    if not (output.calls and raw.isspace()):
        output.say(raw)
