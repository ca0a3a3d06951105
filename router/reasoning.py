"""What a model thinks before it answers: `<think>...</think>` and its like, told apart from the answer.

Thinking stands at the beginning of the output and ends once. Where the chat template has opened it in the prompt, the
output begins inside. Line breaks and blanks beside the marks are layout and belong to neither part.
"""

from collections.abc import Collection
from dataclasses import dataclass

from rayline.router.tools.source import Reading, Source


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks around what is thought."""

    name: str
    start: str
    end: str

    def is_open(self, prompt: str) -> bool:
        """True when the prompt ends right behind the opening mark."""
        return prompt.rstrip().endswith(self.start)

    def is_open_in(self, message: str) -> bool:
        """True when a message that the output continues stops while it thinks."""
        return message.rfind(self.start) > message.rfind(self.end)


THINK = ReasoningFormat("think", "<think>", "</think>")
MISTRAL = ReasoningFormat("mistral", "[THINK]", "[/THINK]")
FORMATS = {format.name: format for format in (THINK, MISTRAL)}


def detected(template: str, tokens: Collection[str]) -> ReasoningFormat | None:
    """The marks that the chat template writes or cuts away, or that are tokens of their own (`tokens`)."""
    for format in FORMATS.values():
        if format.end in template or {format.start, format.end} <= set(tokens):
            return format
    return None


class ReasoningSplitter:
    """Text in pieces in, (thought, answer) out as soon as they are certain, wherever the text was cut."""

    def __init__(self, format: ReasoningFormat, is_open: bool = False, hidden: frozenset[str] = frozenset()):
        """`hidden`: special tokens that are shown only for the splitter's sake."""
        self.is_thinking = is_open
        self.is_over = False  # all that comes is the answer
        self._format = format
        self._source = Source(hidden)
        self._thought: list[str] = []
        self._answer: list[str] = []
        self._reading = self._read()
        next(self._reading)

    def push(self, text: str) -> tuple[str, str]:
        """What is certain now."""
        if self.is_over:
            return "", text
        self._source.feed(text)
        return self._advance()

    def finish(self) -> tuple[str, str]:
        """The rest: no more text comes."""
        if self.is_over:
            return "", ""
        self._source.ended = True
        return self._advance()

    def _advance(self) -> tuple[str, str]:
        next(self._reading, None)
        said = "".join(self._thought), "".join(self._answer)
        self._thought.clear()
        self._answer.clear()
        return said

    def _read(self) -> Reading[None]:
        source = self._source
        yield from source.blanks()
        if (yield from source.marker(self._format.start)):
            source.skip(self._format.start)
            self.is_thinking = True
            yield from source.blanks()
        if self.is_thinking:
            source.settle()
            yield from self._think()
            self.is_thinking = False
        self._answer.append(source.raw() + source.rest)
        self.is_over = True

    def _think(self) -> Reading[None]:
        """The thought up to the closing mark and the blanks behind it, or to the end."""
        source = self._source
        marker = ""
        while not marker:
            text, marker = yield from source.prose((self._format.end,))
            at_end = source.ended and not source.rest and not marker
            self._thought.append("" if at_end and text.isspace() else text)
            if at_end:
                return
        source.skip(marker)
        self.is_thinking = False
        yield from source.blanks()
        source.settle()
