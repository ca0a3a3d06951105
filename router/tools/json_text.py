"""JSON values in text that arrives in pieces cut anywhere: where one ends, and where it stops being JSON."""

import re
from collections.abc import Callable

MAX_WORD = 1000  # characters of a number; Python itself refuses to read integers of more than 4300 digits
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_BLANK = re.compile(r"[ \t\n\r]+")
_WORD = re.compile(r"[-+.0-9A-Za-z]+")
_NUMBER_OR_NAME = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|true|false|null")
_CLOSERS = {"{": "}", "[": "]"}
_CONTROLS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class JsonText:
    """Follows one JSON value (RFC 8259) through its text.

    Models write line breaks into strings, which JSON forbids: control characters come out escaped. `done`: the value
    is complete; `broken`: the next character cannot belong to it.
    """

    def __init__(self) -> None:
        self.done = False
        self.broken = False
        self._open: list[str] = []
        self._word = ""
        self._hex_digits = 0
        self._is_key = False
        self._pieces: list[str] = []
        self._step: Callable[[str, int], int] = self._value

    def feed(self, text: str) -> tuple[int, str]:
        """(how many characters of `text` belong to the value, these characters as valid JSON)."""
        at = 0
        self._pieces.clear()
        while at < len(text) and not (self.done or self.broken):
            if self._step not in (self._string, self._escape, self._hex) and (blank := _BLANK.match(text, at)):
                at = self._blank(blank[0], at)
            else:
                at = self._step(text, at)
        return at, "".join(self._pieces)

    def _blank(self, blank: str, at: int) -> int:
        if self._word and not self._end_word():
            return at
        if self.done:
            return at
        self._pieces.append(blank)
        return at + len(blank)

    def _value(self, text: str, at: int) -> int:
        character = text[at]
        if character in _CLOSERS:
            self._open.append(character)
            self._step = self._first_key if character == "{" else self._first_item
            return self._kept(character, at)
        if character == '"':
            return self._begin_string(at, is_key=False)
        if character in "-0123456789tfn":
            self._step = self._in_word
            return at
        return self._break(at)

    def _first_key(self, text: str, at: int) -> int:
        return self._close(at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        return self._begin_string(at, is_key=True) if text[at] == '"' else self._break(at)

    def _colon(self, text: str, at: int) -> int:
        if text[at] != ":":
            return self._break(at)
        self._step = self._value
        return self._kept(":", at)

    def _first_item(self, text: str, at: int) -> int:
        return self._close(at) if text[at] == "]" else self._value(text, at)

    def _after(self, text: str, at: int) -> int:
        """Behind a value inside of an object or a list."""
        if text[at] == ",":
            self._step = self._key if self._open[-1] == "{" else self._value
            return self._kept(",", at)
        return self._close(at) if text[at] == _CLOSERS[self._open[-1]] else self._break(at)

    def _string(self, text: str, at: int) -> int:
        if plain := _PLAIN.match(text, at):
            return self._kept(plain[0], at)
        character = text[at]
        if character == '"':
            self._kept(character, at)
            if self._is_key:
                self._step = self._colon
            else:
                self._end_value()
        elif character == "\\":
            self._step = self._escape
            self._kept(character, at)
        else:
            self._kept(_CONTROLS.get(character, f"\\u{ord(character):04x}"), at)
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] not in '"\\/bfnrtu':
            return self._break(at)
        self._hex_digits = 4
        self._step = self._hex if text[at] == "u" else self._string
        return self._kept(text[at], at)

    def _hex(self, text: str, at: int) -> int:
        if text[at] not in "0123456789abcdefABCDEF":
            return self._break(at)
        self._hex_digits -= 1
        if not self._hex_digits:
            self._step = self._string
        return self._kept(text[at], at)

    def _in_word(self, text: str, at: int) -> int:
        """A number, true, false or null: complete when something else comes."""
        if word := _WORD.match(text, at):
            fits = word[0][: MAX_WORD - len(self._word)]
            self._word += fits
            self.broken = not fits
            return self._kept(fits, at)
        self._end_word()
        return at

    def _end_word(self) -> bool:
        self.broken = _NUMBER_OR_NAME.fullmatch(self._word) is None
        self._word = ""
        self._end_value()
        return not self.broken

    def _begin_string(self, at: int, is_key: bool) -> int:
        self._is_key = is_key
        self._step = self._string
        return self._kept('"', at)

    def _close(self, at: int) -> int:
        closer = _CLOSERS[self._open.pop()]
        self._end_value()
        return self._kept(closer, at)

    def _end_value(self) -> None:
        self.done = not self._open and not self.broken
        self._step = self._after

    def _kept(self, text: str, at: int) -> int:
        self._pieces.append(text)
        return at + len(text)

    def _break(self, at: int) -> int:
        self.broken = True
        return at
