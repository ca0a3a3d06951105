"""One choice's text at work: thoughts are told apart first, calls are looked for in the answer alone."""

from collections.abc import Sequence

from rayline.router.output_form import OutputForm
from rayline.router.reasoning import ReasoningSplitter
from rayline.router.tools.formats import ToolFormat
from rayline.router.tools.output import CallIds, Output, Parsed
from rayline.router.tools.parser import ToolParser
from rayline.router.tools.prose import read_prose
from rayline.router.tools.source import Reading, Source


class OutputParser:
    """Text in pieces in; answer, thoughts and calls out as soon as they are certain, wherever the text was cut."""

    def __init__(self, form: OutputForm, hidden: frozenset[str], prompt_ids: Sequence[int] = (), choice: int = 0):
        """`hidden`: names of special tokens that are in the text only because `form.markers` asks for them."""
        self._splitter = None
        if form.reasoning is not None:
            self._splitter = ReasoningSplitter(form.reasoning, form.is_open, hidden)
        self._tools = None
        if form.tools is not None or hidden:
            format = form.tools or NO_CALLS
            ids = CallIds(prompt_ids, choice, format.id_style)
            self._tools = ToolParser(format, form.schemas(), ids, hidden, form.max_calls)

    @property
    def is_thinking(self) -> bool:
        return self._splitter is not None and self._splitter.is_thinking

    @property
    def calls(self) -> int:
        """Calls begun so far."""
        return 0 if self._tools is None else self._tools.calls

    def push(self, text: str) -> Parsed:
        """What is certain now."""
        thought, answer = ("", text) if self._splitter is None else self._splitter.push(text)
        if self._tools is None or not answer:
            return Parsed(answer, thought)
        parsed = self._tools.push(answer)
        return Parsed(parsed.text, thought, parsed.calls)

    def finish(self) -> Parsed:
        """The rest: no more text comes."""
        thought, answer = ("", "") if self._splitter is None else self._splitter.finish()
        if self._tools is None:
            return Parsed(answer, thought)
        first, last = self._tools.push(answer), self._tools.finish()
        return Parsed(first.text + last.text, thought, first.calls + last.calls)


def _no_calls(source: Source, output: Output) -> Reading[None]:
    """Everything is prose; special tokens that were shown for a splitter's sake are left out of it."""
    yield from read_prose(source, output, ())


NO_CALLS = ToolFormat("none", _no_calls, (), "", "", "")
