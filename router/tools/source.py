"""Text that arrives in pieces, read as if all of it were there.

Parsers are generators: they `yield` when a decision needs more text, and go on when more has come or the end is known.
Every method below decides by the text alone, never by where it was cut, so a parser made of them says the same
whatever the pieces were.
"""

from collections.abc import Generator, Sequence
from typing import TypeVar

from rayline.router.stops import overlap

T = TypeVar("T")
Reading = Generator[None, None, T]

HELD_BLANKS = 64  # longest run of blanks that is held because a marker may follow


class Source:
    """The unread text, and what has been read but not told to anybody yet (`raw`).

        | told | raw | rest |
               ^ settled    ^ end of what has arrived

    A parser that gives up turns `raw` back into plain text. `hidden` are names of special tokens that are only shown
    for the parser's sake: they belong to no text, so they are never raw.
    """

    def __init__(self, hidden: frozenset[str] = frozenset()):
        self.hidden = hidden
        self.ended = False
        self._text = ""
        self._at = 0
        self._raw: list[str] = []

    @property
    def rest(self) -> str:
        return self._text[self._at :] if self._at else self._text

    def feed(self, text: str) -> None:
        self._text = self.rest + text
        self._at = 0

    def take(self, count: int) -> str:
        """The next characters; they stay raw until they are settled."""
        text = self._text[self._at : self._at + count]
        self._at += count
        self._raw.append(text)
        return text

    def skip(self, marker: str) -> None:
        """Read a marker that is known to come next."""
        self.take(len(marker))
        if marker in self.hidden:
            self._raw.pop()

    def settle(self) -> None:
        """What was read has been told, or means nothing."""
        self._raw.clear()

    def raw(self) -> str:
        """What was read and not told; it counts as told from now on."""
        text = "".join(self._raw)
        self._raw.clear()
        return text

    def peek(self) -> Reading[str]:
        """The next character, "" at the end."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def marker(self, *markers: str) -> Reading[str]:
        """The longest of the markers that comes next, "" for none. It is not read."""
        while not self.ended and any(len(self.rest) < len(m) and m.startswith(self.rest) for m in markers):
            yield
        return max((m for m in markers if self._text.startswith(m, self._at)), key=len, default="")

    def blanks(self) -> Reading[None]:
        """Read white space."""
        while (yield from self.peek()).isspace():
            rest = self.rest
            self.take(len(rest) - len(rest.lstrip()))

    def before(self, ends: Sequence[str], limit: int) -> Reading[str | None]:
        """Read up to the first of `ends`, which is not read. None when none comes within `limit` characters."""
        searched = 0
        while True:
            rest = self.rest
            found = min((at for end in ends if (at := rest.find(end, searched)) >= 0), default=-1)
            if 0 <= found <= limit:
                return self.take(found)
            if self.ended or found > limit or len(rest) > limit + max(map(len, ends)):
                return None
            searched = max(0, len(rest) - max(map(len, ends)) + 1)
            yield

    def passage(self, end: str, last: str) -> Reading[tuple[str, bool]]:
        """(text that is certain, whether `end` comes next). One `last` right before the end is not of the text."""
        rest = self.rest
        found = rest.find(end)
        if found >= 0:
            return self.take(len(rest[:found].removesuffix(last))), True
        kept = 0 if self.ended else max(overlap(rest, end), overlap(rest, last + end))
        text = self.take(len(rest) - kept)
        if not text and not self.ended:
            yield
        return text, False

    def prose(self, ends: Sequence[str]) -> Reading[tuple[str, str]]:
        """(text that is certain, the marker that follows it, "" when more text is to come first).

        Blanks right before a marker are left out and stay raw: a parser that gives up tells them too.
        """
        markers = (*ends, *self.hidden)
        found = [(at, -len(m), m) for m in markers if (at := self._text.find(m, self._at)) >= 0]
        if found:
            return self._up_to_marker(*min(found), ends)
        rest = self.rest
        if self.ended:
            text = self.take(len(rest))
        else:
            kept = max([overlap(rest, marker) for marker in markers], default=0)
            text = self.take(len(_without_blanks(rest[: len(rest) - kept])))
        self.settle()
        if not text and not self.ended:
            yield
        return text, ""

    def _up_to_marker(self, at: int, _: int, marker: str, ends: Sequence[str]) -> tuple[str, str]:
        passage = self._text[self._at : at]
        if marker not in ends:  # a special token that means nothing here
            self.take(len(passage))
            self.settle()
            self.skip(marker)
            return passage, ""
        text = self.take(len(_without_blanks(passage)))
        self.settle()
        self.take(len(passage) - len(text))
        return text, marker


def _without_blanks(text: str) -> str:
    """`text` without the last blanks, of which no more than HELD_BLANKS are cut off."""
    return text[: max(len(text.rstrip()), len(text) - HELD_BLANKS)]
