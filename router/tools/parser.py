"""A parser of tool calls at work on one choice's text."""

from collections.abc import Mapping
from typing import Any

from rayline.router.tools.formats import ToolFormat
from rayline.router.tools.output import CallIds, Output, Parsed
from rayline.router.tools.source import Source


class ToolParser:
    """Text in pieces in; prose and calls out, as soon as they are certain. Nothing but layout is lost.

    Text that turns out to be no call comes out as prose. A call that has begun stands: where its arguments stop being
    JSON the rest is prose.
    """

    def __init__(
        self,
        format: ToolFormat,
        tools: Mapping[str, Mapping[str, Any]],
        call_ids: CallIds,
        hidden: frozenset[str] = frozenset(),
        max_calls: int | None = None,
    ):
        """`tools`: JSON schemas of parameters by name. `hidden`: special tokens shown only for the parser's sake."""
        self._source = Source(hidden)
        self._output = Output(tools, call_ids, hidden, max_calls)
        self._reading = format.read(self._source, self._output)
        next(self._reading)

    @property
    def calls(self) -> int:
        """Calls begun so far."""
        return self._output.calls

    def push(self, text: str) -> Parsed:
        """What is certain now."""
        self._source.feed(text)
        next(self._reading, None)
        return self._output.drain()

    def finish(self) -> Parsed:
        """The rest: no more text comes."""
        self._source.ended = True
        next(self._reading, None)
        return self._output.drain()
